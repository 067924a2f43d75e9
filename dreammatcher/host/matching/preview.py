"""The preview node's pictures and the inspector's data, saved where the host's front end looks for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import folder_paths
import torch
from einops import rearrange
from PIL import Image

from ...matching.inspection import cells, chosen
from ...matching.preview import panels, pixels, sheet
from ...matching.settings import Snapshot, Trace
from ...pictures import card
from ..graph.pictures import Images, rgb, rgb_each, text_image
from ..graph.records import OUTSIDE, RECORDS, Viewer, first_of

INSPECTED_SIDE = 1024  # pixels of the longer side; larger pictures are shown smaller
ENOUGH = 12  # noise levels with a match, below which the preview says that they are few

MIXED = ("these pictures are a list that does not hold those of its run one after the other. Connect the pictures of the sampler "
         "as they are.")
NO_TRACE = ("Nothing was matched: there is no trace. Nothing is connected to it, or Apply (DreamMatcher) or Easy (DreamMatcher) "
            "is bypassed or muted.")


def show(trace: Trace | None, images: torch.Tensor, reference: Images, plain: torch.Tensor | None = None,
         more: Images | None = None, viewer: Viewer = OUTSIDE) -> tuple[torch.Tensor, dict]:
    """IMAGE batch of six panels for each of ``images`` [B, H, W, C], and the node's ui entry.

    ``reference`` and ``more`` are the references' pictures, each of a size of its own. ``plain`` [B|1, H, W, C], the same
    pictures without matching, is for the inspector's slider. What is shown is the run that ``viewer`` leads to. Without a trace,
    for a run that matched nothing and for pictures that there is no record of, there is one picture with the reason on it.
    """
    if trace is None:
        return _without_a_match(NO_TRACE)
    run_records = RECORDS.find(trace.owner, viewer) if trace.owner else None  # without an owner nothing was to be matched
    if run_records is not None and len(run_records.records) != 1:
        return _without_a_match(f"No match to show: {run_records.reason('Apply (DreamMatcher)')}.")
    if run_records is not None:
        trace, = run_records.records
    snapshot = trace.last()
    if snapshot is None:
        return _without_a_match(f"Nothing was matched: {trace.why_nothing_matched() or 'there is no record of a match'}.")
    first = 0 if run_records is None else first_of(viewer.input, len(snapshot.flow), run_records.of_element)
    if first is None:
        return _without_a_match(f"No match to show: {MIXED}")
    images = rgb("images", images)
    references = [*rgb_each("reference", reference), *([] if more is None else rgb_each("reference_2", more))]
    plain = None if plain is None else rgb("plain", plain)
    sources = [rearrange(picture, "h w c -> c h w").float().cpu() for picture in references]
    folder, sheets = Temporary(), []
    shown: list[torch.Tensor] = []
    for index, image in enumerate(images):
        row = panels(snapshot, rearrange(image, "h w c -> c h w").float().cpu(), sources, first + index)
        shown.extend(rearrange(panel, "c h w -> h w c") for panel in row)
        sheets.append(folder.picture("panels", sheet(row)))
    inspected: dict[str, Any] = {
        "results": [folder.picture("result", small(picture)) for picture in images],
        "references": [folder.picture("reference", small(picture)) for picture in references],
        "plain": [] if plain is None else [folder.picture("plain", small(picture)) for picture in plain],
        "steps": [{"sigma": known.sigma, **folder.data("step", [cells(known, first + item) for item in range(len(images))])}
                  for known in recorded(trace, len(images))],
    }
    inspected["remark"] = about_few_levels(trace.noise_levels, len(trace.snapshots))
    return torch.stack(shown), {"images": sheets, "dreammatcher": [inspected]}


def about_few_levels(count: int, matched: int) -> str:
    """A remark on a run that visited ``count`` noise levels between start and end, of which so many were ``matched``, or an empty
    string."""
    if count >= ENOUGH:
        return ""
    if matched >= count:
        return (f"few steps: {count} noise levels lie between start and end, and all of them were matched; with fewer than "
                f"{ENOUGH}, less of the reference is carried over")
    return (f"few steps: {count} noise levels lie between start and end, and the first has nothing to match with yet; with fewer "
            f"than {ENOUGH}, less of the reference is carried over")


def _without_a_match(text: str) -> tuple[torch.Tensor, dict]:
    return text_image(text), {"images": [Temporary().picture("panels", card(text))], "text": [text], "dreammatcher": []}


def recorded(trace: Trace, pictures: int) -> list[Snapshot]:
    """The steps to inspect, in the order they were made."""
    snapshots = [trace.snapshots[sigma] for sigma in sorted(trace.snapshots, reverse=True)]
    return [snapshots[number] for number in chosen(len(snapshots), pictures * snapshots[0].flow[0, 0].numel())]


def small(picture: torch.Tensor) -> Image.Image:
    """``picture`` [H, W, 3] in 0..1, at most 1024 pixels long."""
    image = pixels(rearrange(picture, "h w c -> c h w"))
    image.thumbnail((INSPECTED_SIDE, INSPECTED_SIDE), Image.Resampling.LANCZOS)
    return image


class Temporary:
    """New files in the host's temp folder; each method returns what the front end needs to fetch one."""

    def __init__(self) -> None:
        self.folder = Path(folder_paths.get_temp_directory())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name, self.count = f"dreammatcher_{random.SystemRandom().getrandbits(48):012x}", 0

    def picture(self, kind: str, picture: Image.Image) -> dict:
        entry, path = self._next(kind, "png")
        picture.save(path, compress_level=1)
        return entry

    def data(self, kind: str, value: object) -> dict:
        entry, path = self._next(kind, "json")
        path.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")
        return entry

    def _next(self, kind: str, suffix: str) -> tuple[dict, Path]:
        self.count += 1
        file = f"{self.name}_{kind}_{self.count:04}.{suffix}"
        return {"filename": file, "subfolder": "", "type": "temp"}, self.folder / file
