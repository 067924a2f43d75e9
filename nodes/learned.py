"""Nodes that keep and use what was learned."""

from __future__ import annotations

from ..dreammatcher.host.graph.notes import not_connected
from ..dreammatcher.host.training import choose as choosing
from ..dreammatcher.host.training import load as loading
from ..dreammatcher.host.training.keep import apply_learned, save_learned
from . import inputs


class DreamMatcherSaveLearned(inputs.SaveNode):
    TITLE = "Save Learned (DreamMatcher)"
    DESCRIPTION = ("Saves what was learned where ComfyUI looks for it: a LoRA for Load LoRA, or an embedding for "
                   "embedding:NAME in prompts.")
    CATEGORY = inputs.TRAINING
    SAVED = {"learned": ("DM_LEARNED", {"tooltip": "From a training node."})}

    def save(self, learned=None, name=inputs.DEFAULT_NAME):
        return self.written(learned, lambda: save_learned(learned, name))


class DreamMatcherApplyLearned:
    TITLE = "Apply Learned (DreamMatcher)"
    DESCRIPTION = "Gives a model what was learned, at any strength."
    CATEGORY = inputs.TRAINING
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "CLIP")
    RETURN_NAMES = ("model", "clip")
    OUTPUT_TOOLTIPS = ("The model with what was learned.", "The text encoder with what was learned.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "A model of the family that was trained on."}),
            "clip": inputs.CLIP,
            **inputs.STRENGTHS,
        }, "optional": {
            "learned": ("DM_LEARNED", {"tooltip": "From a training node. Without it model and clip go on as they are."}),
        }}

    def apply(self, model, clip, learned=None, strength_model=1.0, strength_clip=1.0):
        if learned is None:
            not_connected("learned", "the training node", "model and clip go on as they are")
            return model, clip
        return apply_learned(model, clip, learned, strength_model, strength_clip)


class DreamMatcherLoadLearned:
    TITLE = "Load Learned (DreamMatcher)"
    DESCRIPTION = ("Reads a subject that was learned elsewhere: Custom Diffusion's delta.bin and its other forms, a LoRA, or an "
                   "embedding.")
    CATEGORY = inputs.TRAINING
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "DM_LEARNED", "STRING")
    RETURN_NAMES = ("model", "clip", "learned", "words")
    OUTPUT_TOOLTIPS = ("The model with what was learned.", "The text encoder with what was learned; it knows the new words.",
                       "What was learned, to save in ComfyUI's own forms.", "The new words to write in prompts.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that was learned on, as SD1.4."}),
            "clip": inputs.CLIP,
            "file": (loading.names(), {"tooltip": "A file in models/loras or models/embeddings."}),
            **inputs.STRENGTHS,
        }}

    @classmethod
    def IS_CHANGED(cls, file, **_):
        return loading.state(file)

    def load(self, model, clip, file, strength_model, strength_clip):
        learned = loading.load_learned(model, clip, file)
        words = " ".join(learned.embeddings)
        return {"ui": {"text": [f"words for prompts: {words}" if words else "no new words"]},
                "result": (*apply_learned(model, clip, learned, strength_model, strength_clip), learned, words)}


class DreamMatcherChoose:
    TITLE = "Choose (DreamMatcher)"
    DESCRIPTION = ("Picks a step that a training has kept on its way, from the sheet of samples that the node shows. Until one "
                   "is chosen it is the last.")
    CATEGORY = inputs.TRAINING
    FUNCTION = "choose"
    RETURN_TYPES = ("MODEL", "CLIP", "DM_LEARNED", "IMAGE")
    RETURN_NAMES = ("model", "clip", "learned", "sheet")
    OUTPUT_TOOLTIPS = ("The model with what was learned by then.", "The text encoder with what was learned by then.",
                       "What was learned by then, to save.", "The samples of every step that is kept.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that was trained on, as it was before."}),
            "clip": inputs.CLIP,
            "run_name": inputs.text("", "Name of the run: that of the sheet's folder. Empty: the run of what comes by learned."),
            "step": inputs.number("INT", 0, 0, 10_000_000, "A step of the sheet. 0: the last."),
        }, "optional": {
            "learned": ("DM_LEARNED", {"tooltip": "From the training node, whose end is waited for. Not needed with run_name."}),
        }}

    @classmethod
    def IS_CHANGED(cls, run_name="", **_):
        return choosing.state(run_name)

    def choose(self, model, clip, run_name, step, learned=None):
        chosen, run, said = choosing.choose(model, clip, run_name, step, learned)
        outputs = (*apply_learned(model, clip, chosen), chosen, choosing.sheet_image(run))
        return {"ui": {"text": [said], "images": choosing.shown_sheet(run)}, "result": outputs}


NODES = (DreamMatcherSaveLearned, DreamMatcherApplyLearned, DreamMatcherLoadLearned, DreamMatcherChoose)
