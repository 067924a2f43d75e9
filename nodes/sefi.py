"""Nodes of SeFi-IDE: one picture, one word, vectors of its own for every stage of sampling."""

from __future__ import annotations

from ..dreammatcher.host.sefi import files
from ..dreammatcher.host.sefi.apply import apply_or_pass
from ..dreammatcher.host.sefi.prompt import staged_or_plain
from ..dreammatcher.host.sefi.train import one_picture, train_sefi
from ..dreammatcher.host.training.keep import curve_image
from ..dreammatcher.host.training.learn import DEFAULT_OPTIONS
from ..dreammatcher.sefi.attention_loss import REDUCTION, SUMMED, WEIGHT, AttentionLoss
from ..dreammatcher.sefi.recipe import NETWORK, TABLE, SefiSettings
from ..dreammatcher.sefi.stages import STAGES
from . import inputs

CATEGORY = "DreamMatcher/SeFi-IDE"
SEFI = ("DM_SEFI", {"tooltip": "From SeFi Train (DreamMatcher) or SeFi Load (DreamMatcher)."})
ALL, SUBJECT = "all tokens", "the word's own"
WEIGHT_INPUT = inputs.number("FLOAT", WEIGHT, 0.0, 1000.0, "How strongly the word's attention is drawn to the class word's. Less "
                                                           "overfits the picture, more forgets the subject.", 1e-4)
REDUCTION_INPUT = (list(SUMMED), {"default": REDUCTION, "tooltip":
                                  "How the differences of attention maps are summed up. The paper does not say."})
COMPARED = ([ALL, SUBJECT], {"default": ALL, "tooltip": "Which tokens' attention is compared."})


class DreamMatcherSeFiTrain:
    TITLE = "SeFi Train (DreamMatcher)"
    DESCRIPTION = ("Teaches one word from one picture: ten vectors, two for each stage of sampling. The model stays as it is. No "
                   "official code exists; what the project page does not say is inferred.")
    CATEGORY = CATEGORY
    FUNCTION = "learn"
    RETURN_TYPES = ("DM_SEFI", "IMAGE")
    RETURN_NAMES = ("sefi", "loss")
    OUTPUT_TOOLTIPS = ("For SeFi Prompt (DreamMatcher), SeFi Apply (DreamMatcher) and SeFi Save (DreamMatcher).",
                       "The loss of every step.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **inputs.TRAINED,
            "image": ("IMAGE", {"tooltip": "One picture. A transparent background is not learned."}),
            "identifier": inputs.text("<me>", "The word that will mean the subject."),
            "class_word": inputs.text("toy", "What it is, in one word of one token: person, dog, toy."),
            "reference_prompt": inputs.text("a photo of a toy", "The picture's prompt with the class word: for faces, a photo of "
                                                                "the face of person."),
            "resolution": inputs.resolution("512 for SD1.x, 128 for Toybox."),
            "steps": inputs.steps(600, "Steps of learning. Its ancestor takes 600."),
            "rate": inputs.rate(1e-4, f"{inputs.RATE_IS} 0.0001 for the network, 0.005 for the table."),
            "attention_weight": WEIGHT_INPUT,
            "seed": inputs.SEED,
        }, "optional": {
            "stages": inputs.number("INT", STAGES, 1, 50, "Parts of the schedule with vectors of their own. The paper takes 5."),
            "split": inputs.switch(True, "Vectors of their own for keys and for values, as in the paper."),
            "learns": ([NETWORK, TABLE], {"default": NETWORK, "tooltip":
                       "network: a small network makes the vectors, as in the paper. table: they learn by themselves."}),
            "flip": inputs.switch(True, "Half of the time mirrored. Not where left and right differ."),
            "batch": inputs.batch(),
            "reduction": REDUCTION_INPUT,
            "compared": COMPARED,
            "bfloat16": inputs.BFLOAT16,
            "options": inputs.OPTIONS,
        }}

    def learn(self, model, clip, vae, image, identifier, class_word, reference_prompt, resolution, steps, rate, attention_weight,
              seed, stages=STAGES, split=True, learns=NETWORK, flip=True, batch=1, reduction=REDUCTION, compared=ALL,
              bfloat16=False, options=DEFAULT_OPTIONS):
        subject_set = one_picture(image, identifier, class_word, reference_prompt, resolution, flip)
        loss = AttentionLoss(class_word, attention_weight, reduction, compared == SUBJECT)
        sefi, losses = train_sefi(model, clip, vae, subject_set, SefiSettings(stages, split, learns, rate), loss,
                                  options.training(steps, batch, seed, bfloat16), options)
        return sefi, curve_image(losses, steps)


