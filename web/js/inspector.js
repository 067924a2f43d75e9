/**
 * The match inspector: reference and result side by side. Point at the result, or move the point by the arrow keys, and see
 * where it was taken from, how alike the two are and whether the match was used.
 */

import { ACCEPTED, bestCell, cellAt, cellUnder, decode, moved, OUTSIDE, overlayPixels } from "./cells.js";
import { say } from "./language.js";
import { addStyle, element, keepEvents } from "./style.js";

const SAYS = {
    [ACCEPTED]: "matched here, similarity {similarity}",
    [OUTSIDE]: "outside the subject: left as it is, similarity {similarity}",
    refused: "not trusted (the way back ends elsewhere): left as it is, similarity {similarity}",
};
const PARTLY = "matched here by {part}%, similarity {similarity}";
const OVERLAYS = ["no overlay", "foreground", "trusted"];

export class Inspector {
    /** @param address gives the URL of a file entry {filename, subfolder, type} */
    constructor(address) {
        addStyle();
        this.address = address;
        this.aborter = new AbortController();
        this.loaded = new Map();
        this.item = 0;
        this.step = 0;
        this.point = null;
        this._build();
    }

    _build() {
        const { signal } = this.aborter;
        const on = (target, kind, action) => target.addEventListener(kind, action, { signal });
        this.items = element("select", { aria: { label: say("picture") } });
        this.steps = element("input", { type: "range", min: 0, max: 0, value: 0, aria: { label: say("step") } });
        this.stepName = element("span");
        const overlays = [say("foreground: where the subject is in the result"),
            say("trusted: the part of it where a match holds there and back, so that the reference's colours come over")];
        this.overlay = element("select", { title: overlays.join("\n"), aria: { label: say("overlay") } },
            ...OVERLAYS.map((name, number) => element("option", {
                value: name, textContent: say(name), title: overlays[number - 1] ?? "",
            })));
        this.compare = element("input", { type: "range", min: 0, max: 100, value: 100, aria: { label: say("plain to DreamMatcher") } });
        this.compareRow = element("label", { className: "row" }, say("plain"), this.compare, "DreamMatcher");
        this.reference = new Pane(say("reference"));
        this.result = new Pane(say("result"));
        this.result.picture.tabIndex = 0;
        this.result.picture.setAttribute("role", "application");
        this.result.picture.setAttribute("aria-label", say("result: arrow keys move the point, with shift by five"));
        this.says = element("div", { className: "says" });
        this.remark = element("div", { className: "says remark" });
        this.hint = element("div", { className: "says", textContent: say("Queue the graph: the match appears here.") });
        this.parts = element("div", { className: "parts", hidden: true },
            element("div", { className: "row" }, this.items, element("span", {}, say("step")), this.steps, this.stepName, this.overlay),
            element("div", { className: "panes" }, this.reference.element, this.result.element),
            this.compareRow, this.says, this.remark);
        this.element = element("div", { className: "dreammatcher inspector" }, this.hint, this.parts);
        on(this.items, "change", () => { this.item = Number(this.items.value); this._showItem(); });
        on(this.steps, "input", () => { this.step = Number(this.steps.value); this._showStep(); });
        on(this.overlay, "change", () => this._draw());
        on(this.compare, "input", () => this._split());
        on(this.result.picture, "pointermove", (event) => this._pointed(event));
        on(this.result.picture, "pointerdown", (event) => this._pointed(event));
        on(this.result.picture, "keydown", (event) => this._keyed(event));
        keepEvents(this.element, signal);
        this.watcher = new ResizeObserver(() => { this.reference.fit(); this.result.fit(); });
        this.watcher.observe(this.reference.frame);
        this.watcher.observe(this.result.frame);
    }

    /** Shows one run: {results, references, plain, steps, remark} of the node's ui output. */
    async show(run) {
        this.run = run;
        this.loaded.clear();
        this.point = this.match = null;
        this.item = Math.min(this.item, run.results.length - 1);
        this.step = run.steps.length - 1;
        this.items.replaceChildren(...run.results.map((_, number) => element("option", {
            value: number, textContent: say("picture {number}", { number: number + 1 }),
        })));
        this.items.value = this.item;
        this.items.hidden = run.results.length < 2;
        this.steps.max = this.step;
        this.steps.value = this.step;
        this.compareRow.hidden = !run.plain.length;
        this.remark.textContent = run.remark ?? "";
        this.remark.hidden = !run.remark;
        this.element.style.minHeight = "300px"; // Nodes 2.0 gives what the picture below it leaves
        this.hint.hidden = true;
        this.parts.hidden = false;
        await this._showItem();
    }

    /** Shows no run but a text: the last one matched nothing. */
    clear(text) {
        this.run = this.point = this.match = null;
        this.loaded.clear();
        delete this.element.dataset.cell;
        this.hint.textContent = text;
        this.hint.hidden = false;
        this.parts.hidden = true;
    }

    async _showItem() {
        const plain = this.run.plain[this.item % Math.max(1, this.run.plain.length)];
        this.result.pictures(this.address(this.run.results[this.item]), plain && this.address(plain));
        this._split();
        await this._showStep();
    }

