/** Puts our widgets on their nodes. Without it every node works the same through the API. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { Inspector } from "./inspector.js";
import { Picker } from "./picker.js";
import { LivePicture } from "./live.js";
import { Report } from "./report.js";
import { clearNotes, note } from "./note.js";
import { asSent } from "./words.js";
import { showInstallation } from "./installation.js";
import { START, showStart } from "./start.js";
import { readTitles, say, sayOfServer } from "./language.js";
import { labelTexts } from "./label.js";

/** The prompts in which each node looks for its subject's words. */
const PROMPTS = { DreamMatcherSubject: ["prompt"], DreamMatcherSubjects: ["reference_prompt", "prompt"],
    DreamMatcherEasy: ["reference_prompt", "prompt"] };
/** Nodes that say something after they ran, and how high that is. */
const REPORTS = { DreamMatcherTrainingSet: 110, DreamMatcherPriorSet: 76, DreamMatcherLearn: 44, DreamMatcherSaveLearned: 92,
    DreamMatcherMask: 44, DreamMatcherApply: 44, DreamMatcherFeatures: 44, DreamMatcherLoadLearned: 44,
    DreamMatcherViCoSave: 92, DreamMatcherViCoLoad: 44, DreamMatcherTrainingJob: 150, DreamMatcherSeFiSave: 92, DreamMatcherEvaluate: 110, DreamMatcherScoreSheet: 150 };
/** Nodes that work for minutes: another seed at every queue would make them do so each time. */
const SLOW = ["DreamMatcherLearn", "DreamMatcherPriorSet", "DreamMatcherDreamBooth", "DreamMatcherTextualInversion",
    "DreamMatcherCustomDiffusion", "DreamMatcherViCoTrain",
    "DreamMatcherSeFiTrain", "DreamMatcherTrainingJob"];
/** Widgets that came later, with the value that a workflow has which was saved before: it keeps its picture. */
const BEFORE = { DreamMatcherEasy: { preset: "balanced" }, DreamMatcherApply: { preset: "balanced" },
    DreamMatcherLock: { way: "values" } };
const OURS = /^(DreamMatcher|Toybox)/;
const INSTALLATION = "DreamMatcher Report";
const LIVE_EVENT = "dreammatcher.live";
const NOTE_EVENT = "dreammatcher.note";

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

/** Widgets of ours, which are stored nowhere, by their node. */
const unstored = new WeakMap();

/** A DOM widget behind the node's own ones, which is stored nowhere and leaves with its node. */
function addWidget(node, name, part, options) {
    const widget = node.addDOMWidget(name, "dreammatcher", part.element, { serialize: false, hideOnZoom: false, ...options });
    widget.serialize = false;
    if (!unstored.has(node)) {
        unstored.set(node, new Set());
        after(node, "onSerialize", (data) => takeOut(node, data)); // older front ends store it all the same
    }
    unstored.get(node).add(widget);
    after(node, "onRemoved", () => part.destroy());
}

/** Takes what our widgets hold out of a stored node, where a later input would find it. */
function takeOut(node, data) {
    for (let index = (data.widgets_values?.length ?? 0) - 1; index >= 0; index--) {
        if (unstored.get(node).has(node.widgets[index])) data.widgets_values.splice(index, 1);
    }
}

function grow(node, width, height) {
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.setDirtyCanvas(true, true);
}

function addInspector(node) {
    const inspector = new Inspector(address);
    addWidget(node, "match inspector", inspector, { getMinHeight: () => (inspector.run ? 330 : 44) });
    const show = (output) => {
        const run = output?.dreammatcher?.[0];
        if (output?.dreammatcher && !run) inspector.clear(sayOfServer(output.text?.join(" ") ?? ""));
        if (!run || run === inspector.run) return;
        const first = !inspector.run;
        inspector.show(run);
        if (first) grow(node, 460, 700);
    };
    after(node, "onExecuted", show);
    // after an undo, or in a workflow that is shown again, the node is a new one and its output still there
    after(node, "onConfigure", () => queueMicrotask(() => show(app.nodeOutputs?.[node.id])));
}

