"""Nodes that make, prepare, save and load a reference."""

from __future__ import annotations

from ..dreammatcher.host.graph.masks import one_mask
from ..dreammatcher.host.graph.notes import tell
from ..dreammatcher.host.matching import invert
from ..dreammatcher.host.matching.both_prompts import encode_both
from ..dreammatcher.host.matching.files import REFERENCES, load_reference, save_reference
from ..dreammatcher.host.matching.masks import mask_or_subjects
from ..dreammatcher.host.matching.picture import missing_picture, reference_latent
from ..dreammatcher.host.matching.words_ahead import refusal
from ..dreammatcher.host.text.conditioning import encode_subject, subject_and_remarks
from ..dreammatcher.matching.features import PRECISIONS, FeatureOptions
from . import inputs

SCHEDULERS = ["ddim_uniform", "normal", "simple", "sgm_uniform", "karras", "exponential"]
ROWS = ["one", "both"]
PREFIX = "dreammatcher/reference"


def with_remarks(outputs: tuple, remarks: tuple[str, ...]) -> dict:
    """A node's outputs, and what the front end shows on it: nothing, where there is nothing to say."""
    return {"ui": {"text": list(remarks)}, "result": outputs}


class DreamMatcherSubject:
    TITLE = "Subject (DreamMatcher)"
    DESCRIPTION = "Encodes a prompt and marks the words in it that name the subject."
    INSTEAD = "it makes the prompt, which ComfyUI cannot pass through; put CLIP Text Encode in its place"
    CATEGORY = inputs.MATCHING
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "DM_SUBJECT")
    RETURN_NAMES = ("conditioning", "subject")
    OUTPUT_TOOLTIPS = ("The encoded prompt, for the sampler or for Invert Reference (DreamMatcher).",
                       "Which tokens of the prompt are the subject, for Apply (DreamMatcher) or Mask (DreamMatcher).")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "clip": ("CLIP", {"tooltip": "The text encoder of the checkpoint."}),
            "prompt": inputs.text("a photo of a dog", "The prompt, as for CLIP Text Encode: weights, embeddings and hooks "
                                                      "work.", multiline=True, dynamicPrompts=True),
            "subject_words": inputs.text("dog", "The words of the prompt that name the subject, e.g. 'dog' or 'sks dog'. "
                                                "Singular and plural count as the same word. Empty: the words that show "
                                                "something, but for those about medium and scene; of these, Mask (DreamMatcher) "
                                                "takes what both prompts share."),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, prompt=None, subject_words=None):
        return refusal({"prompt": prompt}, subject_words)

    def encode(self, clip, prompt, subject_words):
        subject, remarks = subject_and_remarks(clip, prompt, subject_words, tell)
        return with_remarks(encode_subject(clip, prompt, subject), remarks)


class DreamMatcherSubjects:
    TITLE = "Subject in Both Prompts (DreamMatcher)"
    DESCRIPTION = "Encodes the reference's prompt and the new picture's, and marks in both the words that name the subject."
    INSTEAD = "it makes the prompts, which ComfyUI cannot pass through; put CLIP Text Encode in its place, once for each prompt"
    CATEGORY = inputs.MATCHING
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "DM_SUBJECT", "DM_SUBJECT")
    RETURN_NAMES = ("reference_conditioning", "conditioning", "reference_subject", "target_subject")
    OUTPUT_TOOLTIPS = ("The reference's prompt, for Invert Reference (DreamMatcher).",
                       "The new picture's prompt, for the sampler.",
                       "For Apply (DreamMatcher) or Mask (DreamMatcher).", "For Apply (DreamMatcher) or Mask (DreamMatcher).")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP", {"tooltip": "The text encoder of the checkpoint."}), **inputs.BOTH_PROMPTS}}

    @classmethod
    def VALIDATE_INPUTS(cls, reference_prompt=None, prompt=None, subject_words=None):
        return refusal({"reference_prompt": reference_prompt, "prompt": prompt}, subject_words)

    def encode(self, clip, reference_prompt, prompt, subject_words):
        return with_remarks(*encode_both(clip, reference_prompt, prompt, subject_words))


