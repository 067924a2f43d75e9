/** What the server says, in the languages of the interface: English, with its places for values, is the key. No DOM here. */

import { SENTENCES } from "./server_texts.js";

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** A sentence as the server may have filled it; the value of each place is a group of its name. What ends at a colon has none. */
function pattern(sentence) {
    const parts = sentence.split(/\{(\w+)\}/).map((part, index, all) => (
        index % 2 ? `(?<${part}>${all[index + 1].startsWith(":") ? "[^:]" : "."}*?)` : escaped(part)));
    return new RegExp(`^${parts.join("")}$`, "s");
}

const fixed = (sentence) => sentence.replace(/\{\w+\}/g, "").length;
/** The sentences that say most come first: another one may have a place where they have words. */
const KNOWN = Object.keys(SENTENCES.zh).sort((one, other) => fixed(other) - fixed(one))
    .map((sentence) => ({ sentence, filled: pattern(sentence) }));

/**
 * A text of the server's in a language such as "zh" or "zh-TW"; a sentence, or a part of one, that is not known stays English.
 *
 * @param titles titles of nodes in that language, by the English ones
 */
export function translated(language, text, titles = {}) {
    const spoken = String(language ?? "").toLowerCase().split("-")[0];
    return Object.hasOwn(SENTENCES, spoken) ? inside(SENTENCES[spoken], text, titles) : text;
}

function inside(spoken, text, titles) {
    for (const { sentence, filled } of KNOWN) {
        const values = filled.exec(text);
        if (!values) continue;
        return spoken[sentence].replace(/\{(\w+)\}/g, (place, name) => inside(spoken, values.groups[name], titles));
    }
    if (text.includes("\n")) return text.split("\n").map((line) => inside(spoken, line, titles)).join("\n");
    const [, input, rest] = /^([a-z]\w*(?: LATENT)?): (.+)$/s.exec(text) ?? [];
    const known = rest && inside(spoken, rest, titles);
    if (known && known !== rest) return `${input}: ${known}`; // "prompt: 'cats' is taken as 'cat' …"
    return Object.entries(titles).sort(([one], [other]) => other.length - one.length)
        .reduce((said, [english, title]) => said.replaceAll(english, title), text);
}

/** Titles of our nodes in a language, by the English ones, from what the host has of all packs' locales. */
export function titlesIn(language, locales) {
    const own = locales?.[language]?.nodeDefs ?? locales?.[String(language ?? "").split("-")[0]]?.nodeDefs ?? {};
    const english = Object.entries(locales?.en?.nodeDefs ?? {});
    return Object.fromEntries(english.filter(([name]) => /^(DreamMatcher|Toybox)/.test(name) && own[name]?.display_name)
        .map(([name, { display_name: title }]) => [title, own[name].display_name]));
}
