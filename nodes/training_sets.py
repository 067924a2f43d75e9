"""Nodes that gather pictures to learn from."""

from __future__ import annotations

from ..dreammatcher.host.training.folder import changed
from ..dreammatcher.host.training.prior import SAMPLERS, SCHEDULERS, PriorSettings, prior_set
from ..dreammatcher.host.training.sets import training_set
from ..dreammatcher.training.captions import TEMPLATES
from ..dreammatcher.training.data import Preparation
from . import inputs
from .sets import listed, takes_sets


@takes_sets("images", "masks", "captions")
class DreamMatcherTrainingSet:
    TITLE = "Training Set (DreamMatcher)"
    DESCRIPTION = "Three to five pictures of a subject and what they are called, to learn from; or pictures of its class."
    CATEGORY = inputs.TRAINING
    FUNCTION = "make"
    RETURN_TYPES = ("DM_TRAINING_SET",)
    RETURN_NAMES = ("training_set",)
    OUTPUT_TOOLTIPS = ("For the training nodes.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "identifier": inputs.text("sks", "The word that will mean the subject: a rare one. Empty in a set of class "
                                             "pictures."),
            "class_word": inputs.text("", "What kind of thing it is, as dog or toy."),
            "template": (list(TEMPLATES), {"default": "photo", "tooltip":
                         "photo: a photo of a sks dog. object: 27 sentences for things, style: 19 for styles, one drawn each "
                         "time."}),
            "resolution": inputs.auto_resolution("512 for SD1.x, 1024 for SDXL, 128 for Toybox."),
        }, "optional": {
            "images": ("IMAGE", {"tooltip":
                       "Pictures of the subject, as a batch or a list. Transparent parts become grey; the rest is the mask."}),
            "masks": ("MASK", {"tooltip": "White where the subject is, one for each picture or one for all."}),
            "captions": inputs.text("", "One line for each picture, or a list of texts, each with the identifier, instead of the "
                                        "template.", multiline=True),
            "buckets": inputs.switch(True, "Keep each picture's shape. Off: all are cut to squares."),
            "flip": inputs.switch(False, "Half of the time mirrored. Not for subjects whose left and right differ."),
            "folder": inputs.text("", "A folder in ComfyUI's input folder: its pictures are taken too, captions from .txt files "
                                      "beside them."),
            "repeats": inputs.number("INT", 1, 1, 1000, "How often these pictures come for each time that those of others come."),
            "others": ("DM_TRAINING_SET", {"tooltip": "More pictures of the same subject, as from another folder."}),
        }}

    @classmethod
    def IS_CHANGED(cls, folder="", **_):
        return [changed(name) for name in listed(folder)]

    def make(self, identifier, class_word, template, resolution, images=None, masks=None, captions="", buckets=True, flip=False,
             folder="", repeats=1, others=None):
        preparation = Preparation(resolution, min(64, resolution or 64), buckets, flip)
        subject_set = training_set(images, masks, identifier, class_word, template, captions, folder, preparation)
        subject_set = subject_set.joined(others, repeats)
        return {"ui": {"text": [subject_set.described()]}, "result": (subject_set,)}


class DreamMatcherPriorSet:
    TITLE = "Prior Set (DreamMatcher)"
    DESCRIPTION = ("Draws pictures of the subject's class with the model itself, before it learns: they keep it from forgetting "
                   "what others of the class look like. They are kept on disk.")
    CATEGORY = inputs.TRAINING
    FUNCTION = "make"
    RETURN_TYPES = ("DM_TRAINING_SET",)
    RETURN_NAMES = ("prior_set",)
    OUTPUT_TOOLTIPS = ("For the input prior_set of the training nodes.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that will learn, as it is before."}),
            "clip": inputs.CLIP,
            "vae": inputs.VAE,
            "training_set": ("DM_TRAINING_SET", {"tooltip": "The subject's pictures, for their class, captions and size."}),
            "count": inputs.number("INT", 100, 1, 10_000, "Pictures. The paper takes 1000, the scripts 100 to 200."),
            "steps": inputs.steps(25, "Sampling steps of each.", most=1000),
            "cfg": inputs.number("FLOAT", 7.5, 1.0, 30.0, "Classifier-free guidance.", 0.5),
            "sampler_name": (SAMPLERS, {"default": "euler_ancestral", "tooltip": "The paper takes an ancestral one."}),
            "scheduler": (SCHEDULERS, {"default": "normal", "tooltip": "How noise levels are spread."}),
            "seed": inputs.SEED,
        }}

    def make(self, model, clip, vae, training_set, count, steps, cfg, sampler_name, scheduler, seed):
        settings = PriorSettings(count, steps, cfg, sampler_name, scheduler, seed)
        prior, said = prior_set(model, clip, vae, training_set, settings)
        return {"ui": {"text": [said]}, "result": (prior,)}


NODES = (DreamMatcherTrainingSet, DreamMatcherPriorSet)
