"""The arms that ``python -m benchmarks.quality --model z`` compares on the transformer."""

from __future__ import annotations

from types import SimpleNamespace

from . import rivals
from .arms import BEST, EASY, MASKED, MATCHED, PLAIN, begins, true_mask
from .toybox_runner import ToyboxRunner

COPIED = "K+V copied"


def arms(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    mask = {"reference_mask": true_mask(ready)}
    return {
        PLAIN: runner.model,
        COPIED: rivals.copied(runner, ready),
        MATCHED: runner.matched(ready),
        BEST: runner.best(ready),
        EASY: runner.easy(ready),
        f"{BEST}, with a MASK": runner.best(ready, mask),
        MASKED: runner.easy(ready, mask),
    }


def parts(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """Easy with a MASK by the blocks whose values are taken, where matching begins, and what guidance adds."""
    mask = {"reference_mask": true_mask(ready)}
    backbone = runner.module("dreammatcher.host.model.backbone").backbone_of(runner.model.model)
    blocks = [str(number) for _, number, _ in backbone.matched]

    def led(weight: float = 1.5, start: float = 0.2, layers: str = "", **more):
        model = runner.best(ready, mask, layers=layers, start=start, **more)
        return runner.guided(model, mode="inside", weight=weight, start=start) if weight else model

    def last(count: int) -> str:
        return ",".join(blocks[-count:])

    return {
        PLAIN: runner.model,
        **{f"the last {count} of {len(backbone.readers)} blocks": led(layers=last(count)) for count in (4, 3, 2, 1)},
        **{f"the last 2, start {start:g}": led(layers=last(2), start=start) for start in (0.0, 0.1, 0.3)},
        "the last 2, words alone": runner.guided(runner.best(ready, layers=last(2)), mode="inside", weight=1.5, start=0.2),
        "the last 2, guidance of weight 2": led(2.0, layers=last(2)),
        "the last 2, no guidance": led(0.0, layers=last(2)),
        "every second block": led(layers=",".join(blocks[::2])),
        "sharpness 0": led(match={"sharpness": 0.0}),
        "the match of one evaluation kept for two": led(match={"every": 2}),
    }


STUDIES = {"arms": arms, "parts": parts, "begins": begins}
