import assert from "node:assert/strict";
import test from "node:test";
import { ACCEPTED, bestCell, cellAt, cellUnder, decode, moved, OUTSIDE, overlayPixels } from "../../web/js/cells.js";

const base64 = (values, size = 1) => {
    const raw = Buffer.alloc(values.length * size);
    values.forEach((value, index) => (size === 4 ? raw.writeUInt32LE(value, 4 * index) : raw.writeUInt8(value, index)));
    return raw.toString("base64");
};

/** Three columns, two rows; two references of 2x2 and 70000x1 positions. */
const step = {
    sigma: 1, size: [3, 2], references: [[2, 2], [70000, 1]],
    which: base64([0, 0, 0, 0, 0, 1]), source: base64([0, 1, 2, 3, 0, 69999], 4),
    similarity: base64([10, 255, 20, 30, 200, 51]), foreground: base64([255, 0, 255, 255, 102, 255]),
    confident: base64([1, 1, 0, 1, 1, 1]),
};

test("a step is decoded, positions above 65535 too", () => {
    const match = decode(step);
    assert.deepEqual([...match.source], [0, 1, 2, 3, 0, 69999]);
    assert.deepEqual([match.width, match.height], [3, 2]);
});

test("a step of the wrong length is refused by name", () => {
    assert.throws(() => decode({ ...step, source: base64([1, 2], 4) }), /source: 8 bytes for 3x2/);
});

test("a cell knows its centre, its source and whether it was used", () => {
    const match = decode(step);
    const cell = cellAt(match, 0, 1);
    assert.deepEqual(cell.place, [1 / 6, 3 / 4]);
    assert.deepEqual(cell.source, [3 / 4, 3 / 4]);
    assert.equal(cell.verdict, ACCEPTED);
    assert.equal(cellAt(match, 1, 0).verdict, OUTSIDE);
    assert.equal(cellAt(match, 2, 0).verdict, "refused");
    assert.equal(cellAt(match, 2, 1).which, 1);
    assert.deepEqual([cellAt(match, 1, 1).verdict, cellAt(match, 1, 1).taken], [ACCEPTED, 0.4], "a soft foreground takes a part");
    assert.ok(Math.abs(cellAt(match, 2, 1).source[0] - 0.99999) < 1e-4);
    assert.equal(cellAt(match, 2, 1).similarity, 0.2);
});

test("a pointer beyond the picture is at its border", () => {
    const match = decode(step);
    assert.deepEqual(cellUnder(match, -0.2, 1.4), [0, 1]);
    assert.deepEqual(cellUnder(match, 0.5, 0.49), [1, 0]);
});

test("arrow keys move the point and stop at the border; other keys do nothing", () => {
    const match = decode(step);
    assert.deepEqual(moved(match, [1, 1], "ArrowLeft", false), [0, 1]);
    assert.deepEqual(moved(match, [1, 1], "ArrowRight", true), [2, 1]);
    assert.deepEqual(moved(match, [1, 1], "ArrowDown", false), [1, 1]);
    assert.equal(moved(match, [1, 1], "a", false), null);
});

test("the point starts at the best match that was used, or in the middle", () => {
    assert.deepEqual(bestCell(decode(step)), [1, 1], "a part counts as well");
    assert.deepEqual(bestCell(decode({ ...step, confident: base64([0, 0, 0, 0, 0, 0]) })), [1, 1]);
    assert.deepEqual(bestCell(decode({ ...step, similarity: base64([99, 255, 20, 30, 20, 51]) })), [0, 0]);
});

test("overlays differ where the match was refused", () => {
    const match = decode(step);
    const [foreground, trusted] = ["foreground", "trusted"].map((kind) => overlayPixels(match, kind));
    const red = (pixels, index) => pixels[4 * index];
    assert.equal(red(foreground, 2), 255);
    assert.equal(red(trusted, 2), 0);
    assert.equal(red(trusted, 0), 255);
    assert.equal(red(foreground, 1), 0);
    assert.equal(red(foreground, 4), 102);
});
