"""The live preview: now and then, while a picture is made, its clean estimate with the match on top goes to the front end."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import torch

from ...matching.preview import enlarge, overlay, pixels
from ...matching.settings import Snapshot
from ...sizes import single_frame
from ..graph.notes import server as connected
from ..graph.pictures import rough_rgb
from .session import InstalledPlan

OFF, FOREGROUND, TRUSTED = "off", "foreground", "trusted"
EVENT = "dreammatcher.live"
EVERY = 4  # noise levels
SIDE = 256  # pixels of the longer side


@dataclass(frozen=True)
class Live:
    """The kind of live preview, and the node that shows it. Raises ValueError for an unknown ``kind``."""

    kind: str = OFF
    node: str = ""

    def __post_init__(self) -> None:
        if self.kind not in (OFF, FOREGROUND, TRUSTED):
            raise ValueError(f"live_preview: {self.kind!r} is none of {OFF}, {FOREGROUND}, {TRUSTED}")


#: nothing is shown
SILENT = Live()


def watch(model, installed: InstalledPlan, live: Live) -> None:
    """Makes ``model``, which is nobody else's yet, show a plan's match while sampling; "off" adds nothing."""
    if live.kind == OFF:
        return
    formats = model.model.latent_format

    def look(arguments: dict) -> torch.Tensor:
        clean, session, server = arguments["denoised"], installed.holder.session(), connected()
        if session is None or server is None:
            return clean
        clock = session.clock
        if clock.noise_levels_visited % EVERY or (sigma := clock.read(arguments["sigma"])) != clock.sigma:
            return clean
        snapshot = installed.plan.trace.snapshots.get(sigma)
        if snapshot is not None:
            image, text = drawn(clean, formats, snapshot, live.kind)
            server.send_sync(EVENT, {"node": live.node, "image": image, "text": text}, server.client_id)
        return clean

    model.set_model_sampler_post_cfg_function(look)


def drawn(clean: torch.Tensor, formats: object, snapshot: Snapshot, kind: str) -> tuple[str, str]:
    """The first picture of ``clean`` [B, C, h, w], or with frames, with an overlay, as a data URL, and a line about it."""
    mask, confidence = (values[:1].float().cpu() for values in (snapshot.target_mask, snapshot.confidence))
    picture = rough_rgb(single_frame(clean)[0].float().cpu(), formats)
    height, width = (round(SIDE * side / max(picture.shape[-2:])) for side in picture.shape[-2:])
    size = height, width
    shown = overlay(enlarge(picture[None], size)[0], enlarge(mask * confidence if kind == TRUSTED else mask, size))
    file = io.BytesIO()
    pixels(shown).save(file, "JPEG", quality=85)
    share = (mask * confidence).sum() / mask.sum().clamp_min(1e-6)
    return (f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}",
            f"{kind} at sigma {snapshot.sigma:.2f}: {100 * share.item():.0f}% of the subject is matched")