/** What a node will say of its subject's words, or null where that is not known before it runs. */
async function wordsAhead(prompts, words) {
    const sent = Object.entries(prompts).map(([name, text]) => [name, asSent(text)]);
    if (sent.some(([, text]) => text === null)) return null;
    try {
        const body = JSON.stringify({ prompts: Object.fromEntries(sent), words });
        const answer = await api.fetchApi("/dreammatcher/words", { method: "POST", body });
        return answer.ok ? await answer.json() : null;
    } catch {
        return null; // the server is away; the node says it when it runs
    }
}

function addPicker(node) {
    const names = PROMPTS[node.comfyClass] ?? PROMPTS.DreamMatcherEasy;
    const widget = (name) => node.widgets.find((own) => own.name === name);
    const linked = (name) => node.inputs?.some((slot) => slot.name === name && slot.link != null);
    const words = widget("subject_words");
    const read = () => (names.some(linked) || linked("subject_words") ? null
        : { prompts: names.map((name) => String(widget(name)?.value ?? "")), words: String(words.value ?? "") });
    const write = (text) => {
        app.canvas?.emitBeforeChange?.();
        words.value = text;
        words.callback?.(text);
        app.canvas?.emitAfterChange?.(); // a step of its own for undo
        node.setDirtyCanvas(true, true);
    };
    const ask = (state) => wordsAhead(Object.fromEntries(names.map((name, index) => [name, state.prompts[index]])), state.words);
    const picker = new Picker(read, write, ask, () => grow(node, 0, node.computeSize()[1]));
    const refresh = () => picker.refresh();
    for (const own of [...names.map(widget), words]) {
        after(own, "callback", refresh);
        (own.element ?? own.inputEl)?.addEventListener("input", refresh, { signal: picker.aborter.signal });
    }
    for (const moment of ["onConfigure", "onConnectionsChange"]) after(node, moment, () => queueMicrotask(refresh));
    after(node, "onExecuted", (output) => picker.say(output?.text ?? []));
    picker.element.addEventListener("pointerenter", refresh, { signal: picker.aborter.signal });
    addWidget(node, "subject words", picker, { getMinHeight: () => (picker.more ? 120 : 56) });
}

/** The blueprint, as one node: it has the prompts and words of Easy (DreamMatcher) as widgets, once it is set up. */
function addPickerOutside(node) {
    const names = [...PROMPTS.DreamMatcherEasy, "subject_words"];
    const ready = () => names.every((name) => node.widgets?.some((own) => own.name === name));
    const inside = node.subgraph?._nodes ?? [];
    if (!inside.some((own) => own.type in PROMPTS) || !ready()) return;
    addPicker(node);
    labelTexts(node);
}

function keepOlder(node) {
    after(node, "onConfigure", (saved) => {
        for (const [name, value] of Object.entries(BEFORE[node.comfyClass])) {
            const index = node.widgets.findIndex((own) => own.name === name);
            if (Array.isArray(saved?.widgets_values) && saved.widgets_values.length <= index) node.widgets[index].value = value;
        }
    });
}

function addReport(node) {
    const report = new Report();
    const height = () => (report.shown ? REPORTS[node.comfyClass] : 0);
    addWidget(node, "report", report, { getMinHeight: height, getHeight: height });
    const show = (output) => {
        const first = !report.shown;
        report.say((output?.text ?? []).map(sayOfServer));
        if (first && report.shown) grow(node, 0, node.computeSize()[1]);
    };
    after(node, "onExecuted", show);
    after(node, "onConfigure", () => queueMicrotask(() => show(app.nodeOutputs?.[node.id])));
}

/** The texts of errors by the node that threw them. */
const faults = new WeakMap();
const PACK = new URL(import.meta.url).pathname.split("/").at(-3);

/** Shows an error of ours on the node that threw it; the host's own message may hide the sentence. */
function showError({ detail }) {
    const node = nodeOf(detail.node_id);
    const ours = OURS.test(detail.node_type) || detail.traceback?.at(-1)?.includes(PACK);
    if (!node || !ours || detail.exception_type === "ExecutionBlocked") return;
    let fault = faults.get(node);
    if (!fault) {
        fault = new Report("fault");
        faults.set(node, fault);
        const height = () => (fault.shown ? 96 : 0);
        addWidget(node, "error", fault, { getMinHeight: height, getHeight: height });
    }
    fault.say([sayOfServer(detail.exception_message.trim())]);
    grow(node, 0, node.computeSize()[1]);
}

