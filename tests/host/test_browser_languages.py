"""What the server says, in the language of the interface."""

from __future__ import annotations

import pytest
from browser_page import NEEDS_A_BROWSER, workflow

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
