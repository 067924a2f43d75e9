/** The words of a prompt as the subject picker offers them. No DOM here. */

const WEIGHT = /:\s*-?\d*\.?\d+(?=\s*[)\]])/g; // the 1.2 of (dog:1.2)
const MARKS = /[()[\]{}|,.;!?"“”]+/g;

/** Words in their order, each once; weights, brackets and punctuation are no part of them. */
export function wordsOf(prompt) {
    const plain = prompt.replace(/\\[()]/g, " ").replace(WEIGHT, " ").replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, " ").replace(MARKS, " ");
    const seen = new Set();
    return plain.split(/\s+/).filter((word) => {
        const known = word.toLowerCase();
        if (!word || seen.has(known)) return false;
        return seen.add(known);
    });
}

/** The words that stand in every prompt, in the order of the last, which is the picture to be made. */
export function commonWords(prompts) {
    const sets = prompts.map((prompt) => new Set(wordsOf(prompt).map((word) => word.toLowerCase())));
    return wordsOf(prompts[prompts.length - 1]).filter((word) => sets.every((set) => set.has(word.toLowerCase())));
}

/** What the subject_words widget holds, as a list. */
export function chosenWords(text) {
    return text.replace(/,/g, " ").split(/\s+/).filter(Boolean);
}

/** Chips to draw: every word of the prompts, whether it is chosen, and chosen words that are not there. */
export function chips(prompts, text) {
    const chosen = chosenWords(text);
    const lower = chosen.map((word) => word.toLowerCase());
    const offered = commonWords(prompts);
    const known = new Set(offered.map((word) => word.toLowerCase()));
    return [
        ...offered.map((word) => ({ word, chosen: lower.includes(word.toLowerCase()), missing: false })),
        ...chosen.filter((word) => !known.has(word.toLowerCase())).map((word) => ({ word, chosen: true, missing: true })),
    ];
}

/** The widget's new text when a chip is clicked: words in the prompt's order. */
export function toggled(prompts, text, word) {
    const target = word.toLowerCase();
    const all = chips(prompts, text);
    const kept = all.filter((chip) => (chip.word.toLowerCase() === target ? !chip.chosen : chip.chosen));
    return kept.map((chip) => chip.word).join(" ");
}
