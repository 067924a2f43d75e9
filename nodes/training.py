"""Nodes that learn a subject from its pictures, and keep and use what was learned."""

from __future__ import annotations

from ..dreammatcher.host.training.keep import apply_learned, curve_image, save_learned
from ..dreammatcher.host.training.learn import (
    FULL,
    LORA,
    DreamBoothSettings,
    custom_diffusion,
    dreambooth,
    textual_inversion,
)
from ..dreammatcher.host.training.sets import training_set
from ..dreammatcher.training.captions import TEMPLATES
from ..dreammatcher.training.data import Preparation
from ..dreammatcher.training.settings import LoraSettings, ObjectiveSettings, TrainingSettings

CATEGORY = "DreamMatcher/training"
LEARNED = ("MODEL", "CLIP", "DM_LEARNED", "IMAGE")
LEARNED_NAMES = ("model", "clip", "learned", "loss")
LEARNED_TOOLTIPS = ("The model with what was learned.", "The text encoder with what was learned.",
                    "What was learned, to save or to apply to another model.", "The loss of every step.")


def number(kind: str, default: float, low: float, high: float, tip: str, step: float | None = None) -> tuple:
    return kind, {"default": default, "min": low, "max": high, "tooltip": tip, **({"step": step} if step else {})}


MODEL_INPUTS = {
    "model": ("MODEL", {"tooltip": "An SD1.x, SD2.x or SDXL model. LoRAs on it are seen, not changed."}),
    "clip": ("CLIP", {"tooltip": "Its text encoder."}),
    "vae": ("VAE", {"tooltip": "Its autoencoder."}),
    "training_set": ("DM_TRAINING_SET", {"tooltip": "The subject's pictures."}),
}
BATCH = number("INT", 1, 1, 64, "Pictures in a step.")
BFLOAT16 = ("BOOLEAN", {"default": False, "tooltip":
                        "Compute in bfloat16: less memory and time, on cards and processors that have it."})
PRIOR = "Pictures of the class, best made by the model itself: they keep it from forgetting what other dogs look like."
SEED = number("INT", 0, 0, 2**63 - 1, "The same seed gives the same result.")


class DreamMatcherTrainingSet:
    TITLE = "DreamMatcher Training Set"
    DESCRIPTION = "Three to five pictures of a subject and what they are called, to learn from; or pictures of its class."
    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = ("DM_TRAINING_SET",)
    RETURN_NAMES = ("training_set",)
    OUTPUT_TOOLTIPS = ("For the training nodes.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "images": ("IMAGE", {"tooltip": "Pictures of the subject, as a batch. Transparent parts count as not masked."}),
            "identifier": ("STRING", {"default": "sks", "tooltip":
                           "The word that will mean the subject: a rare one. Empty in a set of class pictures."}),
            "class_word": ("STRING", {"default": "", "tooltip": "What kind of thing it is, as dog or toy."}),
            "template": (list(TEMPLATES), {"default": "photo", "tooltip":
                         "photo: a photo of a sks dog. object: 27 sentences for things, style: 19 for styles, one drawn each "
                         "time."}),
            "resolution": number("INT", 512, 64, 4096, "What the model was made for: 512 for SD1.x, 1024 for SDXL, 128 for "
                                                       "Toybox.", 64),
        }, "optional": {
            "masks": ("MASK", {"tooltip": "White where the subject is, one for each picture or one for all."}),
            "captions": ("STRING", {"default": "", "multiline": True, "tooltip":
                         "One line for each picture, each with the identifier, instead of the template."}),
            "buckets": ("BOOLEAN", {"default": True, "tooltip": "Keep each picture's shape. Off: all are cut to squares."}),
            "flip": ("BOOLEAN", {"default": False, "tooltip":
                     "Half of the time mirrored. Not for subjects whose left and right differ."}),
        }}

    def make(self, images, identifier, class_word, template, resolution, masks=None, captions="", buckets=True, flip=False):
        preparation = Preparation(resolution, min(64, resolution), buckets, flip)
        made = training_set(images, masks, identifier, class_word, template, captions, preparation)
        return {"ui": {"text": [made.described()]}, "result": (made,)}


class DreamMatcherDreamBooth:
    TITLE = "DreamMatcher DreamBooth"
    DESCRIPTION = ("Teaches the model a subject from a few pictures: a LoRA or all weights learn the identifier. DreamMatcher "
                   "Apply then brings over what they miss.")
    CATEGORY = CATEGORY
    FUNCTION = "learn"
    RETURN_TYPES, RETURN_NAMES, OUTPUT_TOOLTIPS = LEARNED, LEARNED_NAMES, LEARNED_TOOLTIPS

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **MODEL_INPUTS,
            "kind": ([LORA, FULL], {"default": LORA, "tooltip":
                                    "LoRA: a small file, little memory. full: every weight, as in the paper."}),
            "steps": number("INT", 500, 1, 100_000, "Each picture is seen steps times batch, divided by the number of pictures."),
            "rate": number("FLOAT", 1e-4, 1e-7, 1.0, "How far weights move in a step: 0.0001 for a LoRA, 0.000005 for full.",
                           1e-7),
            "seed": SEED,
        }, "optional": {
            "prior_set": ("DM_TRAINING_SET", {"tooltip": PRIOR}),
            "prior_weight": number("FLOAT", 1.0, 0.0, 100.0, "How much the class's pictures count. The paper uses 1.", 0.05),
            "rank": number("INT", 4, 1, 256, "Size of the LoRA."),
            "batch": BATCH,
            "text_encoder": ("BOOLEAN", {"default": False, "tooltip":
                                         "Teach the text encoder too: nearer, and it forgets more."}),
            "masked": ("BOOLEAN", {"default": False, "tooltip": "Only what the masks cover counts."}),
            "bfloat16": BFLOAT16,
        }}

    def learn(self, model, clip, vae, training_set, kind, steps, rate, seed, prior_set=None, prior_weight=1.0, rank=4,
              batch=1, text_encoder=False, masked=False, bfloat16=False):
        learned, losses = dreambooth(
            model, clip, vae, training_set, prior_set, DreamBoothSettings(kind, LoraSettings(rank), rate, text_encoder),
            ObjectiveSettings(prior_weight, masked=masked), TrainingSettings(steps, batch, seed=seed, bfloat16=bfloat16))
        return *apply_learned(model, clip, learned), learned, curve_image(losses, steps)


