"""Inputs that nodes share, each declared once, and the bases of the nodes that train, save and load.

A declaration is ComfyUI's own: a type or a list of choices, and what the widget and its tooltip need. Functions take the texts
and limits in which nodes differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from ..dreammatcher.host.graph.files import Shelf
from ..dreammatcher.host.graph.notes import not_connected
from ..dreammatcher.training.settings import LARGEST_SEED

Input = tuple[Any, dict[str, Any]]

MATCHING, TRAINING = "DreamMatcher", "DreamMatcher/training"  # menus of several files


def number(kind: str, default: float, low: float, high: float, tip: str, step: float | None = None) -> Input:
    """A widget of the kind INT or FLOAT."""
    return kind, {"default": default, "min": low, "max": high, "tooltip": tip, **({"step": step} if step else {})}


def share(default: float, tip: str, high: float = 1.0) -> Input:
    """A number from 0 on, in hundredths."""
    return number("FLOAT", default, 0.0, high, tip, 0.01)


def text(default: str, tip: str, **more: bool) -> Input:
    return "STRING", {"default": default, "tooltip": tip, **more}


def switch(default: bool, tip: str) -> Input:
    return "BOOLEAN", {"default": default, "tooltip": tip}


# what is applied while sampling

def strength(tip: str, high: float = 1.0) -> dict[str, Input]:
    return {"strength": share(1.0, tip, high)}


def span(begins: str, stops: str, start: float = 0.0) -> dict[str, Input]:
    """The shares of the schedule between which a method is at work: what each end means, and where it begins by default."""
    return {"start": share(start, f"Share of the schedule {begins}"), "end": share(1.0, f"Share of the schedule {stops}")}


STRENGTHS = {f"strength_{name}": number("FLOAT", 1.0, -10.0, 10.0, f"How much of it the {who} takes.", 0.05)
             for name, who in (("model", "model"), ("clip", "text encoder"))}


def subject_mask(which: str = "the") -> Input:
    return "MASK", {"tooltip": f"White where the subject is in {which} reference: carried over, or else matches stay inside."}


BOTH_PROMPTS: dict[str, Input] = {
    "reference_prompt": text("a photo of a dog", "Describes the reference photo."),
    "prompt": text("a photo of a dog on the beach", "The picture you want.", multiline=True, dynamicPrompts=True),
    "subject_words": text("dog", "The words that name the subject; they must stand in both prompts. Singular and plural count as "
                                 "the same word. Empty, for prompts of tags: the words that both share."),
}
SUBJECTS: dict[str, Input] = {
    "reference_subject": ("DM_SUBJECT", {"tooltip": "Instead of a mask: the subject's words in the reference's prompt. May stay "
                                                    "free where Subject (DreamMatcher) made that prompt."}),
    "target_subject": ("DM_SUBJECT", {"tooltip": "Instead of a mask: the subject's words in the prompt of the new picture."}),
}


# what a training takes

CLIP: Input = ("CLIP", {"tooltip": "Its text encoder."})
VAE: Input = ("VAE", {"tooltip": "Its autoencoder."})
TRAINED: dict[str, Input] = {
    "model": ("MODEL", {"tooltip": "An SD1.x, SD2.x or SDXL model. LoRAs on it are seen, not changed."}),
    "clip": CLIP,
    "vae": VAE,
}
TRAINING_SET: Input = ("DM_TRAINING_SET", {"tooltip": "The subject's pictures."})
SEED = number("INT", 0, 0, LARGEST_SEED, "The same seed gives the same result.")
INITIAL_WORD = text("toy", "A coarse word for the subject, from which learning begins.")
RANK = number("INT", 4, 1, 256, "Size of the LoRA.")
BFLOAT16 = switch(False, "Compute in bfloat16: less memory and time, on cards and processors that have it.")
OPTIONS: Input = ("DM_TRAINING_OPTIONS", {"tooltip": "From Training Options (DreamMatcher): what is seldom changed."})
KEEP_EVERY = number("INT", 0, 0, 100_000, "Steps after which what is learned is saved, with a row of samples in a sheet; then "
                    "also when it is stopped. 0 saves nothing on the way.")
ATTENTION_LOSS: Input = ("DM_ATTENTION_LOSS", {
    "tooltip": "From SeFi Attention Loss (DreamMatcher): keeps the word on the subject."})
WORD_RATE = number("FLOAT", 0.0, 0.0, 1.0, "Custom Diffusion: how far the word moves in a step. 0: as far as rate says, as in "
                   "the authors' code. Toybox takes 0.02.", 1e-7)


def steps(default: int, tip: str = "Steps of learning.", most: int = 100_000) -> Input:
    return number("INT", default, 1, most, tip)


RATE_IS = "Learning rate: how far it moves in a step. Too high spoils pictures, too low learns little."


def rate(default: float, tip: str, least: float = 1e-7) -> Input:
    """A learning rate: how far something moves in a step; the widget goes by ``least``."""
    return number("FLOAT", default, least, 1.0, tip, least)


def auto_rate(tip: str, least: float = 1e-7) -> Input:
    """A learning rate, where 0 is one that suits the method and the model."""
    return number("FLOAT", 0.0, 0.0, 1.0, f"{RATE_IS} 0: {tip}", least)


def batch(default: int = 1, tip: str = "Pictures in a step.") -> Input:
    return number("INT", default, 1, 64, tip)


def auto_batch(usual: int = 1, who: str = "Pictures in a step.") -> Input:
    """Pictures in a step, where 0 is the method's own ``usual`` number."""
    return number("INT", 0, 0, 64, f"{who} 0: {usual}, one after the other where memory needs that.")


