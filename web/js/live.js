/** One picture that changes while the sampler runs. */

import { say, sayOfServer } from "./language.js";
import { addStyle, element } from "./style.js";

export class LivePicture {
    constructor() {
        addStyle();
        this.shown = false;
        this.image = element("img", { alt: say("live preview"), draggable: false });
        this.says = element("div", { className: "says" });
        this.element = element("div", { className: "dreammatcher live", hidden: true }, this.image, this.says);
    }

    /** @param detail {image: data URL, text} of the server's message */
    show({ image, text }) {
        this.image.src = image;
        this.says.textContent = sayOfServer(text);
        this.element.hidden = false;
        this.shown = true;
    }

    hide() {
        this.element.hidden = true;
        this.shown = false;
    }

    destroy() {
        this.element.remove();
    }
}
