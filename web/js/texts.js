/** Our sentences in the languages of the interface. English is the key. No DOM here. */

const TEXTS = {
    zh: {
        "picture {number}": "图片 {number}",
        picture: "图片",
        step: "步",
        "{step} of {all}": "第 {step} 步，共 {all} 步",
        "{step} of {all}, sigma {sigma}": "第 {step} 步，共 {all} 步，sigma {sigma}",
        overlay: "叠加",
        "no overlay": "无叠加",
        foreground: "主体的位置",
        trusted: "可信的匹配",
        "foreground: where the subject is in the result": "主体的位置：主体在结果中的地方",
        "trusted: the part of it where a match holds there and back, so that the reference's colours come over":
            "可信的匹配：其中往返匹配都成立、因而会带入参考图颜色的部分",
        "plain to DreamMatcher": "从普通图片到 DreamMatcher",
        plain: "普通",
        reference: "参考图",
        "reference {number}": "参考图 {number}",
        result: "结果",
        "result: arrow keys move the point, with shift by five": "结果：方向键移动该点，按住 Shift 每次五格",
        "Queue the graph: the match appears here.": "运行工作流后，匹配会显示在这里。",
        "matched here, similarity {similarity}": "此处已匹配，相似度 {similarity}",
        "matched here by {part}%, similarity {similarity}": "此处匹配了 {part}%，相似度 {similarity}",
        "outside the subject: left as it is, similarity {similarity}": "在主体之外：保持原样，相似度 {similarity}",
        "not trusted (the way back ends elsewhere): left as it is, similarity {similarity}":
            "不可信（返回时落在别处）：保持原样，相似度 {similarity}",
        "its picture is not connected": "其图片未连接",
        "This step's match is no longer on the server ({why}); queue the graph again.":
            "这一步的匹配已不在服务器上（{why}）；请重新运行工作流。",
        "subject words": "主体词",
        "use '{word}'": "改用“{word}”",
        "These texts come from another node; there the words are chosen.": "这些文本来自另一个节点；请在那里选词。",
        "{word} is not in both prompts: click to remove it": "“{word}”不在两个提示词中：点击可移除",
        "{word} is not in the prompt: click to remove it": "“{word}”不在提示词中：点击可移除",
        "{word} names the subject": "“{word}”指称主体",
        "click if {word} names the subject": "如果“{word}”指称主体，请点击",
        "live preview": "实时预览",
        "Copied. Paste it into your bug report.": "已复制。请粘贴到错误报告中。",
        "Copy this text into your bug report.": "请把这段文字复制到错误报告中。",
        "The server gave no report ({why}). Run: python -m dreammatcher.cli.report":
            "服务器没有给出报告（{why}）。请运行：python -m dreammatcher.cli.report",
        "DreamMatcher Report": "DreamMatcher 报告",
        "DreamMatcher: start here": "DreamMatcher：从这里开始",
        "One photo and your checkpoint: Easy (DreamMatcher). Describe both pictures and click the word for the subject.":
            "一张照片加你的 checkpoint：用节点“简易 (DreamMatcher)”。写明照片里是什么、你想要什么，再点击指称主体的词。",
        "Without a checkpoint: the template 01_easy_toybox; with yours: 02_easy_photo (Templates, comfyui-dreammatcher).":
            "没有 checkpoint：模板 01_easy_toybox；有的话：02_easy_photo（模板，comfyui-dreammatcher）。",
        "To see what was matched, add Preview (DreamMatcher) behind VAE Decode. Every node explains itself under its ?.":
            "想看匹配了什么，在“VAE解码”之后加“预览 (DreamMatcher)”。每个节点的 ? 里都有说明。",
        "The model is to learn the subject first: Learn (Easy) (DreamMatcher).": "想先让模型学习主体：用“学习（简易） (DreamMatcher)”。",
    },
    ja: {
        "picture {number}": "画像 {number}",
        picture: "画像",
        step: "ステップ",
        "{step} of {all}": "{all} 中 {step}",
        "{step} of {all}, sigma {sigma}": "{all} 中 {step}、シグマ {sigma}",
        overlay: "重ね表示",
        "no overlay": "重ねない",
        foreground: "被写体の位置",
        trusted: "信頼できるマッチ",
        "foreground: where the subject is in the result": "被写体の位置：結果の中で被写体がある場所",
        "trusted: the part of it where a match holds there and back, so that the reference's colours come over":
            "信頼できるマッチ：そのうち行きも帰りもマッチが成り立ち、参照の色が移る部分",
        "plain to DreamMatcher": "通常の画像から DreamMatcher へ",
        plain: "通常",
        reference: "参照",
        "reference {number}": "参照 {number}",
        result: "結果",
        "result: arrow keys move the point, with shift by five": "結果: 矢印キーで点を動かします。Shift を押すと 5 つずつ動きます",
        "Queue the graph: the match appears here.": "グラフを実行すると、ここにマッチングが表示されます。",
        "matched here, similarity {similarity}": "ここはマッチしました、類似度 {similarity}",
        "matched here by {part}%, similarity {similarity}": "ここは {part}% マッチしました、類似度 {similarity}",
        "outside the subject: left as it is, similarity {similarity}": "被写体の外: そのままです、類似度 {similarity}",
        "not trusted (the way back ends elsewhere): left as it is, similarity {similarity}":
            "信頼できません（戻ると別の場所に着きます）: そのままです、類似度 {similarity}",
        "its picture is not connected": "その画像はつながっていません",
        "This step's match is no longer on the server ({why}); queue the graph again.":
            "このステップのマッチングはもうサーバーにありません（{why}）。もう一度実行してください。",
        "subject words": "被写体の単語",
        "use '{word}'": "「{word}」を使う",
        "These texts come from another node; there the words are chosen.": "このテキストは別のノードから来ます。単語はそこで選びます。",
        "{word} is not in both prompts: click to remove it": "「{word}」は両方のプロンプトにはありません: クリックで外します",
        "{word} is not in the prompt: click to remove it": "「{word}」はプロンプトにありません: クリックで外します",
        "{word} names the subject": "「{word}」は被写体を表します",
        "click if {word} names the subject": "「{word}」が被写体を表すならクリックします",
        "live preview": "ライブプレビュー",
        "Copied. Paste it into your bug report.": "コピーしました。バグ報告に貼り付けてください。",
        "Copy this text into your bug report.": "この文をバグ報告にコピーしてください。",
        "The server gave no report ({why}). Run: python -m dreammatcher.cli.report":
            "サーバーからレポートが得られませんでした（{why}）。実行してください: python -m dreammatcher.cli.report",
        "DreamMatcher Report": "DreamMatcher レポート",
        "DreamMatcher: start here": "DreamMatcher: はじめに",
        "One photo and your checkpoint: Easy (DreamMatcher). Describe both pictures and click the word for the subject.":
            "写真 1 枚と手持ちのチェックポイント: ノード「簡単 (DreamMatcher)」。写真の内容と作りたい画像を書き、被写体を表す単語をクリックします。",
        "Without a checkpoint: the template 01_easy_toybox; with yours: 02_easy_photo (Templates, comfyui-dreammatcher).":
            "チェックポイントなし: テンプレート 01_easy_toybox。あれば 02_easy_photo（テンプレート、comfyui-dreammatcher）。",
        "To see what was matched, add Preview (DreamMatcher) behind VAE Decode. Every node explains itself under its ?.":
            "何がマッチしたかは、VAE デコードの後に「プレビュー (DreamMatcher)」を置くと見えます。各ノードの ? に説明があります。",
        "The model is to learn the subject first: Learn (Easy) (DreamMatcher).": "先にモデルに被写体を学ばせるには: 「学習（かんたん） (DreamMatcher)」。",
    },
    ko: {
        "picture {number}": "그림 {number}",
        picture: "그림",
        step: "스텝",
        "{step} of {all}": "{all} 중 {step}",
        "{step} of {all}, sigma {sigma}": "{all} 중 {step}, 시그마 {sigma}",
        overlay: "겹쳐 보기",
        "no overlay": "겹치지 않음",
        foreground: "피사체의 위치",
        trusted: "신뢰된 매칭",
        "foreground: where the subject is in the result": "피사체의 위치: 결과에서 피사체가 있는 곳",
        "trusted: the part of it where a match holds there and back, so that the reference's colours come over":
            "신뢰된 매칭: 그중 가고 오는 매칭이 모두 맞아 참조의 색이 옮겨지는 부분",
        "plain to DreamMatcher": "일반 그림에서 DreamMatcher로",
        plain: "일반",
        reference: "참조",
        "reference {number}": "참조 {number}",
        result: "결과",
        "result: arrow keys move the point, with shift by five": "결과: 화살표 키로 점을 옮깁니다. Shift를 누르면 다섯 칸씩 옮깁니다",
        "Queue the graph: the match appears here.": "그래프를 실행하면 여기에 매칭이 나타납니다.",
        "matched here, similarity {similarity}": "여기는 매칭됨, 유사도 {similarity}",
        "matched here by {part}%, similarity {similarity}": "여기는 {part}% 매칭됨, 유사도 {similarity}",
        "outside the subject: left as it is, similarity {similarity}": "피사체 밖: 그대로 둠, 유사도 {similarity}",
        "not trusted (the way back ends elsewhere): left as it is, similarity {similarity}":
            "신뢰할 수 없음(돌아오면 다른 곳에 닿음): 그대로 둠, 유사도 {similarity}",
        "its picture is not connected": "그 그림이 연결되지 않았습니다",
        "This step's match is no longer on the server ({why}); queue the graph again.":
            "이 스텝의 매칭이 서버에 더 없습니다({why}). 그래프를 다시 실행하십시오.",
        "subject words": "피사체 단어",
        "use '{word}'": "'{word}' 사용",
        "These texts come from another node; there the words are chosen.": "이 텍스트는 다른 노드에서 옵니다. 단어는 그곳에서 고릅니다.",
        "{word} is not in both prompts: click to remove it": "'{word}'은(는) 두 프롬프트 모두에 있지는 않습니다: 클릭하면 지웁니다",
        "{word} is not in the prompt: click to remove it": "'{word}'은(는) 프롬프트에 없습니다: 클릭하면 지웁니다",
        "{word} names the subject": "'{word}'은(는) 피사체를 가리킵니다",
        "click if {word} names the subject": "'{word}'이(가) 피사체를 가리키면 클릭하십시오",
        "live preview": "실시간 미리보기",
        "Copied. Paste it into your bug report.": "복사했습니다. 버그 보고에 붙여 넣으십시오.",
        "Copy this text into your bug report.": "이 글을 버그 보고에 복사하십시오.",
        "The server gave no report ({why}). Run: python -m dreammatcher.cli.report":
            "서버가 보고서를 주지 않았습니다({why}). 실행하십시오: python -m dreammatcher.cli.report",
        "DreamMatcher Report": "DreamMatcher 보고서",
        "DreamMatcher: start here": "DreamMatcher: 여기서 시작",
        "One photo and your checkpoint: Easy (DreamMatcher). Describe both pictures and click the word for the subject.":
            "사진 한 장과 체크포인트: 노드 '간편 (DreamMatcher)'. 사진의 내용과 원하는 그림을 적고, 피사체를 가리키는 단어를 클릭하십시오.",
        "Without a checkpoint: the template 01_easy_toybox; with yours: 02_easy_photo (Templates, comfyui-dreammatcher).":
            "체크포인트가 없으면 템플릿 01_easy_toybox, 있으면 02_easy_photo(템플릿, comfyui-dreammatcher).",
        "To see what was matched, add Preview (DreamMatcher) behind VAE Decode. Every node explains itself under its ?.":
            "무엇이 매칭되었는지 보려면 VAE 디코드 뒤에 '미리보기 (DreamMatcher)'를 놓으십시오. 노드마다 ?에 설명이 있습니다.",
        "The model is to learn the subject first: Learn (Easy) (DreamMatcher).": "모델이 먼저 피사체를 배우게 하려면: '학습 (간편) (DreamMatcher)'.",
    },
};

/** The languages besides English. */
export const LANGUAGES = Object.keys(TEXTS);

/** The English sentences that a language has. */
export function sentences(language) {
    return Object.keys(TEXTS[language]);
}

/** An English sentence in a language of the front end's, such as "zh" or "zh-TW", with the values of its {places}; else English. */
export function inLanguage(language, text, values = {}) {
    const known = TEXTS[String(language ?? "").toLowerCase().split("-")[0]] ?? {};
    return (Object.hasOwn(known, text) ? known[text] : text).replace(/\{(\w+)\}/g, (place, name) => (name in values ? String(values[name]) : place));
}