function clearErrors() {
    for (const node of allNodes()) faults.get(node)?.say([]);
    app.canvas?.setDirty(true, true);
}

function* allNodes(graph = app.rootGraph ?? app.graph?.rootGraph ?? app.graph) {
    for (const node of graph?._nodes ?? []) {
        yield node;
        if (node.subgraph) yield* allNodes(node.subgraph);
    }
}

function keepSeed(node) {
    const control = node.widgets?.find((own) => own.name === "control_after_generate");
    if (control) control.value = "fixed";
}

/** Live pictures by their node. */
const lives = new WeakMap();

function addLive(node) {
    const live = new LivePicture();
    lives.set(node, live);
    const height = () => (live.shown ? 220 : 0);
    addWidget(node, "live preview", live, { getMinHeight: height, getHeight: height });
    const choice = node.widgets.find((own) => own.name === "live_preview");
    if (choice) after(choice, "callback", () => choice.value === "off" && live.hide());
}

/** The node of an execution id: "7", or "100:7" for node 7 inside of subgraph node 100. */
function nodeOf(id) {
    const path = String(id).split(":");
    let graph = app.rootGraph ?? app.graph?.rootGraph ?? app.graph;
    for (const outer of path.slice(0, -1)) graph = graph?.getNodeById(Number(outer))?.subgraph;
    return graph?.getNodeById(Number(path.at(-1)));
}

function showLive({ detail }) {
    const node = nodeOf(detail.node);
    const live = node && lives.get(node);
    if (!live) return;
    const first = !live.shown;
    live.show(detail);
    if (first) grow(node, 0, node.computeSize()[1]);
}

function showNote({ detail }) {
    const node = nodeOf(detail.node);
    if (node) note(node, sayOfServer(detail.text));
}

/** A note on a node in newer front ends, which show it themselves: it is put into the interface's language behind them. */
function showProgressText({ detail }) {
    const said = sayOfServer(detail.text);
    if (said === detail.text) return;
    queueMicrotask(() => {
        const shown = nodeOf(detail.nodeId)?.widgets?.find((own) => own.name === "$$node-text-preview");
        if (shown?.value === detail.text) shown.value = said;
    });
}

/** An entry of our nodes' context menus, in both renderers. */
function addInstallation(node) {
    after(node, "getExtraMenuOptions", (_, options) => options.push(
        { content: say(START), callback: showStart }, { content: say(INSTALLATION), callback: showInstallation }));
}

app.registerExtension({
    name: "DreamMatcher",
    commands: [{ id: "DreamMatcher.Report", label: INSTALLATION, icon: "pi pi-clipboard", function: showInstallation },
        { id: "DreamMatcher.Start", label: START, icon: "pi pi-compass", function: showStart }],
    menuCommands: [{ path: ["Help"], commands: ["DreamMatcher.Start", "DreamMatcher.Report"] }], // of newer front ends
    setup() {
        api.addEventListener(LIVE_EVENT, showLive);
        api.addEventListener(NOTE_EVENT, showNote);
        api.addEventListener("progress_text", showProgressText);
        readTitles(api);
        api.addEventListener("execution_start", () => { clearNotes(allNodes()); clearErrors(); });
        api.addEventListener("execution_error", showError);
    },
    nodeCreated(node) {
        if (OURS.test(node.comfyClass)) {
            addInstallation(node);
            labelTexts(node);
        }
        if (node.comfyClass === "DreamMatcherPreview") addInspector(node);
        if (node.comfyClass === "DreamMatcherApply") addLive(node);
        if (node.comfyClass in BEFORE) keepOlder(node);
        if (node.comfyClass in PROMPTS) addPicker(node);
        if (node.subgraph) queueMicrotask(() => addPickerOutside(node));
        if (node.comfyClass in REPORTS) addReport(node);
        if (SLOW.includes(node.comfyClass)) keepSeed(node);
    },
});
