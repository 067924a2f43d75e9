import assert from "node:assert/strict";
import test from "node:test";

import { titlesIn, translated } from "../../web/js/server.js";
import { SENTENCES } from "../../web/js/server_texts.js";

const places = (text) => (text.match(/\{\w+\}/g) ?? []).sort();
const LOCALES = {
    en: { nodeDefs: { DreamMatcherApply: { display_name: "Apply (DreamMatcher)" }, DreamMatcherViCoApply: { display_name: "ViCo Apply (DreamMatcher)" }, KSampler: { display_name: "KSampler" } } },
    zh: { nodeDefs: { DreamMatcherApply: { display_name: "应用 (DreamMatcher)" }, DreamMatcherViCoApply: { display_name: "ViCo 应用 (DreamMatcher)" }, KSampler: { display_name: "K采样器" } } },
};

test("every language has the same sentences of the server, with the same places for values", () => {
    assert.deepEqual(Object.keys(SENTENCES), ["zh", "ja", "ko"]);
    for (const [language, known] of Object.entries(SENTENCES)) {
        assert.deepEqual(Object.keys(known), Object.keys(SENTENCES.zh), language);
        for (const [sentence, text] of Object.entries(known)) {
            assert.deepEqual(places(text), places(sentence), `${language}: ${sentence}`);
            assert.notEqual(text, sentence, language);
        }
    }
});

test("every sentence is found with its values in their places, and not taken for another one", () => {
    for (const [language, known] of Object.entries(SENTENCES)) {
        for (const [sentence, text] of Object.entries(known)) {
            const filled = (said) => said.replace(/\{(\w+)\}/g, (place, name) => `<${name}>`);
            assert.equal(translated(language, filled(sentence)), filled(text), sentence);
        }
    }
});

test("a sentence within a sentence, behind an input's name and on a line of its own is found too", () => {
    const zero = SENTENCES.ko["strength is 0"];
    assert.equal(translated("ko", "nothing was matched in this run: strength is 0"), `이번 실행에서는 아무것도 매칭되지 않았습니다: ${zero}`);
    assert.equal(translated("zh", "Nothing was matched: mask: nothing is connected, or the node in front is bypassed or muted; nothing is saved."),
        "没有匹配任何内容：mask：没有连接，或者“前面的节点”被绕过或静音；什么也不保存。");
    assert.equal(translated("zh", "prompt: 'cats' is taken as 'cat', which is in the prompt"), "prompt: 'cats' 被当作提示词中的 'cat'");
    assert.equal(translated("ja", "strength is 0\nwrite in prompts: sks dog"), "strength が 0 です\nプロンプトに書く言葉：sks dog");
});

test("nodes have the titles that the interface shows", () => {
    const titles = titlesIn("zh", LOCALES);
    assert.deepEqual(titles, { "Apply (DreamMatcher)": "应用 (DreamMatcher)", "ViCo Apply (DreamMatcher)": "ViCo 应用 (DreamMatcher)" });
    const said = translated("zh", "trace: nothing is connected, or ViCo Apply (DreamMatcher) is bypassed or muted; nobody knows this", titles);
    assert.equal(said, "trace：没有连接，或者“ViCo 应用 (DreamMatcher)”被绕过或静音；nobody knows this");
    assert.deepEqual(titlesIn("fr", LOCALES), {});
    assert.deepEqual(titlesIn("zh-TW", LOCALES), titles);
});

test("English, an unknown language and an unknown sentence stay as they are", () => {
    for (const language of ["en", "fr", undefined, "constructor"]) assert.equal(translated(language, "strength is 0"), "strength is 0");
    assert.equal(translated("zh-TW", "strength is 0"), SENTENCES.zh["strength is 0"]);
    for (const text of ["", "models/loras/cat.safetensors", "folder: nobody knows 'a'", "prompt: $& {word}"]) assert.equal(translated("zh", text), text);
});
