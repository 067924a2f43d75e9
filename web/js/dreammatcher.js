/** Puts our widgets on their nodes. Without it every node works the same through the API. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { Inspector } from "./inspector.js";
import { Picker } from "./picker.js";
import { LivePicture } from "./live.js";

/** The prompts in which each node looks for its subject's words. */
const PROMPTS = { DreamMatcherSubject: ["prompt"], DreamMatcherEasy: ["reference_prompt", "prompt"] };
const LIVE_EVENT = "dreammatcher.live";

/** The URL of a file that a node's ui output names. */
function address({ filename, subfolder, type }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** Runs ``action`` after whatever stands at ``owner[name]``; what others put there goes on as before. */
function after(owner, name, action) {
    const previous = owner[name];
    owner[name] = function (...values) {
        const result = previous?.apply(this, values);
        action(...values);
        return result;
    };
}

/** A DOM widget behind the node's own ones, which is stored nowhere and leaves with its node. */
function addWidget(node, name, part, height) {
    const widget = node.addDOMWidget(name, "dreammatcher", part.element, {
        serialize: false, hideOnZoom: false, getMinHeight: height, getHeight: height, getMaxHeight: undefined,
    });
    widget.serialize = false;
    after(node, "onRemoved", () => part.destroy());
    return widget;
}

function grow(node, width, height) {
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    app.graph?.setDirtyCanvas(true, true);
}

function addInspector(node) {
    const inspector = new Inspector(address);
    addWidget(node, "match inspector", inspector, () => (inspector.run ? 330 : 44));
    after(node, "onExecuted", (output) => {
        const run = output?.dreammatcher?.[0];
        if (!run) return;
        const first = !inspector.run;
        inspector.show(run);
        if (first) grow(node, 460, 700);
    });
}

function addPicker(node) {
    const names = PROMPTS[node.comfyClass];
    const widget = (name) => node.widgets.find((own) => own.name === name);
    const linked = (name) => node.inputs?.some((slot) => slot.name === name && slot.link != null);
    const words = widget("subject_words");
    const read = () => (names.some(linked) || linked("subject_words") ? null
        : { prompts: names.map((name) => String(widget(name)?.value ?? "")), words: String(words.value ?? "") });
    const picker = new Picker(read, (text) => {
        words.value = text;
        words.callback?.(text);
        app.graph?.setDirtyCanvas(true, true);
    });
    const refresh = () => picker.refresh();
    for (const own of [...names.map(widget), words]) {
        after(own, "callback", refresh);
        (own.element ?? own.inputEl)?.addEventListener("input", refresh, { signal: picker.aborter.signal });
    }
    for (const moment of ["onConfigure", "onConnectionsChange"]) after(node, moment, () => queueMicrotask(refresh));
    picker.element.addEventListener("pointerenter", refresh, { signal: picker.aborter.signal });
    addWidget(node, "subject words", picker, () => 56);
}

/** The picture as it is being made, with what is matched: shown on the DreamMatcher Apply that asked for it. */
function addLive(node) {
    const live = new LivePicture();
    addWidget(node, "live preview", live, () => (live.shown ? 220 : 0));
    const show = ({ detail }) => {
        if (String(detail.node).split(":").pop() !== String(node.id)) return;
        const first = !live.shown;
        live.show(detail);
        if (first) grow(node, node.size[0], node.size[1] + 220);
    };
    api.addEventListener(LIVE_EVENT, show);
    after(node, "onRemoved", () => api.removeEventListener(LIVE_EVENT, show));
}

app.registerExtension({
    name: "DreamMatcher",
    nodeCreated(node) {
        if (node.comfyClass === "DreamMatcherPreview") addInspector(node);
        if (node.comfyClass === "DreamMatcherApply") addLive(node);
        if (node.comfyClass in PROMPTS) addPicker(node);
    },
});
