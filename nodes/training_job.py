"""The node that writes a training to be run outside of the graph."""

from __future__ import annotations

from ..dreammatcher.host.training.auto import counted, numbers_for
from ..dreammatcher.host.training.job import checkpoints, write_job
from ..dreammatcher.host.training.learn import DEFAULT_OPTIONS
from ..dreammatcher.training.job import METHODS, Choices
from . import inputs


class DreamMatcherTrainingJob:
    TITLE = "Training Job (DreamMatcher)"
    DESCRIPTION = ("Writes a training to a folder instead of running it: for a terminal, several cards, or a cluster. It says "
                   "which command runs it.")
    CATEGORY = inputs.TRAINING
    FUNCTION = "write"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("job",)
    OUTPUT_TOOLTIPS = ("Path of the job's file.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "ckpt_name": (checkpoints(), {"tooltip": "The checkpoint that learns. LoRAs of the graph have no part in it."}),
            "training_set": ("DM_TRAINING_SET", {"tooltip": "The subject's pictures. They are written beside the job."}),
            "method": (list(METHODS), {"default": METHODS[0], "tooltip": "How it is learned, as the node of that name does."}),
            "name": inputs.text(inputs.DEFAULT_NAME, "Name of the job's folder and of the file that is learned."),
            "steps": inputs.steps(500),
            "rate": inputs.auto_rate("0.0001 for a LoRA, 0.000005 for full, 0.005 for a word, 0.00001 for each picture of Custom "
                                     "Diffusion."),
            "seed": inputs.SEED,
        }, "optional": {
            **inputs.prior(),
            "batch": inputs.number("INT", 0, 0, 64, "Pictures in a step of each process: two processes learn from twice as many. "
                                                    "0: 1, or 2 for Custom Diffusion."),
            "rank": inputs.RANK,
            "text_encoder": inputs.switch(False, "DreamBooth: teach the text encoder too."),
            "masked": inputs.switch(False, "DreamBooth: learn only what is white in the pictures' masks, not their backgrounds."),
            "initial_word": inputs.text("", "Where a new word begins; empty: the class word."),
            "vectors": inputs.vectors("Textual Inversion: tokens that the word takes."),
            "sizes": inputs.switch(True, "Custom Diffusion: learn every picture at several sizes."),
            "bfloat16": inputs.BFLOAT16,
            "options": inputs.OPTIONS,
            "word_rate": inputs.WORD_RATE,
            "begin_from": inputs.begin_from("It is written beside the job."),
        }}

    def write(self, ckpt_name, training_set, method, name, steps, rate, seed, prior_set=None, prior_weight=1.0, batch=0, rank=4,
              text_encoder=False, masked=False, initial_word="", vectors=1, sizes=True, bfloat16=False, options=DEFAULT_OPTIONS,
              word_rate=0.0, begin_from=None):
        numbers, options = numbers_for(method, None, rate, batch, options, text_encoder,
                                       counted(training_set, prior_set, prior_weight))
        choices = Choices(numbers.rate, prior_weight, rank, text_encoder, masked, initial_word.strip(), vectors, sizes, word_rate)
        path, how = write_job(ckpt_name, training_set, prior_set, method, name, choices,
                              options.training(steps, numbers.batch, seed, bfloat16), options, begin_from)
        return {"ui": {"text": [how]}, "result": (str(path),)}


NODES = (DreamMatcherTrainingJob,)
