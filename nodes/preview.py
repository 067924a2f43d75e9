"""The node that shows what was matched."""

from __future__ import annotations

from ..dreammatcher.host.preview import show
from .reference import CATEGORY


class DreamMatcherPreview:
    TITLE = "DreamMatcher Preview"
    DESCRIPTION = ("Shows the match behind each sampled picture: reference foreground, target foreground, confidence, flow "
                   "as a colour wheel, the reference warped onto the result, and lines between matched points.")
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
            "reference": ("IMAGE", {"tooltip": "The reference picture; of combined references, a batch in their order."}),
        }}

    def preview(self, trace, images, reference):
        made, shown = show(trace, images, reference)
        return {"ui": shown, "result": (made,)}


NODES = (DreamMatcherPreview,)
