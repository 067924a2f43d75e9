"""The node that shows what was matched."""

from __future__ import annotations

from ..dreammatcher.host.graph.records import Viewer
from ..dreammatcher.host.matching.preview import show
from . import inputs
from .sets import takes_sets


@takes_sets("reference", "reference_2")
class DreamMatcherPreview:
    TITLE = "Preview (DreamMatcher)"
    DESCRIPTION = ("Shows the match behind each sampled picture: foregrounds, trusted matches, flow as a colour wheel, the "
                   "reference carried over, lines between matched points. Point at the result to see where it was taken from.")
    CATEGORY = inputs.MATCHING
    FUNCTION = "preview"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("panels",)
    OUTPUT_TOOLTIPS = ("Six pictures for each sampled one.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "images": ("IMAGE", {"tooltip": "The sampled pictures: the preview waits for them."}),
            "reference": ("IMAGE", {"tooltip": "The reference picture. Of combined references the first, or a "
                                               "batch of all in their order, without those of weight 0."}),
        }, "optional": {
            "trace": ("DM_TRACE", {"tooltip": "The record of the run: trace of Apply (DreamMatcher) or Easy (DreamMatcher). "
                                           "Without it the node says that there is none."}),
            "plain": ("IMAGE", {"tooltip": "The same pictures made without DreamMatcher, to compare by a slider."}),
            "reference_2": ("IMAGE", {"tooltip": "Of combined references, the second picture, at any size; more as a batch."}),
        }, "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"}}

    @classmethod
    def sets_of(cls, given: dict[str, list]) -> tuple[str, ...]:
        """The references of one trace are a set; of several traces each has its own."""
        return ("reference", "reference_2") if len(given.get("trace", [None])) == 1 else ()

    def preview(self, trace=None, images=None, reference=None, plain=None, reference_2=None, prompt=None, unique_id=""):
        pictures, shown = show(trace, images, reference, plain, reference_2, Viewer(prompt, unique_id, "images"))
        return {"ui": shown, "result": (pictures,)}


NODES = (DreamMatcherPreview,)