    /** Steps are fetched when they are looked at. A step asked for later wins over one that arrives later. */
    async _showStep() {
        const wanted = this.step;
        const run = this.run;
        const entry = run.steps[wanted];
        const place = { step: wanted + 1, all: run.steps.length, sigma: entry.sigma.toFixed(2) };
        this.steps.setAttribute("aria-valuetext", say("{step} of {all}", place));
        this.stepName.textContent = say("{step} of {all}, sigma {sigma}", place);
        try {
            if (!this.loaded.has(wanted)) {
                const answer = await fetch(this.address(entry), { signal: this.aborter.signal });
                if (!answer.ok) throw new Error(`status ${answer.status}`);
                const items = await answer.json();
                if (run !== this.run) return;
                this.loaded.set(wanted, items.map(decode));
            }
        } catch (error) {
            if (error.name !== "AbortError" && run === this.run) {
                this.match = null;
                this.says.textContent = say("This step's match is no longer on the server ({why}); queue the graph again.",
                    { why: error.message });
            }
            return;
        }
        if (wanted !== this.step) return;
        this.match = this.loaded.get(wanted)[this.item];
        this.point ??= bestCell(this.match);
        this._draw();
    }

    _draw(spoken = false) {
        if (!this.match) return;
        const { width, height } = this.match;
        const kind = this.overlay.value;
        this.result.overlay(kind === "no overlay" ? null : new ImageData(overlayPixels(this.match, kind), width, height));
        const [x, y] = [Math.min(this.point[0], width - 1), Math.min(this.point[1], height - 1)];
        const cell = cellAt(this.match, x, y);
        const views = this.run.references.length;
        const shown = this.run.references[cell.which];
        this.reference.pictures(shown && this.address(shown));
        this.reference.name.textContent = this.match.references.length > 1
            ? say("reference {number}", { number: cell.which + 1 }) : say("reference");
        this.reference.point(cell.source, cell.verdict);
        this.result.point(cell.place, cell.verdict);
        const missing = cell.which >= views ? ` (${say("its picture is not connected")})` : "";
        const partly = cell.verdict === ACCEPTED && cell.taken > 0 && cell.taken < 0.99;
        const values = { part: Math.round(100 * cell.taken), similarity: cell.similarity.toFixed(2) };
        this.says.ariaLive = spoken ? "polite" : "off"; // keys speak, a moving mouse does not
        this.says.textContent = say(partly ? PARTLY : SAYS[cell.verdict], values) + missing;
        this.element.dataset.cell = `${x},${y}`;
        this.element.dataset.verdict = cell.verdict;
    }

    _split() {
        this.result.split(this.compareRow.hidden ? 100 : Number(this.compare.value));
    }

    _pointed(event) {
        if (!this.match) return;
        const box = this.result.picture.getBoundingClientRect();
        this.point = cellUnder(this.match, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
        this._draw();
    }

    _keyed(event) {
        const next = this.match && moved(this.match, this.point, event.key, event.shiftKey);
        if (!next) return;
        event.preventDefault();
        this.point = next;
        this._draw(true);
    }

    destroy() {
        this.aborter.abort();
        this.watcher.disconnect();
        this.element.remove();
    }
}

/** A picture with a name, an overlay and a point. */
class Pane {
    constructor(name) {
        this.name = element("div", { className: "name", textContent: name });
        this.image = element("img", { alt: name, draggable: false });
        this.other = element("img", { alt: "", draggable: false, hidden: true });
        this.canvas = element("canvas", { hidden: true });
        this.mark = element("div", { className: "point", hidden: true });
        this.picture = element("div", { className: "picture" }, this.other, this.image, this.canvas, this.mark);
        this.frame = element("div", { className: "frame" }, this.picture);
        this.element = element("div", { className: "pane" }, this.name, this.frame);
        this.image.addEventListener("load", () => this.fit());
    }

    /** The picture, and another one behind it. */
    pictures(front, behind) {
        this._source(this.image, front);
        this._source(this.other, behind);
    }

    _source(image, address) {
        image.hidden = !address;
        if (address && image.getAttribute("src") !== address) image.src = address;
    }

    /** As large as the frame allows, in the picture's own proportions. */
    fit() {
        const { naturalWidth, naturalHeight } = this.image;
        const { clientWidth, clientHeight } = this.frame;
        if (!naturalWidth || !clientWidth) return;
        const scale = Math.min(clientWidth / naturalWidth, clientHeight / naturalHeight);
        const [width, height] = [naturalWidth * scale, naturalHeight * scale];
        Object.assign(this.picture.style, {
            width: `${width}px`, height: `${height}px`, left: `${(clientWidth - width) / 2}px`, top: `${(clientHeight - height) / 2}px`,
        });
    }

    overlay(pixels) {
        this.canvas.hidden = !pixels;
        if (!pixels) return;
        this.canvas.width = pixels.width;
        this.canvas.height = pixels.height;
        this.canvas.getContext("2d").putImageData(pixels, 0, 0);
    }

    point([across, down], verdict) {
        this.mark.hidden = false;
        this.mark.className = `point ${verdict}`;
        this.mark.style.left = `${100 * across}%`;
        this.mark.style.top = `${100 * down}%`;
    }

    /** Shows ``share`` percent of the picture, on the right; the other one on the left of it. */
    split(share) {
        this.image.style.clipPath = this.other.hidden ? "" : `inset(0 0 0 ${100 - share}%)`;
    }
}