class DreamMatcherInvert:
    TITLE = "Invert Reference (DreamMatcher)"
    DESCRIPTION = ("Finds the noise that leads to a reference picture (DDIM inversion), once per picture. "
                   "The reconstruction shows how well that went: below about 20 dB, use more steps.")
    CATEGORY = inputs.MATCHING
    FUNCTION = "invert"
    RETURN_TYPES = ("DM_REFERENCE", "LATENT", "FLOAT")
    RETURN_NAMES = ("reference", "reconstruction", "psnr")
    #: optional inputs that stand in for each other: one that was connected is needed
    ONCE_CONNECTED = ("reference", "image", "vae")
    OUTPUT_TOOLTIPS = ("The inverted reference.", "What the inversion leads back to; decode it to check.",
                       "How well the photo comes back from its noise, in decibels: higher is better. Below about 20 its colours "
                       "may not come over well: use more steps.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that will sample, before Apply (DreamMatcher)."}),
            "positive": ("CONDITIONING", {"tooltip": "A prompt that describes the reference picture."}),
            "negative": ("CONDITIONING", {"tooltip": "The prompt of the inversion and of the reference's negative "
                                          "row. The paper leaves it empty."}),
            "steps": inputs.steps(50, "Inversion steps. The paper uses 50.", most=1000),
            "scheduler": (SCHEDULERS, {"default": "ddim_uniform", "tooltip":
                          "Noise levels of the inversion. Sampling may use any other scheduler."}),
        }, "optional": {
            "reference": ("LATENT", {"tooltip": "One picture of the subject, VAE-encoded, any size and aspect; or give image and "
                                                "vae."}),
            "image": ("IMAGE", {"tooltip": "One picture of the subject, instead of reference. A large photo is made smaller, to "
                                           "the size that the model was made for."}),
            "vae": ("VAE", {"tooltip": "The checkpoint's autoencoder, for image."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, positive=None, reference=False, image=False, vae=False):
        # of a link the host gives None here; positive is always one, and without any value it would not ask
        return missing_picture(image is not False, vae is not False, reference is not False) or True

    def invert(self, model, positive, negative, steps, scheduler, reference=None, image=None, vae=None):
        latent = reference_latent(model, image, vae, reference)
        inverted, reconstruction = invert.invert_reference(model, latent, positive, negative, steps, scheduler)
        return inverted, reconstruction, inverted.psnr


class DreamMatcherFeatures:
    TITLE = "Features (DreamMatcher)"
    DESCRIPTION = ("Optional: makes the reference's features ahead of sampling, so that every picture after it costs "
                   "little more than a plain one. Without it they are made while the first picture samples.")
    CATEGORY = inputs.MATCHING
    FUNCTION = "prepare"
    RETURN_TYPES = ("DM_REFERENCE",)
    RETURN_NAMES = ("reference",)
    OUTPUT_TOOLTIPS = ("The reference with its features.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that will sample."}),
            "pca": inputs.number("INT", 256, 0, 4096, "Rank at which the reference's descriptors are stored, per level; less "
                                                      "takes less memory. 0 stores them whole."),
            "storage_device": (["cpu", "model"], {"default": "cpu", "tooltip":
                               "Where features wait between steps: main memory, or the model's device."}),
            "dtype": (list(PRECISIONS), {"default": "model", "tooltip":
                      "Precision of the stored features; 'model' keeps the model's own."}),
        }, "optional": {
            "noise_levels": inputs.number("INT", 0, 0, 1000, "At how many noise levels features are made; sampling takes the "
                                                             "nearest. Fewer take less memory. 0: at each of the inversion's."),
            "rows": (ROWS, {"default": ROWS[0], "tooltip":
                     "one: for the positive prompt, as presets balanced and fast need. both: also for the negative prompt, as "
                     "preset paper needs."}),
            "reference": ("DM_REFERENCE", {"tooltip": "From Invert Reference (DreamMatcher)."}),
            "mask": ("DM_MASK", {"tooltip": "From Mask (DreamMatcher): whose subject map is recorded. Or give both subjects, as "
                                            "to Apply (DreamMatcher)."}),
            **inputs.SUBJECTS,
            "layers": inputs.text("", "The same as at Apply (DreamMatcher): features are made for these blocks alone."),
        }}

    def prepare(self, model, reference=None, mask=None, pca=256, storage_device="cpu", dtype="model", noise_levels=0,
                rows=ROWS[0], reference_subject=None, target_subject=None, layers=""):
        mask, remarks = mask_or_subjects(mask, reference_subject, target_subject)
        options = FeatureOptions(pca or None, storage_device, PRECISIONS[dtype], rows == ROWS[1], noise_levels or None,
                                 layers)
        prepared = (invert.prepare_or_pass(model, reference, mask, options),)
        return with_remarks(prepared, remarks) if remarks else prepared