def resolution(tip: str) -> Input:
    return number("INT", 512, 64, 4096, f"What the model was made for: {tip}", 64)


def auto_resolution(tip: str) -> Input:
    return number("INT", 0, 0, 4096, f"0: what the model was made for, {tip}", 64)


def vectors(tip: str) -> Input:
    return number("INT", 1, 1, 32, tip)


def begin_from(more: str = "") -> Input:
    """An input for something learned before, from which a training begins."""
    said = ("Begins from what was learned before, with a fresh optimiser: from a training, Choose (DreamMatcher) or Load Learned "
            "(DreamMatcher). Give the model without it.")
    return "DM_LEARNED", {"tooltip": f"{said} {more}".strip()}


def prior(more: str = "") -> dict[str, Input]:
    """Class pictures and their weight, about which ``more`` may be said."""
    return {
        "prior_set": ("DM_TRAINING_SET", {"tooltip": "Pictures of the class, best made by the model itself: they keep it from "
                                                     "forgetting what other dogs look like."}),
        "prior_weight": number("FLOAT", 1.0, 0.0, 100.0, f"How much the class's pictures count. The paper uses 1.{more}", 0.05),
    }


class TrainingNode:
    """Base of the nodes whose method ``learn`` gives the model and text encoder that learned."""

    CATEGORY = TRAINING
    FUNCTION = "learn"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("MODEL", "CLIP", "DM_LEARNED", "IMAGE")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("model", "clip", "learned", "loss")
    OUTPUT_TOOLTIPS: ClassVar[tuple[str, ...]] = (
        "The model with what was learned.", "The text encoder with what was learned.",
        "What was learned, to save or to apply to another model.", "The loss of every step.")


class OptionsNode:
    """Base of the nodes whose method ``make`` gives options to the training nodes."""

    CATEGORY = TRAINING
    FUNCTION = "make"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("DM_TRAINING_OPTIONS",)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("options",)
    OUTPUT_TOOLTIPS: ClassVar[tuple[str, ...]] = ("For the training nodes.",)


# files

DEFAULT_NAME = "my_subject"
NAME = text(DEFAULT_NAME, "Name of the file. One that is there is not overwritten: a number is added.")


def nothing_saved(name: str) -> dict[str, Any]:
    """The output of a saving node whose input ``name`` is missing, which the node says."""
    return {"ui": {"text": [not_connected(name, "the node in front", "nothing is saved")]}, "result": ("",)}


class SaveNode:
    """Base of the nodes whose method ``save`` writes what was learned under a name. ``SAVED`` is the input that it comes by."""

    FUNCTION = "save"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("file",)
    OUTPUT_TOOLTIPS = ("Name of the file.",)
    OUTPUT_NODE = True
    SAVED: ClassVar[dict[str, Input]]

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": NAME}, "optional": cls.SAVED}

    def written(self, learned: Any, write: Callable[[], tuple[Path, str]]) -> dict[str, Any]:
        """The node's output: the name of the file that ``write`` makes, and what it says; or that nothing was connected."""
        if learned is None:
            return nothing_saved(*self.SAVED)
        path, how = write()
        return {"ui": {"text": [how]}, "result": (path.name,)}


class LoadNode:
    """Base of the nodes whose method ``load`` reads a file of the shelf ``SHELF``."""

    FUNCTION = "load"
    SHELF: ClassVar[Shelf]

    @classmethod
    def IS_CHANGED(cls, file, **_):
        return cls.SHELF.changes(file)