class DreamMatcherSeFiPrompt:
    TITLE = "SeFi Prompt (DreamMatcher)"
    DESCRIPTION = ("Encodes a prompt with SeFi-IDE's words, once for every stage. Its subject also tells DreamMatcher where the "
                   "word stands.")
    INSTEAD = "it makes the prompt, which ComfyUI cannot pass through; put CLIP Text Encode in its place"
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "DM_SUBJECT")
    RETURN_NAMES = ("conditioning", "subject")
    OUTPUT_TOOLTIPS = ("For the sampler's positive input.", "For Mask (DreamMatcher) and ViCo Apply (DreamMatcher).")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "clip": ("CLIP", {"tooltip": "The model's text encoder."}),
            "prompt": inputs.text("a photo of a <me>", "Write the word of every subject that is connected.", multiline=True),
        }, "optional": {
            "sefi": SEFI,
            "sefi_2": ("DM_SEFI", {"tooltip": "A second subject in the same prompt."}),
            "sefi_3": ("DM_SEFI", {"tooltip": "A third one."}),
        }}

    def encode(self, clip, prompt, sefi=None, sefi_2=None, sefi_3=None):
        return staged_or_plain(clip, prompt, [one for one in (sefi, sefi_2, sefi_3) if one is not None])


class DreamMatcherSeFiApply:
    TITLE = "SeFi Apply (DreamMatcher)"
    DESCRIPTION = ("Makes the model read the prompts of SeFi Prompt (DreamMatcher) stage by stage. Other prompts, and the "
                   "negative one, are read as ever.")
    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For the sampler.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "A model of the kind that the subject was learned on."}),
        }, "optional": {
            "sefi": SEFI,
            **inputs.span("from which stages count.", "to which they count."),
        }}

    def apply(self, model, sefi=None, start=0.0, end=1.0):
        return (apply_or_pass(model, sefi, start, end),)


class DreamMatcherSeFiLoss:
    TITLE = "SeFi Attention Loss (DreamMatcher)"
    DESCRIPTION = ("SeFi-IDE's attention loss for Textual Inversion (DreamMatcher) and Custom Diffusion (DreamMatcher): the new "
                   "word is to be attended to where its class word would be.")
    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = ("DM_ATTENTION_LOSS",)
    RETURN_NAMES = ("attention_loss",)
    OUTPUT_TOOLTIPS = ("For the input attention_loss of the training nodes.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "class_word": inputs.text("toy", "The known word, of one token, to compare the new one with."),
            "attention_weight": WEIGHT_INPUT,
            "reduction": REDUCTION_INPUT,
            "compared": COMPARED,
        }}

    def make(self, class_word, attention_weight, reduction, compared):
        return (AttentionLoss(class_word, attention_weight, reduction, compared == SUBJECT),)


class DreamMatcherSeFiSave(inputs.SaveNode):
    TITLE = "SeFi Save (DreamMatcher)"
    DESCRIPTION = "Saves what SeFi-IDE has learned, and a plain embedding that holds less of it."
    CATEGORY = CATEGORY
    SAVED = {"sefi": SEFI}

    def save(self, sefi=None, name=inputs.DEFAULT_NAME):
        return self.written(sefi, lambda: files.save_sefi(sefi, name))


class DreamMatcherSeFiLoad(inputs.LoadNode):
    TITLE = "SeFi Load (DreamMatcher)"
    DESCRIPTION = "Loads what SeFi-IDE has learned."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("DM_SEFI",)
    RETURN_NAMES = ("sefi",)
    OUTPUT_TOOLTIPS = ("For SeFi Prompt (DreamMatcher) and SeFi Apply (DreamMatcher).",)
    SHELF = files.SHELF

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": (files.SHELF.names(), {"tooltip": "A file of models/sefi or output/sefi."})}}

    def load(self, file):
        return (files.load_sefi(file),)


NODES = (DreamMatcherSeFiTrain, DreamMatcherSeFiPrompt, DreamMatcherSeFiApply, DreamMatcherSeFiLoss, DreamMatcherSeFiSave,
         DreamMatcherSeFiLoad)
