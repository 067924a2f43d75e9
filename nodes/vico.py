"""Nodes of ViCo: a frozen model learns to look at a picture of the subject while it draws."""

from __future__ import annotations

from ..dreammatcher.host.graph.records import Viewer
from ..dreammatcher.host.text.new_words import with_new_words
from ..dreammatcher.host.training.keep import curve_image
from ..dreammatcher.host.training.learn import DEFAULT_OPTIONS
from ..dreammatcher.host.vico import files
from ..dreammatcher.host.vico.apply import apply_or_pass
from ..dreammatcher.host.vico.pictures import reference_latent, shown_masks
from ..dreammatcher.host.vico.train import train_vico
from ..dreammatcher.vico.recipe import VicoSettings
from ..dreammatcher.vico.settings import LookSettings
from . import inputs
from .sets import takes_sets

CATEGORY = "DreamMatcher/ViCo"
VICO = ("DM_VICO", {"tooltip": "From ViCo Train (DreamMatcher) or ViCo Load (DreamMatcher)."})


class DreamMatcherViCoTrain:
    TITLE = "ViCo Train (DreamMatcher)"
    DESCRIPTION = ("Teaches one word and four small blocks that look at a picture of the subject while the model draws. The "
                   "model itself stays as it is.")
    CATEGORY = CATEGORY
    FUNCTION = "learn"
    RETURN_TYPES = ("DM_VICO", "CLIP", "IMAGE")
    RETURN_NAMES = ("vico", "clip", "loss")
    OUTPUT_TOOLTIPS = ("For ViCo Apply (DreamMatcher) and ViCo Save (DreamMatcher).", "The text encoder, which knows the word.",
                       "The loss of every step.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **inputs.TRAINED,
            "training_set": inputs.TRAINING_SET,
            "initial_word": inputs.INITIAL_WORD,
            "steps": inputs.steps(400, "Steps of learning. The paper takes 400."),
            "word_rate": inputs.rate(2e-2, "How far the word moves in a step. The authors take 0.005 for each picture of it: "
                                           "0.02 for 4 on their four GPUs, 0.005 for one.", 1e-6),
            "block_rate": inputs.rate(1e-5, "How far the blocks move in a step."),
            "seed": inputs.SEED,
        }, "optional": {
            "batch": inputs.batch(4, "Pictures in a step. The authors' four GPUs make 4."),
            "regularisation": inputs.number("FLOAT", 5e-4, 0.0, 10.0, "How strongly the word is kept on the subject.", 1e-4),
            "masked": inputs.switch(True, "Look at the reference's subject only, not at its background, as in the paper."),
            "zero_start": inputs.switch(False, "Blocks begin without effect, so that training begins at the plain model. Not the "
                                               "paper's."),
            "bfloat16": inputs.BFLOAT16,
            "options": inputs.OPTIONS,
        }}

    def learn(self, model, clip, vae, training_set, initial_word, steps, word_rate, block_rate, seed, batch=4,
              regularisation=5e-4, masked=True, zero_start=False, bfloat16=False, options=DEFAULT_OPTIONS):
        vico, losses = train_vico(model, clip, vae, training_set, initial_word,
                                  VicoSettings(word_rate, block_rate, regularisation, masked, zero_start),
                                  options.training(steps, batch, seed, bfloat16), options)
        return vico, with_new_words(clip, {vico.word: vico.rows}), curve_image(losses, steps)


