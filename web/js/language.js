/** Our sentences in the language that the interface is set to. Front ends without that setting are English. */

import { app } from "../../../scripts/app.js";
import { inLanguage } from "./texts.js";

export function say(text, values) {
    return inLanguage(app.ui?.settings?.getSettingValue?.("Comfy.Locale"), text, values);
}
