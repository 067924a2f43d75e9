/** The subject word picker: the prompt's words as chips. What is chosen is the text of the subject_words widget. */

import { chips, replaced, toggled } from "./words.js";
import { say, sayOfServer } from "./language.js";
import { addStyle, element, keepEvents } from "./style.js";

const PAUSE = 300; // milliseconds without a key, after which the server is asked

export class Picker {
    /**
     * @param read gives {prompts: [text], words: text}, or null when a prompt comes from another node
     * @param write takes the new text of subject_words
     * @param ask gives, for such a state, what the node will say of it: {said: [text], error, word, nearest}, later; null: nothing
     * @param grown is called when there is more to show
     */
    constructor(read, write, ask, grown) {
        addStyle();
        this.read = read;
        this.write = write;
        this.ask = ask;
        this.grown = grown;
        this.remarks = [];
        this.fault = null;
        this.aborter = new AbortController();
        this.element = element("div", { className: "dreammatcher picker", aria: { role: "group", label: say("subject words") } });
        const { signal } = this.aborter;
        this.element.addEventListener("click", (event) => {
            const chip = event.target.closest?.(".chip");
            if (chip) this._click(chip.dataset.word);
            if (event.target.closest?.(".instead")) this._instead();
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
        this.fault = null;
        this._draw(state);
        clearTimeout(this.asking);
        if (state) this.asking = setTimeout(() => this._ask(state), PAUSE);
    }

    async _ask(state) {
        const drawn = this.drawn;
        const answer = await this.ask(state);
        if (!answer || drawn !== this.drawn) return; // other words by now
        this.remarks = answer.said;
        this.fault = answer.error ? answer : null;
        this._draw(state);
        if (this.more) this.grown();
    }

    /** True while there is more to read than the words. */
    get more() {
        return this.remarks.length > 0 || this.fault !== null;
    }

    /** Shows what the node said of the words when it ran. */
    say(remarks) {
        this.refresh();
        if (!remarks.length && this.fault === null) return; // what was said before the run was about the same words
        clearTimeout(this.asking);
        [this.remarks, this.fault] = [remarks, null];
        this._draw(this.read());
        if (this.more) this.grown();
    }

    _draw(state) {
        const remarks = this.remarks.map((text) => element("div", { className: "remark", textContent: sayOfServer(text) }));
        if (this.fault) {
            const { error, nearest } = this.fault;
            const use = say("use '{word}'", { word: nearest });
            const instead = nearest ? [element("button", { type: "button", className: "instead", textContent: use })] : [];
            remarks.push(element("div", { className: "remark fault", aria: { role: "alert" } }, `${sayOfServer(error)} `, ...instead));
        }
        if (!state) {
            this.element.replaceChildren(say("These texts come from another node; there the words are chosen."), ...remarks);
            return;
        }
        const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.word : null;
        this.element.replaceChildren(...chips(state.prompts, state.words).map(({ word, chosen, missing }) => {
            const chip = element("button", {
                type: "button", textContent: word, className: missing ? "chip missing" : "chip", aria: { pressed: String(chosen) },
                title: say(missing ? (state.prompts.length > 1 ? "{word} is not in both prompts: click to remove it"
                    : "{word} is not in the prompt: click to remove it")
                    : chosen ? "{word} names the subject" : "click if {word} names the subject", { word }),
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

    /** Writes the offered word in place of the one that is missing. */
    _instead() {
        const state = this.read();
        if (!state || !this.fault) return;
        const { word, nearest } = this.fault;
        this.write(replaced(state.words, word, nearest));
        this.refresh();
    }

    destroy() {
        clearTimeout(this.asking);
        this.aborter.abort();
        this.element.remove();
    }
}
