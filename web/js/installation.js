/** What a bug report has to say about this ComfyUI: shown in a dialog, and copied where the browser lets us. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { say } from "./language.js";
import { element } from "./style.js";

async function copied(text) {
    try {
        await navigator.clipboard.writeText(text); // only over https and on this machine
        return true;
    } catch {
        return false;
    }
}

export async function showInstallation() {
    let text, said;
    try {
        const answer = await api.fetchApi("/dreammatcher/report");
        if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
        text = await answer.text();
        said = say((await copied(text)) ? "Copied. Paste it into your bug report." : "Copy this text into your bug report.");
    } catch (error) {
        text = "";
        said = say("The server gave no report ({why}). Run: python -m dreammatcher.cli.report", { why: error.message });
    }
    const shown = element("pre", { className: "dreammatcher-installation", textContent: text });
    Object.assign(shown.style, { whiteSpace: "pre-wrap", userSelect: "text", margin: "8px 0" });
    const page = element("div", {}, element("div", { textContent: said }), shown);
    page.style.color = "var(--input-text, #ddd)"; // the dialog's own colour is that of errors
    app.ui.dialog.show(page);
}