class DreamMatcherTextualInversion:
    TITLE = "DreamMatcher Textual Inversion"
    DESCRIPTION = ("Teaches the model one new word and nothing else: a tiny file that leaves the model as it is. Save it, and "
                   "write embedding:NAME in prompts.")
    CATEGORY = CATEGORY
    FUNCTION = "learn"
    RETURN_TYPES, RETURN_NAMES, OUTPUT_TOOLTIPS = LEARNED, LEARNED_NAMES, LEARNED_TOOLTIPS

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **MODEL_INPUTS,
            "initial_word": ("STRING", {"default": "toy", "tooltip":
                                        "A coarse word for the subject, from which learning begins."}),
            "vectors": number("INT", 1, 1, 32, "Tokens that the word takes. More hold more, and are harder to combine."),
            "steps": number("INT", 3000, 1, 100_000, "Steps of learning."),
            "rate": number("FLOAT", 5e-3, 1e-6, 1.0, "How far the word moves in a step.", 1e-6),
            "seed": SEED,
        }, "optional": {
            "batch": BATCH,
            "bfloat16": BFLOAT16,
        }}

    def learn(self, model, clip, vae, training_set, initial_word, vectors, steps, rate, seed, batch=1, bfloat16=False):
        settings = TrainingSettings(steps, batch, seed=seed, bfloat16=bfloat16)
        learned, losses = textual_inversion(model, clip, vae, training_set, initial_word, vectors, rate, settings)
        return *apply_learned(model, clip, learned), learned, curve_image(losses, steps)


class DreamMatcherCustomDiffusion:
    TITLE = "DreamMatcher Custom Diffusion"
    DESCRIPTION = ("Teaches the model a subject through the weights that read the text, and one new word: smaller than "
                   "DreamBooth. Save it, and write embedding:NAME in prompts.")
    CATEGORY = CATEGORY
    FUNCTION = "learn"
    RETURN_TYPES, RETURN_NAMES, OUTPUT_TOOLTIPS = LEARNED, LEARNED_NAMES, LEARNED_TOOLTIPS

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **MODEL_INPUTS,
            "initial_word": ("STRING", {"default": "ktn", "tooltip":
                                        "The word from which the new one begins: the authors take a rare one."}),
            "steps": number("INT", 500, 1, 100_000, "Steps of learning."),
            "rate": number("FLOAT", 1e-5, 1e-7, 1.0, "How far weights and word move in a step.", 1e-7),
            "seed": SEED,
        }, "optional": {
            "prior_set": ("DM_TRAINING_SET", {"tooltip": PRIOR}),
            "prior_weight": number("FLOAT", 1.0, 0.0, 100.0, "How much the class's pictures count. The paper uses 1.", 0.05),
            "sizes": ("BOOLEAN", {"default": True, "tooltip":
                                  "Learn every picture at several sizes, with captions that say so, as in the paper."}),
            "batch": number("INT", 2, 1, 64, "Pictures in a step."),
            "bfloat16": BFLOAT16,
        }}

    def learn(self, model, clip, vae, training_set, initial_word, steps, rate, seed, prior_set=None, prior_weight=1.0, sizes=True,
              batch=2, bfloat16=False):
        settings = TrainingSettings(steps, batch, seed=seed, bfloat16=bfloat16)
        learned, losses = custom_diffusion(model, clip, vae, training_set, prior_set, initial_word, rate, sizes, prior_weight,
                                           settings)
        return *apply_learned(model, clip, learned), learned, curve_image(losses, steps)


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
            "learned": ("DM_LEARNED", {"tooltip": "From a training node."}),
            "name": ("STRING", {"default": "my_subject", "tooltip":
                                "Name of the file. One that is there is not overwritten: a number is added."}),
        }}

    def save(self, learned, name):
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
            "learned": ("DM_LEARNED", {"tooltip": "From a training node."}),
            "strength_model": number("FLOAT", 1.0, -10.0, 10.0, "How much of it the model takes.", 0.05),
            "strength_clip": number("FLOAT", 1.0, -10.0, 10.0, "How much of it the text encoder takes.", 0.05),
        }}

    def apply(self, model, clip, learned, strength_model, strength_clip):
        return apply_learned(model, clip, learned, strength_model, strength_clip)


NODES = (DreamMatcherTrainingSet, DreamMatcherDreamBooth, DreamMatcherTextualInversion, DreamMatcherCustomDiffusion,
         DreamMatcherSaveLearned, DreamMatcherApplyLearned)
