/** The name of a text box that is filled: front ends show it only while the box is empty. */

import { addStyle } from "./style.js";

const WIDTH = 240;

/** A drawing of a name, for the box's background: text scrolls over it, and nothing of the node moves. */
export function drawing(name) {
    const marks = { "&": "&amp;", "<": "&lt;" };
    const text = name.replace(/[&<]/g, (mark) => marks[mark]);
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="14"><text x="${WIDTH - 2}" y="11" text-anchor="end" `
        + `font-family="sans-serif" font-size="10" fill="#8c8c8c">${text}</text></svg>`;
    return `url("data:image/svg+xml,${encodeURIComponent(svg)}")`;
}

/** Names the text boxes of a node, for eyes and for screen readers. */
export function labelTexts(node) {
    for (const widget of node.widgets ?? []) {
        const box = widget.element ?? widget.inputEl;
        if (box?.tagName !== "TEXTAREA") continue;
        addStyle();
        const name = widget.label ?? widget.name;
        box.classList.add("dreammatcher-named");
        box.style.setProperty("--dreammatcher-name", drawing(name));
        box.setAttribute("aria-label", name);
        if (!box.placeholder) box.placeholder = name;
    }
}
