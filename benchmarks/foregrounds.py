"""``python -m benchmarks.foregrounds``: the foreground that is found in a reference, against the true one of Toybox.

Beside it stands the map that a target's foreground is read from, by Otsu's threshold at one noise level. Measures: *IoU* and
*found*, the share of the subject's cells, those that it covers to more than a half; *touching*, the share of what is found that
the subject covers to more than a tenth.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from harness.boot import Host
from harness.library import ROOT
from toybox.evaluation import cases

from .tables import markdown, means
from .toybox_runner import ToyboxRunner

COLUMNS: Mapping[str, tuple[str, int]] = {"iou": ("IoU ↑", 3), "found": ("found ↑", 3), "touching": ("touching ↑", 3)}
FOUND, MAP = "found once, by the features", "map of one noise level, Otsu"


def compared(cells: torch.Tensor, covered: torch.Tensor) -> dict[str, float]:
    """Measures of ``cells`` [1, 1, H, W], 0 or 1, against the share of each that the subject covers."""
    here, true = cells > 0.5, covered > 0.5
    both = (here & true).sum()
    return {"iou": float(both / (here | true).sum()), "found": float(both / true.sum()),
            "touching": float((here & (covered > 0.1)).sum() / here.sum().clamp_min(1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--first", type=int, default=300)
    parser.add_argument("--model", choices=("unet", "z"), default="unet", help="z: the transformer, where the host knows it")
    options = parser.parse_args()
    runner = ToyboxRunner(Host(ROOT / "build" / "host"), kind=options.model)
    foregrounds = runner.module("dreammatcher.host.matching.reference_foreground")
    passes, attention = runner.module("dreammatcher.host.matching.reference_pass"), runner.module("dreammatcher.attention")
    backbone = runner.module("dreammatcher.host.model.backbone").backbone_of(runner.model.model)
    rows: list[dict] = []
    with torch.inference_mode():
        for number, case in enumerate(cases(options.cases, options.first)):
            ready = runner.prepare(case)
            given = runner.model.model, backbone, ready.reference
            found = foregrounds.find_foreground(*given, ready.mask.reference_subject, torch.device("cpu"))
            middle = ready.reference.trajectory.sigmas[len(ready.reference.trajectory.sigmas) // 2]
            seen = passes.reference_pass(*given, "cond", ready.mask.reference_subject, middle, torch.device("cpu"),
                                         frozenset()).subject
            size = tuple(found.shape[-2:])
            covered = F.adaptive_avg_pool2d(torch.from_numpy(ready.parts > 0).float()[None, None], size)
            for name, cells in ((FOUND, found), (MAP, F.interpolate(attention.otsu(seen), size=size))):
                rows.append({"name": name, **compared(cells, covered)})
            print(f"case {number + 1} of {options.cases}", flush=True)
    print(markdown(means(rows, COLUMNS), COLUMNS, "foreground"))


if __name__ == "__main__":
    main()
