import assert from "node:assert/strict";
import test from "node:test";

import { clearNotes, lines, note } from "../../web/js/note.js";

const measure = (text) => text.length;

test("a text is cut between words, and a word that is too long has a line of its own", () => {
    assert.deepEqual(lines("nothing was matched", 11, measure), ["nothing was", "matched"]);
    assert.deepEqual(lines("a incomprehensibility b", 5, measure), ["a", "incomprehensibility", "b"]);
    assert.deepEqual(lines("one", 50, measure), ["one"]);
});

/** A canvas context that keeps the texts that were drawn. */
function context(drawn) {
    return new Proxy({}, { get: (_, name) => (name === "measureText" ? (text) => ({ width: 6 * text.length })
        : name === "fillText" ? (text) => drawn.push(text) : () => undefined), set: () => true });
}

test("a note is drawn above its node, beside what others draw, until it is cleared", () => {
    const drawn = [];
    let others = 0;
    const node = { size: [200, 100], flags: {}, setDirtyCanvas() {}, onDrawForeground() { others += 1; } };
    note(node, "strength is 0");
    note(node, "nothing was matched in this run: strength is 0");
    node.onDrawForeground(context(drawn));
    assert.equal(drawn.join(" "), "nothing was matched in this run: strength is 0");
    assert.ok(drawn.length > 1 && others === 1);
    clearNotes([node, {}]);
    node.onDrawForeground(context(drawn));
    assert.equal(drawn.join(" "), "nothing was matched in this run: strength is 0");
    assert.equal(others, 2);
});

test("a collapsed node shows no note", () => {
    const drawn = [];
    const node = { size: [200, 100], flags: { collapsed: true }, setDirtyCanvas() {} };
    note(node, "text");
    node.onDrawForeground(context(drawn));
    assert.deepEqual(drawn, []);
});
