"""The node that shows what was matched."""

from __future__ import annotations

from ..dreammatcher.host.preview import show
from .reference import CATEGORY


class DreamMatcherPreview:
    TITLE = "DreamMatcher Preview"
    DESCRIPTION = ("Shows the match behind each sampled picture: foregrounds, trusted matches, flow as a colour wheel, the "
                   "reference carried over, lines between matched points. Point at the result to see where it was taken from.")
    CATEGORY = CATEGORY
    FUNCTION = "preview"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("panels",)
    OUTPUT_TOOLTIPS = ("Six pictures for each sampled one.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "trace": ("DM_TRACE", {"tooltip": "From DreamMatcher Apply."}),
            "images": ("IMAGE", {"tooltip": "The sampled pictures: the preview waits for them."}),
            "reference": ("IMAGE", {"tooltip": "The reference picture; of combined references, a batch in their order, "
                                               "without those of weight 0."}),
        }, "optional": {
            "plain": ("IMAGE", {"tooltip": "The same pictures made without DreamMatcher, to compare by a slider."}),
        }}

    def preview(self, trace, images, reference, plain=None):
        made, shown = show(trace, images, reference, plain)
        return {"ui": shown, "result": (made,)}


NODES = (DreamMatcherPreview,)
