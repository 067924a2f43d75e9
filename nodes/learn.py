"""Learning a subject in one node."""

from __future__ import annotations

from ..dreammatcher.host.training.easy import BUDGETS, learn_subject
from ..dreammatcher.host.training.keep import apply_learned, curve_image
from . import inputs
from .sets import takes_sets


@takes_sets("images", "masks")
class DreamMatcherLearn(inputs.TrainingNode):
    TITLE = "Learn (Easy) (DreamMatcher)"
    DESCRIPTION = ("Photos of a subject and what kind of thing it is: the model learns it, as a LoRA with prior preservation. "
                   "Everything else is chosen.")
    RETURN_TYPES, RETURN_NAMES = (*inputs.TrainingNode.RETURN_TYPES, "STRING"), (*inputs.TrainingNode.RETURN_NAMES, "subject")
    OUTPUT_TOOLTIPS = (*inputs.TrainingNode.OUTPUT_TOOLTIPS, "The words for the subject in your prompts.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **inputs.TRAINED,
            "images": ("IMAGE", {"tooltip":
                       "Three to five photos in different places and poses, as a batch or a list. Transparent parts are not "
                       "learned."}),
            "class_word": inputs.text("dog", "What kind of thing it is, as dog or toy."),
            "effort": (list(BUDGETS), {"default": "usual", "tooltip":
                       "quick: 250 steps and 24 class pictures, usual: 500 and 60, thorough: 1200 and 150."}),
            "rate": inputs.auto_rate("0.0001, and 0.002 for Toybox."),
            "seed": inputs.SEED,
        }, "optional": {
            "masks": ("MASK", {"tooltip": "White where the subject is: only that is learned."}),
            "identifier": inputs.text("", "The word that will mean the subject. Empty: a rare one, drawn by the seed."),
            "sample_prompt": inputs.text("", "Drawn roughly on the node while it trains."),
            "keep_every": inputs.KEEP_EVERY,
        }}

    def learn(self, model, clip, vae, images, class_word, effort, rate, seed, masks=None, identifier="", sample_prompt="",
              keep_every=0):
        learned, losses, subject = learn_subject(model, clip, vae, images, class_word, effort, rate, seed, identifier, masks,
                                                 sample_prompt, keep_every)
        outputs = (*apply_learned(model, clip, learned), learned, curve_image(losses, len(losses)), subject)
        return {"ui": {"text": [f"write in prompts: {subject}"]}, "result": outputs}


NODES = (DreamMatcherLearn,)
