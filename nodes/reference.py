"""Nodes that make, prepare, save and load a reference."""

from __future__ import annotations

from ..dreammatcher.host.graph.masks import one_mask
from ..dreammatcher.host.graph.notes import not_connected, tell
from ..dreammatcher.host.matching import invert
from ..dreammatcher.host.matching.files import REFERENCES, load_reference, save_reference
from ..dreammatcher.host.text.conditioning import encode_subject, subject_and_remarks
from ..dreammatcher.matching.features import PRECISIONS, FeatureOptions

CATEGORY = "DreamMatcher"
SCHEDULERS = ["ddim_uniform", "normal", "simple", "sgm_uniform", "karras", "exponential"]
ROWS = ["one", "both"]


def with_remarks(outputs: tuple, remarks: tuple[str, ...]) -> dict:
    """A node's outputs, and what the front end shows on it: nothing, where there is nothing to say."""
    return {"ui": {"text": list(remarks)}, "result": outputs}


def nothing_saved(name: str) -> dict:
    """What a saving node does whose input is missing: says so."""
    return {"ui": {"text": [not_connected(name, "the node in front", "nothing is saved")]}, "result": ("",)}


class DreamMatcherSubject:
    TITLE = "DreamMatcher Subject"
    DESCRIPTION = "Encodes a prompt and marks the words in it that name the subject."
    INSTEAD = "it makes the prompt, which ComfyUI cannot pass through; put CLIP Text Encode in its place"
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "DM_SUBJECT")
    RETURN_NAMES = ("conditioning", "subject")
    OUTPUT_TOOLTIPS = ("The encoded prompt, for the sampler or for DreamMatcher Invert Reference.",
                       "Which tokens of the prompt are the subject, for DreamMatcher Mask.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "clip": ("CLIP", {"tooltip": "The text encoder of the checkpoint."}),
            "prompt": ("STRING", {"default": "a photo of a dog", "multiline": True, "dynamicPrompts": True,
                                  "tooltip": "The prompt, as for CLIP Text Encode: weights, embeddings and hooks work."}),
            "subject_words": ("STRING", {"default": "dog", "tooltip":
                              "The words of the prompt that name the subject, e.g. 'dog' or 'sks dog'. Singular and plural count "
                              "as the same word. Empty: the words that show something, but for those about medium and scene; of "
                              "these, DreamMatcher Mask takes what both prompts share."}),
        }}

    def encode(self, clip, prompt, subject_words):
        subject, remarks = subject_and_remarks(clip, prompt, subject_words, tell)
        return with_remarks(encode_subject(clip, prompt, subject), remarks)


class DreamMatcherInvert:
    TITLE = "DreamMatcher Invert Reference"
    DESCRIPTION = ("Finds the noise that leads to a reference picture (DDIM inversion), once per picture. "
                   "The reconstruction shows how well that went: below about 20 dB, use more steps.")
    CATEGORY = CATEGORY
    FUNCTION = "invert"
    RETURN_TYPES = ("DM_REFERENCE", "LATENT", "FLOAT")
    RETURN_NAMES = ("reference", "reconstruction", "psnr")
    OUTPUT_TOOLTIPS = ("The inverted reference.", "What the inversion leads back to; decode it to check.",
                       "Likeness of the reconstruction to the picture, as latents, in dB; higher is better.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that will sample, before DreamMatcher Apply."}),
            "reference": ("LATENT", {"tooltip": "One picture of the subject, VAE-encoded. Any size and aspect."}),
            "positive": ("CONDITIONING", {"tooltip": "A prompt that describes the reference picture."}),
            "negative": ("CONDITIONING", {"tooltip": "The prompt of the inversion and of the reference's negative "
                                          "row. The paper leaves it empty."}),
            "steps": ("INT", {"default": 50, "min": 1, "max": 1000, "tooltip": "Inversion steps. The paper uses 50."}),
            "scheduler": (SCHEDULERS, {"default": "ddim_uniform", "tooltip":
                          "Noise levels of the inversion. Sampling may use any other scheduler."}),
        }}

    def invert(self, model, reference, positive, negative, steps, scheduler):
        made, reconstruction = invert.invert_reference(model, reference, positive, negative, steps, scheduler)
        return made, reconstruction, made.psnr


