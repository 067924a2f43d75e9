import assert from "node:assert/strict";
import test from "node:test";
import { asSent, chips, chosenWords, commonWords, otherNumbers, replaced, toggled, wordsOf } from "../../web/js/words.js";

test("weights, brackets and punctuation are no words", () => {
    assert.deepEqual(wordsOf("a photo of a (sks dog:1.2), [sitting:0.5]. {red|blue}"),
        ["a", "photo", "of", "sks", "dog", "sitting", "red", "blue"]);
});

test("what other programs would replace and a weight without brackets are no words", () => {
    assert.deepEqual(wordsOf("<lora:robot_v2:0.8> a robot:1.3 BREAK __animal__, break"), ["a", "robot", "break"]);
    assert.deepEqual(wordsOf("re:zero, saber \\(fate\\), k-on!"), ["re:zero", "saber", "fate", "k-on"]);
});

test("embeddings and words with hyphens stay whole", () => {
    assert.deepEqual(wordsOf("an embedding:my-toy on a t-shirt"), ["an", "embedding:my-toy", "on", "a", "t-shirt"]);
});

test("an empty prompt has no words", () => {
    assert.deepEqual(wordsOf("  "), []);
    assert.deepEqual(chips([""], ""), []);
});

test("with two prompts the words of both are offered, in the order of the second", () => {
    assert.deepEqual(commonWords(["a photo of a dog", "Dog on a beach"]), ["Dog", "a"]);
});

test("chosen words are separated as the node does it", () => {
    assert.deepEqual(chosenWords("sks,dog  toy"), ["sks", "dog", "toy"]);
});

test("a chosen word that is not in the prompt stays to be seen", () => {
    const made = chips(["a photo of a cat"], "Cat dog");
    assert.deepEqual(made.filter((chip) => chip.chosen), [
        { word: "cat", chosen: true, missing: false }, { word: "dog", chosen: true, missing: true }]);
});

test("clicking adds in the prompt's order and clicking again takes away", () => {
    const prompt = ["a photo of a sks dog"];
    assert.equal(toggled(prompt, "dog", "sks"), "sks dog");
    assert.equal(toggled(prompt, "sks dog", "dog"), "sks");
    assert.equal(toggled(prompt, "sks dog bird", "bird"), "sks dog");
    assert.equal(toggled(prompt, "DOG", "dog"), "");
});

test("a plural is its singular and the other way round", () => {
    for (const [one, many] of [["robot", "robots"], ["fox", "foxes"], ["city", "cities"], ["wolf", "wolves"], ["dish", "dishes"]]) {
        assert.ok(otherNumbers(one).includes(many), many);
        assert.ok(otherNumbers(many.toUpperCase()).includes(one), one);
    }
    for (const word of ["as", "a", "glass", "3d", "t-shirt"]) {
        assert.ok(!otherNumbers(word).some((other) => other === "a" || other === "glas"), word);
    }
});

test("a chosen word stands for its plural and its singular in the prompts", () => {
    const pressed = (prompts, text) => chips(prompts, text).filter((chip) => chip.chosen);
    assert.deepEqual(pressed(["two Robots on grass"], "robot"), [{ word: "Robots", chosen: true, missing: false }]);
    assert.deepEqual(pressed(["a photo of robots", "a robot"], "robots"), [{ word: "robot", chosen: true, missing: false }]);
    assert.equal(toggled(["two robots on grass"], "robot", "robots"), "");
});

test("a word inside a text without spaces is not missing, but one of letters with case is", () => {
    assert.deepEqual(chips(["一只猫在雪地里"], "猫").at(-1), { word: "猫", chosen: true, missing: false });
    assert.deepEqual(chips(["a concatenation"], "cat").at(-1), { word: "cat", chosen: true, missing: true });
    assert.deepEqual(chips(["猫在雪地里", "狗在海边"], "猫").at(-1), { word: "猫", chosen: true, missing: true });
});

test("the word that was meant takes the place of the one that is missing, once", () => {
    assert.equal(replaced("sks caat", "caat", "cat"), "sks cat");
    assert.equal(replaced("Cat, caat", "caat", "cat"), "Cat");
    assert.equal(replaced("dog", "caat", "cat"), "dog");
});

test("a prompt is sent without comments, and not where one of several texts is chosen by chance", () => {
    assert.equal(asSent("a cat /* not\na dog */ on grass // in the sun"), "a cat  on grass ");
    assert.equal(asSent("a {red|blue} cat"), null);
    assert.equal(asSent("a {cat}"), "a {cat}");
});
