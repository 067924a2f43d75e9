/** Sentences of the server: English, as its code has them, and what they are in other languages. {Places} hold values. */

export const SENTENCES = {
    zh: {
        "nothing was matched in this run: {reason}": "本次运行没有匹配任何内容：{reason}",
        "Nothing was matched: {reason}.": "没有匹配任何内容：{reason}。",
        "No match to show: {reason}.": "没有可显示的匹配：{reason}。",
        "Nothing was matched: there is no trace. Nothing is connected to it, or Apply (DreamMatcher) or Easy (DreamMatcher) is bypassed or muted.":
            "没有匹配任何内容：没有 trace。它没有连接，或者“应用 (DreamMatcher)”或“简易 (DreamMatcher)”被绕过或静音。",
        "strength is 0": "strength 为 0",
        "no match was trusted; choose a reference in which the subject is larger, or a higher cycle_threshold":
            "没有可信的匹配；请选择主体更大的参考图，或提高 cycle_threshold",
        "no step lies between start and end, or the model of Apply (DreamMatcher) was not sampled":
            "start 与 end 之间没有步，或者没有用“应用 (DreamMatcher)”的模型采样",
        "only one step lies between start and end, and matching needs the step before; use more steps":
            "start 与 end 之间只有一步，而匹配需要前一步；请增加步数",
        "the subject's place in the new picture was not found": "没有找到主体在新图片中的位置",
        "there is no record of a match": "没有匹配的记录",
        "this run has several positive prompts and none comes from Subject (DreamMatcher) {words}, so nothing is matched":
            "这次运行有多个正面提示词，但没有一个来自“主体 (DreamMatcher)”{words}，因此没有匹配",
        "(Mask (DreamMatcher) has no target subject to look for)": "（“遮罩 (DreamMatcher)”没有要寻找的目标主体）",
        "with the words {words}": "，词为 {words}",
        "{name}: nothing is connected, or {source} is bypassed or muted; {outcome}": "{name}：没有连接，或者“{source}”被绕过或静音；{outcome}",
        "Invert Reference (DreamMatcher) or another node in front": "反演参考图 (DreamMatcher) 或前面的其他节点",
        "the node in front": "前面的节点",
        "the training node": "训练节点",
        "the model goes on as it is": "模型原样通过",
        "without target_subject {outcome}": "没有 target_subject 时，{outcome}",
        "no features are made": "不生成特征",
        "nothing is saved": "什么也不保存",
        "model and clip go on as they are": "model 和 clip 原样通过",
        "{inputs}: nothing is connected; connect it, and if the node in front of {node} is bypassed or muted, switch that on again, or bypass this one too":
            "{inputs}：没有连接；请连接它。如果“{node}”前面的节点被绕过或静音，请重新启用它，或把这个节点也绕过",
        "{node} is bypassed, and nothing comes to {inputs}: {instead}": "“{node}”被绕过，{inputs} 没有输入：{instead}",
        "ComfyUI has nothing to pass on in its place; bypass or mute what needs it too, or switch it on again":
            "ComfyUI 没有可代替它传递的内容；请把需要它的节点也绕过或静音，或重新启用它",
        "subject_words: {word} is not in the prompt; its words are: {words}": "subject_words：{word} 不在提示词中；提示词中的词是：{words}",
        "{word} is taken as {taken}, which is in the prompt": "{word} 被当作提示词中的 {taken}",
        "subject_words: none given; these words of the prompt are taken: {words}": "subject_words：未填写；采用提示词中的这些词：{words}",
        "subject_words: none given; {shared}: {words}": "subject_words：未填写；{shared}：{words}",
        "the words that both prompts share are taken": "采用两个提示词共有的词",
        "subject_words: none given, and the prompts share no word: {one} and {other}; name the subject in both":
            "subject_words：未填写，而两个提示词没有共同的词：{one} 和 {other}；请在两个提示词中都写出主体",
        "subject_words: none given, and the prompt has no words to take; describe the subject in the prompt":
            "subject_words：未填写，提示词中也没有可用的词；请在提示词中描述主体",
        "model: there is nothing to guide towards, so it goes on as it is; connect the MODEL output of Apply (DreamMatcher), or switch that node on again":
            "model：没有可引导的目标，模型原样通过；请连接“应用 (DreamMatcher)”的 MODEL 输出，或重新启用该节点",
        "reference: it was made with another model family ({made}); this model is ({family}). Invert the reference again with this model":
            "reference：它是用另一系列的模型制作的（{made}）；此模型是（{family}）。请用此模型重新反演参考图",
        "reference: {words} is not found in the reference, so nothing of it is matched; give Mask (DreamMatcher) a reference_mask":
            "reference：在参考图中找不到 {words}，因此没有匹配；请给“遮罩 (DreamMatcher)”一个 reference_mask",
        "{name}: it is {width}x{height} pixels; this model needs at least {least} on the shorter side. Give a larger picture":
            "{name}：大小为 {width}x{height} 像素；此模型要求短边至少 {least} 像素。请提供更大的图片",
        "reference_mask: it is empty, so there would be nothing to match; paint the subject white":
            "reference_mask：它是空的，没有可匹配的内容；请把主体涂成白色",
        "training_set: it has one picture, from which the background would be learned as well; give 3 to 5 in different places and poses, or turn allow_one_picture on in Training Details (DreamMatcher)":
            "training_set：只有一张图片，背景也会被学进去；请提供 3 到 5 张不同地点和姿势的图片，或在“训练细节 (DreamMatcher)”中打开 allow_one_picture",
        "class_word: it is empty in the training set, and prior preservation needs the subject's class; write it there, or take the prior set away":
            "class_word：训练集中它是空的，而先验保持需要主体的类别；请填写，或去掉先验集",
        "stopped {where}: nothing is learned yet, so the graph stops; queue it again to begin":
            "已停止（{where}）：还没有学到任何内容，因此工作流停止；重新运行即可开始",
        "write in prompts: {words}": "在提示词中写：{words}",
        "no new words": "没有新词",
        "Saved as {file}. Load it with Load LoRA, and write {words} in prompts.": "已保存为 {file}。用“加载 LoRA”加载它，并在提示词中写 {words}。",
        "Saved as {file}{which}. Write {words} in prompts.": "已保存为 {file}{which}。在提示词中写 {words}。",
        "memory: this training takes about {needed} GB beside the model{how}, and {free} GB are free on {device}":
            "memory：除模型外，此训练约需 {needed} GB{how}，而 {device} 上空闲 {free} GB",
        " even with gradient checkpointing": "（即使使用梯度检查点）",
        "{said}; it is tried all the same": "{said}；仍然会尝试",
        "pictures: there is none; connect at least one": "pictures：没有图片；请至少连接一张",
    },
    ja: {
        "nothing was matched in this run: {reason}": "この実行では何もマッチしませんでした：{reason}",
        "Nothing was matched: {reason}.": "何もマッチしませんでした：{reason}。",
        "No match to show: {reason}.": "表示できるマッチがありません：{reason}。",
        "Nothing was matched: there is no trace. Nothing is connected to it, or Apply (DreamMatcher) or Easy (DreamMatcher) is bypassed or muted.":
            "何もマッチしませんでした：trace がありません。つながれていないか、適用 (DreamMatcher) または 簡単 (DreamMatcher) がバイパスかミュートされています。",
        "strength is 0": "strength が 0 です",
        "no match was trusted; choose a reference in which the subject is larger, or a higher cycle_threshold":
            "信頼できるマッチがありません。被写体がもっと大きい参照を選ぶか、cycle_threshold を上げてください",
        "no step lies between start and end, or the model of Apply (DreamMatcher) was not sampled":
            "start と end の間にステップがないか、適用 (DreamMatcher) のモデルがサンプリングされていません",
        "only one step lies between start and end, and matching needs the step before; use more steps":
            "start と end の間に 1 ステップしかなく、マッチングには前のステップが必要です。ステップを増やしてください",
        "the subject's place in the new picture was not found": "新しい画像の中に被写体の位置が見つかりませんでした",
        "there is no record of a match": "マッチの記録がありません",
        "this run has several positive prompts and none comes from Subject (DreamMatcher) {words}, so nothing is matched":
            "この実行には複数のポジティブプロンプトがありますが、被写体 (DreamMatcher) からのものがないため（{words}）、何もマッチしません",
        "(Mask (DreamMatcher) has no target subject to look for)": "マスク (DreamMatcher) に探すべきターゲットの被写体がありません",
        "with the words {words}": "単語 {words}",
        "{name}: nothing is connected, or {source} is bypassed or muted; {outcome}":
            "{name}：何もつながれていないか、{source} がバイパスかミュートされています。{outcome}",
        "Invert Reference (DreamMatcher) or another node in front": "参照インバージョン (DreamMatcher) または前のほかのノード",
        "the node in front": "前のノード",
        "the training node": "訓練ノード",
        "the model goes on as it is": "モデルはそのまま通ります",
        "without target_subject {outcome}": "target_subject がないので、{outcome}",
        "no features are made": "特徴量は作られません",
        "nothing is saved": "何も保存されません",
        "model and clip go on as they are": "model と clip はそのまま通ります",
        "{inputs}: nothing is connected; connect it, and if the node in front of {node} is bypassed or muted, switch that on again, or bypass this one too":
            "{inputs}：何もつながれていません。つないでください。{node} の前のノードがバイパスかミュートされているなら、元に戻すか、このノードもバイパスしてください",
        "{node} is bypassed, and nothing comes to {inputs}: {instead}": "{node} がバイパスされているので、{inputs} に何も届きません：{instead}",
        "ComfyUI has nothing to pass on in its place; bypass or mute what needs it too, or switch it on again":
            "ComfyUI には代わりに渡すものがありません。それを必要とするノードもバイパスかミュートするか、元に戻してください",
        "subject_words: {word} is not in the prompt; its words are: {words}":
            "subject_words：{word} はプロンプトにありません。プロンプトの単語：{words}",
        "{word} is taken as {taken}, which is in the prompt": "{word} は、プロンプトにある {taken} とみなします",
        "subject_words: none given; these words of the prompt are taken: {words}": "subject_words：空なので、プロンプトのこれらの単語を使います：{words}",
        "subject_words: none given; {shared}: {words}": "subject_words：空なので、{shared}：{words}",
        "the words that both prompts share are taken": "両方のプロンプトに共通する単語を使います",
        "subject_words: none given, and the prompts share no word: {one} and {other}; name the subject in both":
            "subject_words：空で、二つのプロンプトに共通する単語もありません：{one} と {other}。両方に被写体を書いてください",
        "subject_words: none given, and the prompt has no words to take; describe the subject in the prompt":
            "subject_words：空で、プロンプトにも使える単語がありません。プロンプトに被写体を書いてください",
        "model: there is nothing to guide towards, so it goes on as it is; connect the MODEL output of Apply (DreamMatcher), or switch that node on again":
            "model：導く先がないので、そのまま通ります。適用 (DreamMatcher) の MODEL 出力をつなぐか、そのノードを元に戻してください",
        "reference: it was made with another model family ({made}); this model is ({family}). Invert the reference again with this model":
            "reference：別の系統のモデルで作られています（{made}）。このモデルは（{family}）です。このモデルで参照をもう一度インバージョンしてください",
        "reference: {words} is not found in the reference, so nothing of it is matched; give Mask (DreamMatcher) a reference_mask":
            "reference：参照の中に {words} が見つからないので、何もマッチしません。マスク (DreamMatcher) に reference_mask を与えてください",
        "{name}: it is {width}x{height} pixels; this model needs at least {least} on the shorter side. Give a larger picture":
            "{name}：{width}x{height} ピクセルです。このモデルは短い辺に少なくとも {least} ピクセル必要です。もっと大きい画像を使ってください",
        "reference_mask: it is empty, so there would be nothing to match; paint the subject white":
            "reference_mask：空なので、マッチするものがありません。被写体を白く塗ってください",
        "training_set: it has one picture, from which the background would be learned as well; give 3 to 5 in different places and poses, or turn allow_one_picture on in Training Details (DreamMatcher)":
            "training_set：画像が 1 枚だけなので、背景まで学習されます。場所とポーズの違う画像を 3 から 5 枚使うか、訓練の詳細 (DreamMatcher) で allow_one_picture をオンにしてください",
        "class_word: it is empty in the training set, and prior preservation needs the subject's class; write it there, or take the prior set away":
            "class_word：訓練セットで空になっていますが、事前分布の保持には被写体のクラスが必要です。そこに書くか、事前セットを外してください",
        "stopped {where}: nothing is learned yet, so the graph stops; queue it again to begin":
            "停止しました（{where}）：まだ何も学習していないので、グラフも止まります。始めるにはもう一度実行してください",
        "write in prompts: {words}": "プロンプトに書く言葉：{words}",
        "no new words": "新しい単語はありません",
        "Saved as {file}. Load it with Load LoRA, and write {words} in prompts.":
            "{file} に保存しました。「LoRA を読み込む」で読み込み、プロンプトに {words} と書きます。",
        "Saved as {file}{which}. Write {words} in prompts.": "{file}{which} に保存しました。プロンプトに {words} と書きます。",
        "memory: this training takes about {needed} GB beside the model{how}, and {free} GB are free on {device}":
            "memory：この訓練はモデルのほかに約 {needed} GB を使いますが{how}、{device} の空きは {free} GB です",
        " even with gradient checkpointing": "（勾配チェックポイントを使っても）",
        "{said}; it is tried all the same": "{said}。それでも試します",
        "pictures: there is none; connect at least one": "pictures：画像がありません。少なくとも 1 枚つないでください",
    },
    ko: {
        "nothing was matched in this run: {reason}": "이번 실행에서는 아무것도 매칭되지 않았습니다: {reason}",
        "Nothing was matched: {reason}.": "아무것도 매칭되지 않았습니다: {reason}.",
        "No match to show: {reason}.": "보여 줄 매칭이 없습니다: {reason}.",
        "Nothing was matched: there is no trace. Nothing is connected to it, or Apply (DreamMatcher) or Easy (DreamMatcher) is bypassed or muted.":
            "아무것도 매칭되지 않았습니다: trace가 없습니다. 연결되지 않았거나, 적용 (DreamMatcher) 또는 간편 (DreamMatcher)이 우회되었거나 꺼져 있습니다.",
        "strength is 0": "strength가 0입니다",
        "no match was trusted; choose a reference in which the subject is larger, or a higher cycle_threshold":
            "신뢰할 수 있는 매칭이 없습니다. 피사체가 더 큰 참조를 고르거나 cycle_threshold를 높이십시오",
        "no step lies between start and end, or the model of Apply (DreamMatcher) was not sampled":
            "start와 end 사이에 스텝이 없거나, 적용 (DreamMatcher)의 모델로 샘플링하지 않았습니다",
        "only one step lies between start and end, and matching needs the step before; use more steps":
            "start와 end 사이에 한 스텝뿐인데, 매칭에는 그 앞 스텝이 필요합니다. 스텝을 늘리십시오",
        "the subject's place in the new picture was not found": "새 그림에서 피사체의 위치를 찾지 못했습니다",
        "there is no record of a match": "매칭 기록이 없습니다",
        "this run has several positive prompts and none comes from Subject (DreamMatcher) {words}, so nothing is matched":
            "이번 실행에는 긍정 프롬프트가 여럿이지만 피사체 (DreamMatcher)에서 온 것이 없어({words}) 아무것도 매칭하지 않습니다",
        "(Mask (DreamMatcher) has no target subject to look for)": "마스크 (DreamMatcher)에 찾을 대상 피사체가 없음",
        "with the words {words}": "단어 {words}",
        "{name}: nothing is connected, or {source} is bypassed or muted; {outcome}":
            "{name}: 아무것도 연결되지 않았거나, {source}가 우회되었거나 꺼져 있습니다. {outcome}",
        "Invert Reference (DreamMatcher) or another node in front": "참조 인버전 (DreamMatcher) 또는 앞의 다른 노드",
        "the node in front": "앞의 노드",
        "the training node": "학습 노드",
        "the model goes on as it is": "모델은 그대로 넘어갑니다",
        "without target_subject {outcome}": "target_subject가 없어서 {outcome}",
        "no features are made": "특징을 만들지 않습니다",
        "nothing is saved": "아무것도 저장하지 않습니다",
        "model and clip go on as they are": "model과 clip은 그대로 넘어갑니다",
        "{inputs}: nothing is connected; connect it, and if the node in front of {node} is bypassed or muted, switch that on again, or bypass this one too":
            "{inputs}: 아무것도 연결되지 않았습니다. 연결하십시오. {node} 앞의 노드가 우회되었거나 꺼져 있으면 다시 켜거나, 이 노드도 우회하십시오",
        "{node} is bypassed, and nothing comes to {inputs}: {instead}": "{node}가 우회되어 {inputs}에 아무것도 오지 않습니다: {instead}",
        "ComfyUI has nothing to pass on in its place; bypass or mute what needs it too, or switch it on again":
            "ComfyUI가 대신 넘길 것이 없습니다. 그것이 필요한 노드도 우회하거나 끄거나, 다시 켜십시오",
        "subject_words: {word} is not in the prompt; its words are: {words}":
            "subject_words: {word}은(는) 프롬프트에 없습니다. 프롬프트의 단어: {words}",
        "{word} is taken as {taken}, which is in the prompt": "{word}은(는) 프롬프트에 있는 {taken}(으)로 봅니다",
        "subject_words: none given; these words of the prompt are taken: {words}":
            "subject_words: 비어 있어 프롬프트의 다음 단어를 씁니다: {words}",
        "subject_words: none given; {shared}: {words}": "subject_words: 비어 있어 {shared}: {words}",
        "the words that both prompts share are taken": "두 프롬프트에 공통된 단어를 씁니다",
        "subject_words: none given, and the prompts share no word: {one} and {other}; name the subject in both":
            "subject_words: 비어 있고 두 프롬프트에 공통된 단어도 없습니다: {one}, {other}. 둘 다에 피사체를 적으십시오",
        "subject_words: none given, and the prompt has no words to take; describe the subject in the prompt":
            "subject_words: 비어 있고 프롬프트에도 쓸 단어가 없습니다. 프롬프트에 피사체를 적으십시오",
        "model: there is nothing to guide towards, so it goes on as it is; connect the MODEL output of Apply (DreamMatcher), or switch that node on again":
            "model: 이끌 목표가 없어 그대로 넘어갑니다. 적용 (DreamMatcher)의 MODEL 출력을 연결하거나 그 노드를 다시 켜십시오",
        "reference: it was made with another model family ({made}); this model is ({family}). Invert the reference again with this model":
            "reference: 다른 계열의 모델로 만들어졌습니다({made}). 이 모델은 ({family})입니다. 이 모델로 참조를 다시 인버전하십시오",
        "reference: {words} is not found in the reference, so nothing of it is matched; give Mask (DreamMatcher) a reference_mask":
            "reference: 참조에서 {words}을(를) 찾지 못해 아무것도 매칭하지 않습니다. 마스크 (DreamMatcher)에 reference_mask를 주십시오",
        "{name}: it is {width}x{height} pixels; this model needs at least {least} on the shorter side. Give a larger picture":
            "{name}: {width}x{height} 픽셀입니다. 이 모델은 짧은 변이 적어도 {least} 픽셀이어야 합니다. 더 큰 그림을 주십시오",
        "reference_mask: it is empty, so there would be nothing to match; paint the subject white":
            "reference_mask: 비어 있어 매칭할 것이 없습니다. 피사체를 흰색으로 칠하십시오",
        "training_set: it has one picture, from which the background would be learned as well; give 3 to 5 in different places and poses, or turn allow_one_picture on in Training Details (DreamMatcher)":
            "training_set: 그림이 한 장뿐이라 배경까지 배우게 됩니다. 장소와 포즈가 다른 그림을 3~5장 주거나, 학습 세부 (DreamMatcher)에서 allow_one_picture를 켜십시오",
        "class_word: it is empty in the training set, and prior preservation needs the subject's class; write it there, or take the prior set away":
            "class_word: 학습 세트에서 비어 있는데, 사전 보존에는 피사체의 종류가 필요합니다. 거기에 적거나 사전 세트를 떼십시오",
        "stopped {where}: nothing is learned yet, so the graph stops; queue it again to begin":
            "멈췄습니다({where}): 아직 배운 것이 없어 그래프도 멈춥니다. 시작하려면 다시 실행하십시오",
        "write in prompts: {words}": "프롬프트에 쓸 말: {words}",
        "no new words": "새 단어 없음",
        "Saved as {file}. Load it with Load LoRA, and write {words} in prompts.":
            "{file}(으)로 저장했습니다. 'LoRA 로드'로 불러오고 프롬프트에 {words}(을)를 쓰십시오.",
        "Saved as {file}{which}. Write {words} in prompts.": "{file}{which}(으)로 저장했습니다. 프롬프트에 {words}(을)를 쓰십시오.",
        "memory: this training takes about {needed} GB beside the model{how}, and {free} GB are free on {device}":
            "memory: 이 학습은 모델 말고도 약 {needed} GB가 듭니다{how}. {device}의 빈 공간은 {free} GB입니다",
        " even with gradient checkpointing": " (그래디언트 체크포인팅을 써도)",
        "{said}; it is tried all the same": "{said}. 그래도 시도합니다",
        "pictures: there is none; connect at least one": "pictures: 그림이 없습니다. 적어도 한 장 연결하십시오",
    },
};
