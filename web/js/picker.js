/** The subject word picker: the prompt's words as chips. What is chosen is the text of the subject_words widget. */

import { chips, toggled } from "./words.js";
import { addStyle, element, keepEvents } from "./style.js";

export class Picker {
    /**
     * @param read gives {prompts: [text], words: text}, or null when a prompt comes from another node
     * @param write takes the new text of subject_words
     */
    constructor(read, write) {
        addStyle();
        this.read = read;
        this.write = write;
        this.remarks = [];
        this.aborter = new AbortController();
        this.element = element("div", { className: "dreammatcher picker", aria: { role: "group", label: "subject words" } });
        const { signal } = this.aborter;
        this.element.addEventListener("click", (event) => {
            const chip = event.target.closest?.(".chip");
            if (chip) this._click(chip.dataset.word);
        }, { signal });
        keepEvents(this.element, signal);
        this.refresh();
    }

    refresh() {
        const state = this.read();
        const drawn = JSON.stringify(state);
        if (drawn === this.drawn) return;
        this.drawn = drawn;
        this.remarks = []; // they were about other words
        this._draw(state);
    }

    /** Shows what the node said of the words when it ran. */
    say(remarks) {
        this.refresh();
        this.remarks = remarks;
        this._draw(this.read());
    }

    _draw(state) {
        const remarks = this.remarks.map((text) => element("div", { className: "remark", textContent: text }));
        if (!state) {
            this.element.replaceChildren("These texts come from another node; there the words are chosen.", ...remarks);
            return;
        }
        const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.word : null;
        this.element.replaceChildren(...chips(state.prompts, state.words).map(({ word, chosen, missing }) => {
            const chip = element("button", {
                type: "button", textContent: word, className: missing ? "chip missing" : "chip", aria: { pressed: String(chosen) },
                title: missing ? `${word} is not in ${state.prompts.length > 1 ? "both prompts" : "the prompt"}: click to remove it`
                    : chosen ? `${word} names the subject` : `click if ${word} names the subject`,
            });
            chip.dataset.word = word;
            return chip;
        }), ...remarks);
        if (focused) [...this.element.children].find((chip) => chip.dataset.word === focused)?.focus();
    }

    _click(word) {
        const state = this.read();
        if (!state) return;
        this.write(toggled(state.prompts, state.words, word));
        this.refresh();
    }

    destroy() {
        this.aborter.abort();
        this.element.remove();
    }
}
