"""The small trained world that ships with the pack."""

from __future__ import annotations

from pathlib import Path

from ..toybox import host, transformer
from ..toybox.picture import reference_picture
from ..toybox.world import CLASSES, SCENES
from . import inputs

CATEGORY = "DreamMatcher/toybox"
FOLDER = Path(__file__).resolve().parent.parent / "toybox"
UNET, TRANSFORMER = "UNet", "transformer"


class ToyboxLoader:
    TITLE = "Toybox Loader"
    DESCRIPTION = ("Loads the tiny model that ships with the pack: 128-pixel drawings of robots, birds, fish, cars and cats. "
                   "For trying graphs without a checkpoint.")
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    OUTPUT_TOOLTIPS = ("UNet of 11 M or transformer of 9 M parameters, 16x16 latents.",
                       "Text encoder with a small vocabulary.", "Autoencoder.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {
            "model": ([UNET, TRANSFORMER], {"default": UNET, "tooltip":
                      "UNet: as SD1.5 is built. transformer: as Z-Image is built, for a ComfyUI that knows it; draw with euler, "
                      "simple and CFG 2."}),
        }}

    def load(self, model=UNET):
        whole, words, embeddings = FOLDER / "model.safetensors", FOLDER / "tokenizer", host.embedding_folders()
        if model == TRANSFORMER:
            return transformer.load(FOLDER / "model_z.safetensors", whole, words, embeddings)
        return host.load(whole, words, embeddings)


class ToyboxReference:
    TITLE = "Toybox Reference"
    DESCRIPTION = "Draws a subject that the Toybox model has never seen, in a pose and a scene."
    CATEGORY = CATEGORY
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE", "MASK")
    OUTPUT_TOOLTIPS = ("The picture, 128x128.", "White where the subject is.")

    @classmethod
    def INPUT_TYPES(cls):
        largest = 0xFFFFFFFFFFFFFFFF
        return {"required": {
            "subject": inputs.number("INT", 1, 0, largest, "Which subject: its colours."),
            "kind": (list(CLASSES), {"default": "robot", "tooltip": "What is drawn: a robot, a bird, a fish, a car or a cat."}),
            "pose": inputs.number("INT", 1, 0, largest, "Which pose."),
            "background": (sorted(SCENES), {"default": "grass", "tooltip": "Where it stands."}),
        }}

    def draw(self, subject, kind, pose, background):
        return reference_picture(subject, kind, pose, background)


NODES = (ToyboxLoader, ToyboxReference)
