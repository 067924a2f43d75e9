/**
 * One step's match as the node's ui output carries it (dreammatcher/inspection.py), and the questions the inspector asks of it.
 * No DOM here.
 */

const FIELDS = { which: 1, source: 4, similarity: 1, foreground: 1, confident: 1 };

function bytes(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** @returns {{width, height, references, which, source, similarity, foreground, confident}} typed arrays, row by row */
export function decode(step) {
    const [width, height] = step.size;
    const made = { width, height, references: step.references };
    for (const [name, size] of Object.entries(FIELDS)) {
        const raw = bytes(step[name]);
        if (raw.length !== width * height * size) {
            throw new Error(`${name}: ${raw.length} bytes for ${width}x${height} positions of ${size}`);
        }
        made[name] = size === 1 ? raw : readWords(raw);
    }
    return made;
}

function readWords(raw) {
    const view = new DataView(raw.buffer);
    return Uint32Array.from({ length: raw.length / 4 }, (_, index) => view.getUint32(4 * index, true));
}

export const ACCEPTED = "accepted";
export const OUTSIDE = "outside";
export const REFUSED = "refused";
const SLIGHT = 0.05; // a soft foreground is nowhere quite 0

/** What is known of the position in column x, row y. Places are shares of the picture, 0..1, at the cell's centre. */
export function cellAt(match, x, y) {
    const index = y * match.width + x;
    const which = match.which[index];
    const [width, height] = match.references[which];
    const source = match.source[index];
    const foreground = match.foreground[index] / 255;
    const confident = match.confident[index];
    return {
        x,
        y,
        place: [(x + 0.5) / match.width, (y + 0.5) / match.height],
        which,
        source: [((source % width) + 0.5) / width, (Math.floor(source / width) + 0.5) / height],
        similarity: match.similarity[index] / 255,
        taken: foreground * confident,
        verdict: foreground < SLIGHT ? OUTSIDE : confident ? ACCEPTED : REFUSED,
    };
}

/** The column and row under a place in shares of the picture, kept inside. */
export function cellUnder(match, across, down) {
    const inside = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
    return [inside(across, match.width), inside(down, match.height)];
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Where an arrow key takes the point, five cells with shift; null for another key. */
export function moved(match, [x, y], key, shift) {
    if (!(key in MOVES)) return null;
    const [right, down] = MOVES[key].map((value) => value * (shift ? 5 : 1));
    const inside = (value, count) => Math.min(count - 1, Math.max(0, value));
    return [inside(x + right, match.width), inside(y + down, match.height)];
}

/** The accepted position with the highest similarity, or the centre: where the point stands at first. */
export function bestCell(match) {
    let best = null;
    for (let index = 0; index < match.similarity.length; index++) {
        const good = match.confident[index] && match.foreground[index] / 255 > SLIGHT;
        if (good && (best === null || match.similarity[index] > match.similarity[best])) best = index;
    }
    if (best === null) return [match.width >> 1, match.height >> 1];
    return [best % match.width, Math.floor(best / match.width)];
}

/** RGBA of an overlay, [4 * width * height]: "foreground", or "trusted" for accepted positions. */
export function overlayPixels(match, kind) {
    const pixels = new Uint8ClampedArray(4 * match.width * match.height);
    for (let index = 0; index < match.which.length; index++) {
        const foreground = match.foreground[index] / 255;
        const value = kind === "trusted" ? foreground * match.confident[index] : foreground;
        const mixed = (low, high) => Math.round(low + value * (high - low));
        pixels.set([mixed(0, 255), mixed(33, 232), mixed(77, 69), mixed(150, 110)], 4 * index); // safe for colour-blind readers
    }
    return pixels;
}