@takes_sets("image")
class DreamMatcherViCoApply:
    TITLE = "ViCo Apply (DreamMatcher)"
    DESCRIPTION = ("Makes the model look at a reference picture while it draws. Encode the prompt with Subject (DreamMatcher), "
                   "so that the subject is looked at and not what is around it. Apply (DreamMatcher) may follow.")
    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "DM_VICO_TRACE")
    RETURN_NAMES = ("model", "trace")
    OUTPUT_TOOLTIPS = ("The model for the sampler.",
                       "A record of the run: where the model looked. ViCo Masks (DreamMatcher) shows it.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "A model of the family that ViCo was trained on."}),
            **inputs.strength("How much of what is seen is taken. 1 is the paper, 0 the plain model.", 2.0),
            **inputs.span("after which the reference is looked at.", "at which that stops."),
        }, "optional": {
            "image": ("IMAGE", {"tooltip": "The reference: one of the pictures that were learned from, any size."}),
            "vae": ("VAE", {"tooltip": "The checkpoint's autoencoder, for image."}),
            "latent": ("LATENT", {"tooltip": "The reference as a latent, instead of image and vae."}),
            "subject": ("DM_SUBJECT", {"tooltip":
                        "From Subject (DreamMatcher): where the word stands, for prompts that do not say so themselves."}),
            "vico": VICO,
        }}

    def apply(self, model, vico=None, strength=1.0, start=0.0, end=1.0, image=None, vae=None, latent=None, subject=None):
        return apply_or_pass(model, vico, lambda: reference_latent(model, image, vae, latent), LookSettings(strength, start, end),
                             subject)


@takes_sets("image")
class DreamMatcherViCoMasks:
    TITLE = "ViCo Masks (DreamMatcher)"
    DESCRIPTION = "Shows where ViCo looked: the reference at a few noise levels, from noisy to clean, at each of its sites."
    CATEGORY = CATEGORY
    FUNCTION = "show"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("masks",)
    OUTPUT_TOOLTIPS = ("A row of pictures for each noise level.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "samples": ("LATENT", {"tooltip": "What was sampled: the masks wait for it."}),
        }, "optional": {
            "trace": ("DM_VICO_TRACE", {"tooltip": "The record of the run: trace of ViCo Apply (DreamMatcher)."}),
            "image": ("IMAGE", {"tooltip": "The reference picture, to show the masks on."}),
        }, "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"}}

    def show(self, trace=None, samples=None, image=None, prompt=None, unique_id=""):
        return (shown_masks(trace, image, Viewer(prompt, unique_id, "samples")),)


class DreamMatcherViCoSave(inputs.SaveNode):
    TITLE = "ViCo Save (DreamMatcher)"
    DESCRIPTION = "Saves what ViCo learned: its blocks, and its word for embedding:NAME in prompts."
    CATEGORY = CATEGORY
    SAVED = {"vico": VICO}

    def save(self, vico=None, name=inputs.DEFAULT_NAME):
        return self.written(vico, lambda: files.save_vico(vico, name))


class DreamMatcherViCoLoad:
    TITLE = "ViCo Load (DreamMatcher)"
    DESCRIPTION = ("Reads what ViCo learned: a file of ViCo Save (DreamMatcher), or the two files of the authors' code, "
                   "cross_attention and embeddings_gs.")
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("DM_VICO", "CLIP", "STRING")
    RETURN_NAMES = ("vico", "clip", "word")
    OUTPUT_TOOLTIPS = ("For ViCo Apply (DreamMatcher).", "The text encoder, which knows the word.",
                       "The word to write in prompts.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "clip": ("CLIP", {"tooltip": "The checkpoint's text encoder."}),
            "file": (files.SHELF.names(), {"tooltip":
                     "A file in models/vico or output/vico: our own, or cross_attention-399.pt."}),
            "embedding": ([files.IN_THE_FILE, *files.SHELF.names()], {"tooltip":
                          "For the authors' files: embeddings_gs-399.pt of the same training."}),
        }}

    @classmethod
    def IS_CHANGED(cls, file, embedding, **_):
        return files.SHELF.changes(file, embedding)

    def load(self, clip, file, embedding):
        vico = files.load_vico(file, embedding)
        return {"ui": {"text": [f"write in prompts: {vico.about.get('subject') or vico.word}"]},
                "result": (vico, with_new_words(clip, {vico.word: vico.rows}), vico.word)}


NODES = (DreamMatcherViCoTrain, DreamMatcherViCoApply, DreamMatcherViCoMasks, DreamMatcherViCoSave, DreamMatcherViCoLoad)
