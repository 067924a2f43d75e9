/** Style of our widgets, in the host's own colours, so that dark and light themes both work. */

const CSS = `
.dreammatcher { box-sizing: border-box; width: 100%; height: 100%; overflow: auto; font: 12px/1.4 sans-serif;
    color: var(--input-text, #ddd); background: var(--comfy-menu-bg, #353535); border: 1px solid var(--border-color, #4e4e4e);
    border-radius: 6px; padding: 6px; display: flex; flex-direction: column; gap: 6px; }
.dreammatcher[hidden], .dreammatcher [hidden] { display: none !important; }
.dreammatcher .parts { display: flex; flex-direction: column; gap: 6px; flex: 1 1 auto; min-height: 0; }
.dreammatcher .row { display: flex; align-items: center; gap: 6px; flex-wrap: wrap; flex: none; }
.dreammatcher input[type=range] { flex: 1 1 60px; min-width: 60px; accent-color: #56b4e9; }
.dreammatcher select { color: inherit; background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e);
    border-radius: 4px; font: inherit; }
.dreammatcher .panes { display: flex; gap: 6px; flex: 1 1 auto; min-height: 0; }
.dreammatcher .pane { flex: 1 1 0; min-width: 0; display: flex; flex-direction: column; gap: 2px; }
.dreammatcher .pane .name { color: var(--descrip-text, #999); flex: none; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.dreammatcher .frame { position: relative; flex: 1 1 0; min-height: 0; }
.dreammatcher .picture { position: absolute; outline-offset: 1px; touch-action: none; }
.dreammatcher .picture[tabindex] { cursor: crosshair; }
.dreammatcher .picture:focus-visible { outline: 2px solid #56b4e9; }
.dreammatcher .picture img, .dreammatcher .picture canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block;
    user-select: none; -webkit-user-drag: none; pointer-events: none; }
.dreammatcher .picture canvas { image-rendering: pixelated; }
.dreammatcher .point { position: absolute; width: 12px; height: 12px; margin: -7px 0 0 -7px; border-radius: 50%; pointer-events: none;
    border: 2px solid #fff; box-shadow: 0 0 0 1.5px #000; background: #e69f00; }
.dreammatcher .point.refused { background: transparent; border-style: dashed; }
.dreammatcher .point.outside { background: transparent; border-color: #bbb; }
.dreammatcher .says { flex: none; min-height: 1.4em; }
.dreammatcher .chip { border: 1px solid var(--border-color, #4e4e4e); border-radius: 10px; padding: 1px 9px; font: inherit; cursor: pointer;
    color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); }
.dreammatcher .chip[aria-pressed=true] { background: #0072b2; color: #fff; border-color: #56b4e9; }
.dreammatcher .chip.missing { background: transparent; color: var(--error-text, #ff4444); border-style: dashed; }
.dreammatcher .chip:focus-visible { outline: 2px solid #56b4e9; }
.dreammatcher.picker { flex-direction: row; flex-wrap: wrap; align-content: flex-start; gap: 4px; }
.dreammatcher.picker .remark { flex-basis: 100%; }
.dreammatcher .remark { color: var(--descrip-text, #999); }
.dreammatcher.picker .fault, .dreammatcher.report.fault { color: var(--error-text, #ff4444); }
.dreammatcher.report.fault { border-color: var(--error-text, #ff4444); }
.dreammatcher .instead { border: 1px solid #56b4e9; border-radius: 10px; padding: 1px 9px; font: inherit; cursor: pointer;
    color: #fff; background: #0072b2; }
.dreammatcher.report { white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; }
.dreammatcher.report:empty { display: none !important; } /* older front ends show every widget's element at each drawing */
textarea.dreammatcher-named:not(:placeholder-shown) { background-image: var(--dreammatcher-name); background-repeat: no-repeat;
    background-position: right 4px top 1px; padding-top: 15px; }
.dreammatcher.live img { width: 100%; min-height: 0; flex: 1 1 0; object-fit: contain; }
`;

/** Adds the style to the page, once. */
export function addStyle() {
    if (document.getElementById("dreammatcher-style")) return;
    const style = document.createElement("style");
    style.id = "dreammatcher-style";
    style.textContent = CSS;
    document.head.append(style);
}

/** Keeps clicks and plain keys in a widget: the graph must not move, nor Delete take the node. Shortcuts go on as ever. */
export function keepEvents(widget, signal) {
    for (const kind of ["pointerdown", "mousedown", "keydown"]) {
        widget.addEventListener(kind, (event) => { if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); }, { signal });
    }
}

/** element("div", {className: "row"}, child, ...) */
export function element(tag, properties = {}, ...children) {
    const { aria = {}, ...own } = properties;
    const made = Object.assign(document.createElement(tag), own);
    for (const [name, value] of Object.entries(aria)) made.setAttribute(name === "role" ? name : `aria-${name}`, value);
    made.append(...children);
    return made;
}
