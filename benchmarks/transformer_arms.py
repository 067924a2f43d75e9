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
        f"{COPIED} from 0.2": rivals.copied(runner, ready, 0.2),
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

    return {
        PLAIN: runner.model,
        MASKED: led(),
        "start 0": led(start=0.0),
        "start 0.1": led(start=0.1),
        "start 0.3": led(start=0.3),
        "the last two blocks": led(layers=",".join(blocks[-2:])),
        "every second block": led(layers=",".join(blocks[::2])),
        "sharpness 0": led(match={"sharpness": 0.0}),
        "guidance of weight 1": led(1.0),
        "guidance of weight 2": led(2.0),
        "the match of one evaluation kept for two": led(match={"every": 2}),
    }


STUDIES = {"arms": arms, "parts": parts, "begins": begins}
