/** The words of a prompt as the subject picker offers them. No DOM here. */

const WEIGHT = /:\s*-?\d*\.?\d+(?=\s*[)\]])/g; // the 1.2 of (dog:1.2)
const BARE_WEIGHT = /(\p{L}):-?\d*\.?\d+(?=[\s,]|$)/gu; // the 1.2 of dog:1.2
const FOREIGN = /<\w+:[^<>]*>|\b(?:BREAK|ADDCOMM|ADDBASE|ADDCOL|ADDROW)\b|__[\w\-/*.]+?__/g; // read as words, but no words
const MARKS = /[()[\]{}|,.;!?"“”、。，．：；！？（）]+/g;
const HISSING = ["s", "x", "z", "ch", "sh", "o"];
const ENDINGS = [["y", "ies"], ["f", "ves"], ["fe", "ves"], ...HISSING.map((end) => [end, `${end}es`])]; // one, many
const SHORTEST = 3; // letters of a singular; "a" is none of "as"
const WITHOUT_CASE = /^[\p{Lo}\p{Lm}\p{Mn}\p{Mc}\p{Nd}]*\p{Lo}[\p{Lo}\p{Lm}\p{Mn}\p{Mc}\p{Nd}]*$/u;

/** Words in their order, each once; weights, brackets and punctuation are no part of them. */
export function wordsOf(prompt) {
    const plain = prompt.replace(FOREIGN, " ").replace(/\\[()]/g, " ").replace(WEIGHT, " ")
        .replace(BARE_WEIGHT, "$1 ").replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, " ").replace(MARKS, " ");
    const seen = new Set();
    return plain.split(/\s+/).filter((word) => {
        const known = word.toLowerCase();
        if (!word || seen.has(known)) return false;
        return seen.add(known);
    });
}

/** What may be the plural or the singular of an English noun, in lower case: the rules of the node, host/text/words.py. */
export function otherNumbers(word) {
    const lower = word.toLowerCase();
    if (lower.length < SHORTEST || !/^\p{L}+$/u.test(lower)) return [];
    const changed = (from, to) => ENDINGS.filter((pair) => lower.endsWith(pair[from]))
        .map((pair) => lower.slice(0, -pair[from].length) + pair[to]);
    const [plurals, singulars] = [changed(0, 1), changed(1, 0)];
    if (!lower.endsWith("s")) plurals.push(`${lower}s`);
    else if (!lower.endsWith("ss")) singulars.push(lower.slice(0, -1));
    return [...plurals, ...singulars.filter((one) => one.length >= SHORTEST)];
}

/** The one of some words, in lower case, that a word is taken as: itself, its plural or its singular; or null. */
function takenAs(word, known) {
    return [word.toLowerCase(), ...otherNumbers(word)].find((candidate) => known.has(candidate)) ?? null;
}

const lowerSet = (words) => new Set(words.map((word) => word.toLowerCase()));

/** The words that stand in every prompt, in the order of the last, which is the picture to be made. */
export function commonWords(prompts) {
    const sets = prompts.map((prompt) => lowerSet(wordsOf(prompt)));
    return wordsOf(prompts[prompts.length - 1]).filter((word) => sets.every((set) => takenAs(word, set)));
}

/** What the subject_words widget holds, as a list. */
export function chosenWords(text) {
    return text.replace(/,/g, " ").split(/\s+/).filter(Boolean);
}

/** Chips to draw: every word of the prompts, whether it is chosen, and chosen words that are not there as they are. */
export function chips(prompts, text) {
    const offered = commonWords(prompts);
    const known = lowerSet(offered);
    const chosen = chosenWords(text).map((word) => ({ word, taken: takenAs(word, known) }));
    const inside = (word) => WITHOUT_CASE.test(word) && prompts.every((prompt) => prompt.includes(word));
    return [
        ...offered.map((word) => ({ word, chosen: chosen.some(({ taken }) => taken === word.toLowerCase()), missing: false })),
        ...chosen.filter(({ taken }) => !taken).map(({ word }) => ({ word, chosen: true, missing: !inside(word) })),
    ];
}

/** The widget's new text when a chip is clicked: words in the prompt's order. */
export function toggled(prompts, text, word) {
    const target = word.toLowerCase();
    const all = chips(prompts, text);
    const kept = all.filter((chip) => (chip.word.toLowerCase() === target ? !chip.chosen : chip.chosen));
    return kept.map((chip) => chip.word).join(" ");
}

/** The widget's text with another word in place of one; a word that is there already is not written twice. */
export function replaced(text, word, other) {
    const kept = chosenWords(text).map((each) => (each === word ? other : each));
    return kept.filter((each, index) => kept.findIndex((one) => one.toLowerCase() === each.toLowerCase()) === index).join(" ");
}

/** What is sent of a prompt: the front end takes comments out itself. Null where it chooses by chance among {one|other}. */
export function asSent(prompt) {
    const sent = prompt.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "");
    return /\{[^{}]*\|[^{}]*\}/.test(sent) ? null : sent;
}
