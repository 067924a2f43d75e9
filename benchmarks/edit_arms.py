"""The arms that ``python -m benchmarks.quality --model z-edit`` compares: an edit model alone, and with Lock (DreamMatcher).

The model is made by ``python -m toybox.making.train_edit``. Its reference comes by ComfyUI's own ReferenceLatent.
"""

from __future__ import annotations

from types import SimpleNamespace

from toybox.evaluation import Case

from .arms import true_mask
from .toybox_runner import Prompted, ToyboxRunner

NO_REFERENCE, IN_SEQUENCE, LOCKED = "no reference", "reference in the sequence", "+ Lock"
VALUES = "+ Lock by values"


def prepare(runner: ToyboxRunner, case: Case) -> SimpleNamespace:
    """Reference and prompts of a case; nothing is inverted. ``target`` and ``negative`` show the reference."""
    from comfy_extras.nodes_edit_model import ReferenceLatent

    picture, parts = case.reference()
    latent = runner.encode(picture)
    bare, empty = (runner.prompt(text)[0] for text in (case.prompt(), ""))
    target, negative = (ReferenceLatent.execute(prompt, latent).result[0] for prompt in (bare, empty))
    return SimpleNamespace(picture=picture, parts=parts, target=target, negative=negative, bare=bare, empty=empty)


def locked(runner: ToyboxRunner, ready: SimpleNamespace | None = None, layers: str = "", way: str = "attention",
           **settings):
    """The model with a lock as new nodes have it but for what is given; of ``ready`` it takes the reference's true mask."""
    chosen = runner.module("dreammatcher.matching.locking").LockSettings(way=way, **settings)
    mask = None if ready is None else true_mask(ready)
    return runner.module("dreammatcher.host.matching.lock").lock(runner.model, chosen, mask, layers=layers)[0]


def arms(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    return {
        NO_REFERENCE: Prompted(runner.model, ready.bare, ready.empty),
        IN_SEQUENCE: runner.model,
        VALUES: locked(runner, way="values"),
        f"{VALUES} in the last quarter": locked(runner, layers=last_quarter(runner), way="values"),
        LOCKED: locked(runner),
    }


def last_quarter(runner: ToyboxRunner) -> str:
    """The numbers of these blocks, as Lock takes them."""
    backbone = runner.module("dreammatcher.host.model.backbone").backbone_of(runner.model.model)
    return ",".join(str(number) for _, number, _ in backbone.chosen(""))


def parts(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """Lock by its way, the blocks that are locked, its span, its strength, and how strictly a match is trusted."""
    backbone = runner.module("dreammatcher.host.model.backbone").backbone_of(runner.model.model)
    blocks = [str(number) for number in range(backbone.taps[-1], backbone.blocks)]
    fewer = {f"{way} in the last {count} of {backbone.blocks} blocks": locked(runner, layers=",".join(blocks[-count:]), way=way)
             for way in ("attention", "values") for count in range(len(blocks), 0, -1)}
    return {
        NO_REFERENCE: Prompted(runner.model, ready.bare, ready.empty),
        IN_SEQUENCE: runner.model,
        "a negative prompt without a reference": Prompted(runner.model, ready.target, ready.empty),
        **fewer,
        "strength 0.1": locked(runner, strength=0.1),
        "strength 0.5": locked(runner, strength=0.5),
        "start 0": locked(runner, start=0.0),
        "start 0.3": locked(runner, start=0.3),
        "similarity 0": locked(runner, similarity=0.0),
        "similarity 0.4": locked(runner, similarity=0.4),
        "cycle_threshold 0.2": locked(runner, threshold=0.2),
        "the reference's MASK": locked(runner, ready),
    }


STUDIES = {"arms": arms, "parts": parts}
