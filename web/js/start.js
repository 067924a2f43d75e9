/** A short note for those who see our menu for the first time. */

import { app } from "../../../scripts/app.js";
import { say } from "./language.js";
import { element } from "./style.js";

export const START = "DreamMatcher: start here";

export function showStart() {
    const lines = [
        say("One photo and your checkpoint: Easy (DreamMatcher). Describe both pictures and click the word for the subject."),
        say("Without a checkpoint: the template 01_easy_toybox; with yours: 02_easy_photo (Templates, comfyui-dreammatcher)."),
        say("To see what was matched, add Preview (DreamMatcher) behind VAE Decode. Every node explains itself under its ?."),
        say("The model is to learn the subject first: Learn (Easy) (DreamMatcher)."),
    ];
    const page = element("div", { className: "dreammatcher-start" }, element("h3", { textContent: say(START) }),
        element("ol", {}, ...lines.map((text) => element("li", { textContent: text }))));
    Object.assign(page.style, { color: "var(--input-text, #ddd)", maxWidth: "560px", font: "14px/1.6 sans-serif" });
    app.ui.dialog.show(page);
}
