/** Sentences of the server: English, as its code has them, and what they are in other languages. {Places} hold values. */

import beginFrom from "./said/begin_from.js";
import details from "./said/details.js";
import files from "./said/files.js";
import goingOn from "./said/going_on.js";
import methods from "./said/methods.js";
import models from "./said/models.js";
import prompts from "./said/prompts.js";
import references from "./said/references.js";
import runs from "./said/runs.js";
import sets from "./said/sets.js";
import training from "./said/training.js";

const ROWS = [...beginFrom, ...details, ...files, ...goingOn, ...methods, ...models, ...prompts, ...references, ...runs, ...sets, ...training];
const translations = (column) => Object.fromEntries(ROWS.map((row) => [row[0], row[column]]));

export const SENTENCES = { zh: translations(1), ja: translations(2), ko: translations(3) };
