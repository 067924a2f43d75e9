/** What a node says after it ran, on the node itself. */

import { addStyle, element } from "./style.js";

export class Report {
    /** @param kind "report", or "fault" for what went wrong */
    constructor(kind = "report") {
        addStyle();
        this.element = element("div", {
            className: `dreammatcher report ${kind}`, hidden: true, aria: { role: kind === "fault" ? "alert" : "note" },
        });
        this.shown = false;
    }

    /** @param texts the node's text outputs; none hides it */
    say(texts) {
        this.element.textContent = texts.join("\n");
        this.shown = texts.length > 0;
        this.element.hidden = !this.shown;
    }

    destroy() {
        this.element.remove();
    }
}
