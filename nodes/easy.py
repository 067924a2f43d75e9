"""The whole method in one node."""

from __future__ import annotations

from ..dreammatcher.host.matching.easy import Kept, match_subject
from ..dreammatcher.host.matching.words_ahead import refusal
from ..dreammatcher.matching.settings import BALANCED, BEST
from . import inputs
from .reference import with_remarks


class DreamMatcherEasy:
    TITLE = "Easy (DreamMatcher)"
    DESCRIPTION = ("Everything at once: inverts the reference picture, finds the subject by its words and returns a model "
                   "and prompts ready for the sampler.")
    CATEGORY = inputs.MATCHING
    FUNCTION = "match"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "DM_TRACE")
    RETURN_NAMES = ("model", "positive", "negative", "trace")
    OUTPUT_TOOLTIPS = ("The model for the sampler.", "The encoded prompt.", "The encoded negative prompt.",
                       "A record of the run: which place of the photo went where. Preview (DreamMatcher) shows it.")

    INSTEAD = ("it also makes the prompts, which ComfyUI cannot pass through; set its strength to 0 instead, which is the plain "
               "picture")

    def __init__(self):
        self.kept = Kept()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "An SD1.x, SD2.x or SDXL model, or a transformer that README lists."}),
            "clip": inputs.CLIP,
            "vae": inputs.VAE,
            "reference": ("IMAGE", {"tooltip":
                          "One photo of the subject. A large one is made smaller; the first of a batch is used. Transparent "
                          "parts are left out of the match."}),
            "reference_prompt": inputs.BOTH_PROMPTS["reference_prompt"],
            "prompt": inputs.BOTH_PROMPTS["prompt"],
            "negative": inputs.text("", "What you do not want. Empty, as in the paper, inverts best.", multiline=True),
            "subject_words": inputs.BOTH_PROMPTS["subject_words"],
        }, "optional": {
            "reference_mask": ("MASK", {"tooltip":
                               "White where the subject is in the reference. Used instead of the reference's transparency. "
                               "The MASK of Load Image is white where the picture is transparent: put Invert Mask in between."}),
            **inputs.strength("How much of the reference's appearance is taken. 0 is the plain picture: use it instead of "
                              "bypassing this node, which makes the prompts too."),
            "preset": ([BEST, BALANCED], {"default": BEST, "tooltip":
                       "best: the subject's place is carried over from the reference, its thin parts keep their colours, and its "
                       "inside is led towards the reference. balanced: as it was before there was a choice."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, reference_prompt=None, prompt=None, subject_words=None):
        return refusal({"reference_prompt": reference_prompt, "prompt": prompt}, subject_words)

    def match(self, model, clip, vae, reference, reference_prompt, prompt, negative, subject_words, reference_mask=None,
              strength=1.0, preset=BALANCED):
        return with_remarks(*match_subject(model, clip, vae, reference, reference_prompt, prompt, negative, subject_words,
                                           self.kept, reference_mask, strength, preset))


NODES = (DreamMatcherEasy,)
