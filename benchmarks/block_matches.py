"""``python -m benchmarks.block_matches``: in which block of Toybox-Z, and by which of its tensors, a subject's parts are matched.

Unseen subjects, each in two poses and scenes, with the caption "a photo of a CLASS" and the same noise. Every target cell of the
subject takes the source cell of the subject that is nearest by cosine; the table has the share that shows the same part, by noise
level. It needs a ComfyUI that knows Z-Image (COMFYUI_PATH).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from harness.boot import Host
from harness.library import ROOT
from toybox.draw import render
from toybox.making.material import middles
from toybox.world import CLASSES, random_pose, random_scene, unseen_subject

from .tables import markdown
from .toybox_runner import ToyboxRunner

SIDE, FIRST, SIGMAS = 16, 50_000, (0.2, 0.4, 0.6, 0.8)
VALUE, KEY, QUERY, OUTPUT = "value", "key, not rotated", "query, not rotated", "attention output"
MODULATED, BLOCK = "AdaLN-modulated input", "block input"
#: tensor and block -> [N, cells, C]
Tensors = dict[tuple[str, int], torch.Tensor]


def same_part(target: torch.Tensor, source: torch.Tensor, wanted: torch.Tensor, offered: torch.Tensor) -> float:
    """Share of the target's cells [N, cells, C] whose nearest of the source's cells shows the same part.

    ``wanted`` and ``offered`` int64 [N, cells] are the parts; 0 is the background, which takes no part on either side.
    """
    here, there = (F.normalize(cells - cells.mean(1, keepdim=True), dim=-1) for cells in (target.float(), source.float()))
    likeness = (here @ there.mT).masked_fill((offered == 0)[:, None], -torch.inf)
    found = offered.gather(1, likeness.argmax(-1))
    return float((found == wanted)[wanted > 0].float().mean())


def chance(wanted: torch.Tensor, offered: torch.Tensor) -> float:
    """The share that :func:`same_part` has for cells drawn at random, the mean over the pictures."""
    shares = [(there[there > 0][:, None] == here[here > 0]).float().mean() for here, there in zip(wanted, offered)]
    return float(torch.stack(shares).mean())


@contextmanager
def kept(blocks: Any, cells: int) -> Iterator[Tensors]:
    """Keeps the tensors of the picture tokens, the last of a sequence, in every block of the calls made inside."""
    tensors: Tensors = {}
    removers = []

    def keep(module: torch.nn.Module, name: str, number: int, of: Callable) -> None:
        def hook(_module, inputs, output):
            tensors[name, number] = of(inputs, output)[:, -cells:].float()

        removers.append(module.register_forward_hook(hook))

    for number, block in enumerate(blocks):
        attention = block.attention
        width = attention.n_local_kv_heads * attention.head_dim
        keep(block, BLOCK, number, lambda inputs, _: inputs[0])
        keep(attention, MODULATED, number, lambda inputs, _: inputs[0])
        keep(attention.qkv, VALUE, number, lambda _, output, width=width: output[..., -width:])
        keep(attention.qkv, KEY, number, lambda _, output, width=width: output[..., -2 * width:-width])
        keep(attention.qkv, QUERY, number, lambda _, output, width=width: output[..., :-2 * width])
        keep(attention.out, OUTPUT, number, lambda inputs, _: inputs[0])
    try:
        yield tensors
    finally:
        for remover in removers:
            remover.remove()


def run(runner: ToyboxRunner, count: int) -> tuple[dict[float, dict[str, dict[str, float]]], float]:
    """Sigma -> tensor -> block -> :func:`same_part` over ``count`` subjects, and what is had by chance."""
    rng, network = random.Random("matches"), runner.model.model.diffusion_model
    latents: list[list[torch.Tensor]] = [[], []]
    parts: list[list[torch.Tensor]] = [[], []]
    contexts = []
    with torch.inference_mode():
        for number in range(count):
            subject = unseen_subject(FIRST + number, CLASSES[number % len(CLASSES)])
            for number_of_view in range(2):
                picture, labels = render(subject, random_pose(rng), random_scene(rng))
                latents[number_of_view].append(runner.encode(picture)["samples"])
                parts[number_of_view].append(torch.from_numpy(labels).long())
            contexts.append(runner.prompt(f"a photo of a {subject.kind}")[0][0][0])
        context = torch.cat(contexts)
        offered, wanted = (middles(torch.stack(labels), SIDE).flatten(1) for labels in parts)
        noise = torch.randn((count, *latents[0][0].shape[1:]), generator=torch.Generator().manual_seed(1))
        table: dict[float, dict[str, dict[str, float]]] = {}
        for sigma in SIGMAS:
            views = []
            for view in latents:
                with kept(network.layers, SIDE * SIDE) as tensors:
                    network(torch.lerp(torch.cat(view), noise, sigma), torch.full((count,), sigma), context=context,
                            num_tokens=context.shape[1])
                views.append(dict(tensors))
            rows = table.setdefault(sigma, {})
            for (name, block), target in views[1].items():
                rows.setdefault(name, {})[str(block)] = same_part(target, views[0][name, block], wanted, offered)
    return table, chance(wanted, offered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--weights", type=Path, help="a Toybox-Z file other than the shipped one")
    options = parser.parse_args()
    runner = ToyboxRunner(Host(ROOT / "build" / "host"), options.weights, kind="z")
    table, by_chance = run(runner, options.subjects)
    for sigma, rows in table.items():
        columns: Mapping[str, tuple[str, int]] = {block: (block, 2) for block in next(iter(rows.values()))}
        print(f"{markdown(rows, columns, f'sigma {sigma}, block')}\n")
    print(f"chance {by_chance:.2f}")


if __name__ == "__main__":
    main()
