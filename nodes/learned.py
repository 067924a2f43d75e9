"""Nodes that keep and use what was learned."""

from __future__ import annotations

from ..dreammatcher.host.graph.notes import not_connected
from ..dreammatcher.host.training import load as loading
from ..dreammatcher.host.training.keep import apply_learned, save_learned
from .reference import nothing_saved
from .training import CATEGORY, number


class DreamMatcherSaveLearned:
    TITLE = "DreamMatcher Save Learned"
    DESCRIPTION = ("Saves what was learned where ComfyUI looks for it: a LoRA for Load LoRA, or an embedding for "
                   "embedding:NAME in prompts.")
    CATEGORY = CATEGORY
    FUNCTION = "save"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("file",)
    OUTPUT_TOOLTIPS = ("Name of the file.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "name": ("STRING", {"default": "my_subject", "tooltip":
                                "Name of the file. One that is there is not overwritten: a number is added."}),
        }, "optional": {
            "learned": ("DM_LEARNED", {"tooltip": "From a training node."}),
        }}

    def save(self, learned=None, name="my_subject"):
        if learned is None:
            return nothing_saved("learned")
        path, how = save_learned(learned, name)
        return {"ui": {"text": [how]}, "result": (path.name,)}

class DreamMatcherApplyLearned:
    TITLE = "DreamMatcher Apply Learned"
    DESCRIPTION = "Gives a model what was learned, at any strength."
    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "CLIP")
    RETURN_NAMES = ("model", "clip")
    OUTPUT_TOOLTIPS = ("The model with what was learned.", "The text encoder with what was learned.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "A model of the family that was trained on."}),
            "clip": ("CLIP", {"tooltip": "Its text encoder."}),
            "strength_model": number("FLOAT", 1.0, -10.0, 10.0, "How much of it the model takes.", 0.05),
            "strength_clip": number("FLOAT", 1.0, -10.0, 10.0, "How much of it the text encoder takes.", 0.05),
        }, "optional": {
            "learned": ("DM_LEARNED", {"tooltip": "From a training node. Without it model and clip go on as they are."}),
        }}

    def apply(self, model, clip, learned=None, strength_model=1.0, strength_clip=1.0):
        if learned is None:
            not_connected("learned", "the training node", "model and clip go on as they are")
            return model, clip
        return apply_learned(model, clip, learned, strength_model, strength_clip)

class DreamMatcherLoadLearned:
    TITLE = "DreamMatcher Load Learned"
    DESCRIPTION = ("Reads a subject that was learned elsewhere: Custom Diffusion's delta.bin and its other forms, a LoRA, or an "
                   "embedding.")
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "DM_LEARNED", "STRING")
    RETURN_NAMES = ("model", "clip", "learned", "words")
    OUTPUT_TOOLTIPS = ("The model with what was learned.", "The text encoder with what was learned; it knows the new words.",
                       "What was learned, to save in ComfyUI's own forms.", "The new words to write in prompts.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that was learned on, as SD1.4."}),
            "clip": ("CLIP", {"tooltip": "Its text encoder."}),
            "file": (loading.names(), {"tooltip": "A file in models/loras or models/embeddings."}),
            "strength_model": number("FLOAT", 1.0, -10.0, 10.0, "How much of it the model takes.", 0.05),
            "strength_clip": number("FLOAT", 1.0, -10.0, 10.0, "How much of it the text encoder takes.", 0.05),
        }}

    @classmethod
    def IS_CHANGED(cls, file, **_):
        return loading.state(file)

    def load(self, model, clip, file, strength_model, strength_clip):
        learned = loading.load_learned(model, clip, file)
        words = " ".join(learned.embeddings)
        return {"ui": {"text": [f"words for prompts: {words}" if words else "no new words"]},
                "result": (*apply_learned(model, clip, learned, strength_model, strength_clip), learned, words)}


NODES = (DreamMatcherSaveLearned, DreamMatcherApplyLearned, DreamMatcherLoadLearned)
