"""What the server says, in the language of the interface."""

from __future__ import annotations

import pytest
from browser_page import NEEDS_A_BROWSER, with_live_preview, workflow

from harness.library import upstream_path

pytestmark = NEEDS_A_BROWSER

WORDS = "app.graph._nodes.find((own) => own.type === 'DreamMatcherEasy').widgets.find((own) => own.name === 'subject_words')"


@pytest.mark.parametrize(("language", "wanted"), [
    ("zh", "subject_words：'caat' 不在提示词中；提示词中的词是：a, photo, of, a, cat"),
    ("ja", "subject_words：'caat' はプロンプトにありません。プロンプトの単語：a, photo, of, a, cat"),
    ("ko", "subject_words: 'caat'은(는) 프롬프트에 없습니다. 프롬프트의 단어: a, photo, of, a, cat")])
def test_a_missing_word_is_told_in_the_interfaces_language(page, language, wanted):
    with page.speaking(language):
        page.load(workflow("dreammatcher_01_easy_toybox", steps=3))
        page.show("DreamMatcherEasy")
        page.run(f"const words = {WORDS}; words.value = 'caat'; words.callback?.('caat')")
        page.tab.locator(".dreammatcher.picker .fault").get_by_text(wanted).wait_for(state="visible")
        page.picture(f"missing_word_{language}")


#: the note on a node of a class: newer front ends show it as a text of theirs, ours draws it in older ones
NOTE = """
    const node = app.graph._nodes.find((own) => own.type === given);
    return node.dreammatcherNote || node.widgets.find((own) => own.name === "$$node-text-preview")?.value || "";
"""
MASK = {"zh": "遮罩 (DreamMatcher)", "ja": "マスク (DreamMatcher)", "ko": "마스크 (DreamMatcher)"}


#: of the mask that is missing, of the inspector, of Guidance and of the live preview
NOTES = {
    "zh": ("mask：没有连接，或者“{}”被绕过或静音；没有 target_subject 时，模型原样通过",
           "没有匹配任何内容：", "model：没有可引导的目标，", "已匹配"),
    "ja": ("mask：何もつながれていないか、{} がバイパスかミュートされています。"
           "target_subject がないので、モデルはそのまま通ります",
           "何もマッチしませんでした：", "model：導く先がないので、", "がマッチしています"),
    "ko": ("mask: 아무것도 연결되지 않았거나, {}가 우회되었거나 꺼져 있습니다. "
           "target_subject가 없어서 모델은 그대로 넘어갑니다",
           "아무것도 매칭되지 않았습니다: ", "model: 이끌 목표가 없어", "매칭됨"),
}


@pytest.mark.parametrize("language", NOTES)
def test_notes_after_a_run_are_told_in_the_interfaces_language(page, language):
    missing, nothing, guidance, live = NOTES[language]
    with page.speaking(language):
        page.load(with_live_preview(steps=4))
        page.queue()
        page.show("DreamMatcherApply")
        page.tab.locator(".dreammatcher.live").get_by_text(live).wait_for(state="visible")
        page.run("app.graph._nodes.find((own) => own.type === 'DreamMatcherMask').mode = 4; await app.queuePrompt(0, 1)")
        said = page.tab.locator(".dreammatcher.inspector").get_by_text(nothing).first
        said.wait_for(state="attached", timeout=240_000)
        missing = missing.format(MASK[language] if upstream_path() else "Mask (DreamMatcher)")  # older ones show English titles
        assert missing in said.text_content()
        page.show("DreamMatcherApply")
        assert page.run(NOTE, "DreamMatcherApply") == missing
        assert page.run(NOTE, "DreamMatcherGuidance").startswith(guidance)
        page.picture(f"note_{language}")


def test_a_refusal_of_a_training_is_told_in_the_interfaces_language(page):
    """Learn (Easy) with one picture, which it refuses before it trains."""
    graph = workflow("dreammatcher_15_learn_easy_toybox")
    with page.speaking("zh"):
        page.load(graph)
        page.run("""
            const learn = app.graph._nodes.find((own) => own.type === "DreamMatcherLearn");
            learn.widgets.find((own) => own.name === "class_word").value = "";
            await app.queuePrompt(0, 1);
        """)
        fault = page.tab.locator(".dreammatcher.report.fault")
        fault.get_by_text("class_word：它是空的；请写主体是哪一类东西").wait_for(state="attached", timeout=240_000)
        page.show("DreamMatcherLearn")
        page.picture("refusal_zh")