class DreamMatcherFeatures:
    TITLE = "DreamMatcher Features"
    DESCRIPTION = ("Optional: makes the reference's features ahead of sampling, so that every picture after it costs "
                   "little more than a plain one. Without it they are made while the first picture samples.")
    CATEGORY = CATEGORY
    FUNCTION = "prepare"
    RETURN_TYPES = ("DM_REFERENCE",)
    RETURN_NAMES = ("reference",)
    OUTPUT_TOOLTIPS = ("The reference with its features.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that will sample."}),
            "pca": ("INT", {"default": 256, "min": 0, "max": 4096, "tooltip":
                    "Rank at which the reference's descriptors are stored, per level; less takes less memory. 0 stores them "
                    "whole."}),
            "storage_device": (["cpu", "model"], {"default": "cpu", "tooltip":
                               "Where features wait between steps: main memory, or the model's device."}),
            "dtype": (list(PRECISIONS), {"default": "model", "tooltip":
                      "Precision of the stored features; 'model' keeps the model's own."}),
        }, "optional": {
            "noise_levels": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip":
                             "At how many noise levels features are made; sampling takes the nearest. Fewer take less memory. "
                             "0: at each of the inversion's."}),
            "rows": (ROWS, {"default": ROWS[0], "tooltip":
                     "one: for the positive prompt, as presets balanced and fast need. both: also for the negative prompt, as "
                     "preset paper needs."}),
            "reference": ("DM_REFERENCE", {"tooltip": "From DreamMatcher Invert Reference."}),
            "mask": ("DM_MASK", {"tooltip": "From DreamMatcher Mask: whose subject map is recorded."}),
        }}

    def prepare(self, model, reference=None, mask=None, pca=256, storage_device="cpu", dtype="model", noise_levels=0,
                rows=ROWS[0]):
        options = FeatureOptions(pca or None, storage_device, PRECISIONS[dtype], rows == ROWS[1], noise_levels or None)
        return (invert.prepare_or_pass(model, reference, mask, options),)


class DreamMatcherCombine:
    TITLE = "DreamMatcher Combine References"
    DESCRIPTION = ("Several photos of one subject: every place in the new picture takes its best match among all of them. "
                   "Chain this node for more than two.")
    CATEGORY = CATEGORY
    FUNCTION = "combine"
    RETURN_TYPES = ("DM_REFERENCE",)
    RETURN_NAMES = ("reference",)
    OUTPUT_TOOLTIPS = ("All references as one.",)

    @classmethod
    def INPUT_TYPES(cls):
        weight = lambda which: ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip":  # noqa: E731
                                f"How much of the {which} reference's appearance is taken. 0 leaves it out."})
        mask = lambda which: ("MASK", {"tooltip":  # noqa: E731
                              f"White where the subject is in the {which} reference: matches stay inside."})
        return {
            "required": {
                "weight_1": weight("first"),
                "weight_2": weight("second"),
            },
            "optional": {
                "reference_1": ("DM_REFERENCE", {"tooltip": "A reference, or references that are combined already."}),
                "reference_2": ("DM_REFERENCE", {"tooltip": "Another picture of the same subject. Without it the first goes on "
                                                            "alone."}),
                "mask_1": mask("first"), "mask_2": mask("second"),
            },
        }

    def combine(self, reference_1=None, reference_2=None, weight_1=1.0, weight_2=1.0, mask_1=None, mask_2=None):
        return (invert.combine_or_pass(reference_1, reference_2, first_weight=weight_1, second_weight=weight_2,
                                       first_mask=one_mask("mask_1", mask_1), second_mask=one_mask("mask_2", mask_2)),)


class DreamMatcherSaveReference:
    TITLE = "DreamMatcher Save Reference"
    DESCRIPTION = "Writes an inverted reference as safetensors into ComfyUI's output folder."
    CATEGORY = CATEGORY
    FUNCTION = "save"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("Where the file is.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "filename_prefix": ("STRING", {"default": "dreammatcher/reference", "tooltip":
                                "Name in the output folder; a number is added."}),
        }, "optional": {
            "reference": ("DM_REFERENCE", {"tooltip": "From DreamMatcher Invert Reference."}),
        }}

    def save(self, reference=None, filename_prefix="dreammatcher/reference"):
        if reference is None:
            return nothing_saved("reference")
        path = save_reference(reference, filename_prefix)
        return {"ui": {"text": [str(path)]}, "result": (str(path),)}


class DreamMatcherLoadReference:
    TITLE = "DreamMatcher Load Reference"
    DESCRIPTION = "Reads a saved reference from the output folder or from models/dreammatcher."
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("DM_REFERENCE",)
    RETURN_NAMES = ("reference",)
    OUTPUT_TOOLTIPS = ("The reference, for DreamMatcher Apply with a model of the same family.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "file": (REFERENCES.names() or ["(no saved reference)"], {"tooltip":
                     "References in the output folder, wherever they were saved, and files of models/dreammatcher."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file):
        return True  # files saved after the page was loaded are welcome; a missing one is reported by load

    @classmethod
    def IS_CHANGED(cls, file):
        return REFERENCES.changes(file)

    def load(self, file):
        return (load_reference(file),)


NODES = (DreamMatcherInvert, DreamMatcherSubject, DreamMatcherFeatures, DreamMatcherCombine,
         DreamMatcherSaveReference, DreamMatcherLoadReference)
