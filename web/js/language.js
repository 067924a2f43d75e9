/** Our sentences in the language that the interface is set to. Front ends without that setting are English. */

import { app } from "../../../scripts/app.js";
import { titlesIn, translated } from "./server.js";
import { inLanguage } from "./texts.js";

const language = () => app.ui?.settings?.getSettingValue?.("Comfy.Locale");
let locales = {};

/** Keeps the nodes' titles in all languages, which newer hosts give. */
export async function readTitles(api) {
    try {
        const answer = await api.fetchApi("/i18n");
        if (answer.ok) locales = await answer.json();
    } catch { /* the titles stay English */ }
}

export function say(text, values) {
    return inLanguage(language(), text, values);
}

/** What the server says; its sentences that are not known stay English. */
export function sayOfServer(text) {
    return translated(language(), text, titlesIn(language(), locales));
}
