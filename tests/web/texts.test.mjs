import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";

import { inLanguage, LANGUAGES, sentences } from "../../web/js/texts.js";

const FOLDER = new URL("../../web/js/", import.meta.url);
const places = (text) => (text.match(/\{\w+\}/g) ?? []).sort();
const scripts = readdirSync(FOLDER).filter((name) => name.endsWith(".js") && name !== "texts.js")
    .map((name) => readFileSync(new URL(name, FOLDER), "utf8")).join("\n");

test("every language has the same sentences, with the same places for values", () => {
    assert.deepEqual(LANGUAGES, ["zh", "ja", "ko"]);
    for (const language of LANGUAGES) {
        assert.deepEqual(sentences(language), sentences("zh"), language);
        for (const text of sentences(language)) {
            assert.deepEqual(places(inLanguage(language, text)), places(text), `${language}: ${text}`);
            assert.notEqual(inLanguage(language, text), text, `${language}: ${text}`);
        }
    }
});

test("every sentence is one that a script says", () => {
    for (const text of sentences("zh")) assert.ok(scripts.includes(`"${text}"`), text);
});

test("every text that is said as it stands has a translation", () => {
    for (const [, text] of scripts.matchAll(/\bsay\("([^"]+)"/g)) assert.ok(sentences("zh").includes(text), text);
});

test("values go to their places, regions to their language, and what is unknown is English", () => {
    assert.equal(inLanguage("zh", "picture {number}", { number: 3 }), "图片 3");
    assert.equal(inLanguage("zh-TW", "result"), inLanguage("zh", "result"));
    assert.equal(inLanguage("fr", "use '{word}'", { word: "$& cat" }), "use '$& cat'");
    assert.equal(inLanguage(undefined, "a sentence of the server"), "a sentence of the server");
    assert.equal(inLanguage("ja", "constructor"), "constructor");
});
