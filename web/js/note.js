/** A text above a node that ran, for front ends that show no texts on nodes themselves. It stays until the next run. */

const NOTE = "dreammatcherNote";
const FONT = "12px sans-serif";
const LINE = 16;

/** Cuts a text into lines of at most ``width`` pixels, as ``measure`` tells them; a longer word has a line of its own. */
export function lines(text, width, measure) {
    const made = [];
    for (const word of text.split(/\s+/)) {
        const longer = made.length ? `${made.at(-1)} ${word}` : word;
        if (made.length && measure(longer) <= width) made[made.length - 1] = longer;
        else made.push(word);
    }
    return made;
}

/** Draws a node's note above its title; coordinates are the node's own. */
function draw(node, context) {
    if (!node[NOTE] || node.flags?.collapsed) return;
    context.save();
    context.font = FONT;
    const shown = lines(node[NOTE], node.size[0] - 12, (text) => context.measureText(text).width);
    const height = shown.length * LINE + 8;
    const top = -(globalThis.LiteGraph?.NODE_TITLE_HEIGHT ?? 30) - height - 4;
    context.fillStyle = "#f0e442"; // dark on yellow, in dark and light themes
    context.fillRect(0, top, node.size[0], height);
    context.fillStyle = "#111";
    context.textBaseline = "middle";
    context.textAlign = "left";
    shown.forEach((line, number) => context.fillText(line, 6, top + 4 + (number + 0.5) * LINE));
    context.restore();
}

/** Puts ``text`` above a node. */
export function note(node, text) {
    if (!(NOTE in node)) {
        const previous = node.onDrawForeground;
        node.onDrawForeground = function (context, ...others) {
            previous?.call(this, context, ...others);
            draw(this, context);
        };
    }
    node[NOTE] = text;
    node.setDirtyCanvas(true, true);
}

/** Takes the notes off all nodes. */
export function clearNotes(nodes) {
    for (const node of nodes) {
        if (!node[NOTE]) continue;
        node[NOTE] = "";
        node.setDirtyCanvas(true, true);
    }
}