class DreamMatcherCombine:
    TITLE = "Combine References (DreamMatcher)"
    DESCRIPTION = ("Several photos of one subject: every place in the new picture takes its best match among all of them. "
                   "Chain this node for more than two.")
    CATEGORY = inputs.MATCHING
    FUNCTION = "combine"
    RETURN_TYPES = ("DM_REFERENCE",)
    RETURN_NAMES = ("reference",)
    OUTPUT_TOOLTIPS = ("All references as one.",)

    @classmethod
    def INPUT_TYPES(cls):
        numbered = (("1", "first"), ("2", "second"))
        return {
            "required": {
                f"weight_{place}": inputs.share(1.0, f"How much of the {which} reference's appearance is taken. 0 leaves it out.")
                for place, which in numbered
            },
            "optional": {
                "reference_1": ("DM_REFERENCE", {"tooltip": "A reference, or references that are combined already."}),
                "reference_2": ("DM_REFERENCE", {"tooltip": "Another picture of the same subject. Without it the first goes on "
                                                            "alone."}),
                **{f"mask_{place}": inputs.subject_mask(f"the {which}") for place, which in numbered},
            },
        }

    def combine(self, reference_1=None, reference_2=None, weight_1=1.0, weight_2=1.0, mask_1=None, mask_2=None):
        return (invert.combine_or_pass(reference_1, reference_2, first_weight=weight_1, second_weight=weight_2,
                                       first_mask=one_mask("mask_1", mask_1), second_mask=one_mask("mask_2", mask_2)),)


class DreamMatcherSaveReference(inputs.SaveNode):
    TITLE = "Save Reference (DreamMatcher)"
    DESCRIPTION = "Writes an inverted reference as safetensors into ComfyUI's output folder."
    CATEGORY = inputs.MATCHING
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("Where the file is.",)
    SAVED = {"reference": ("DM_REFERENCE", {"tooltip": "From Invert Reference (DreamMatcher)."})}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "filename_prefix": inputs.text(PREFIX, "Name in the output folder; a number is added."),
        }, "optional": cls.SAVED}

    def save(self, reference=None, filename_prefix=PREFIX):
        if reference is None:
            return inputs.nothing_saved("reference")
        path = save_reference(reference, filename_prefix)
        return {"ui": {"text": [str(path)]}, "result": (str(path),)}


class DreamMatcherLoadReference(inputs.LoadNode):
    TITLE = "Load Reference (DreamMatcher)"
    DESCRIPTION = "Reads a saved reference from the output folder or from models/dreammatcher."
    CATEGORY = inputs.MATCHING
    RETURN_TYPES = ("DM_REFERENCE",)
    RETURN_NAMES = ("reference",)
    OUTPUT_TOOLTIPS = ("The reference, for Apply (DreamMatcher) with a model of the same family.",)
    SHELF = REFERENCES

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "file": (REFERENCES.names() or ["(no saved reference)"], {"tooltip":
                     "References in the output folder, wherever they were saved, and files of models/dreammatcher."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file):
        return True  # files saved after the page was loaded are welcome; a missing one is reported by load

    def load(self, file):
        return (load_reference(file),)


NODES = (DreamMatcherInvert, DreamMatcherSubject, DreamMatcherSubjects, DreamMatcherFeatures, DreamMatcherCombine,
         DreamMatcherSaveReference, DreamMatcherLoadReference)
