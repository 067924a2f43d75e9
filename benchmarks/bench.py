"""``make bench``: what a step costs, against the plain model and against the official way, on random weights of real sizes.

All arms of a scene run in one process through the host's own sampler, in turn, step times from its callback; ratios are
medians over steps. Peak memory is that of a whole run above what is held before it, of the device on CUDA, of the process
on Linux. Writes build/bench.json, one entry per scene, and prints the README's table.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from harness.boot import Host
from harness.library import ROOT

from .official import official_model
from .workshop import CACHED, FAST, FIRST, OFFICIAL, PAPER, PLAIN, SCENES, Workshop

FILE = ROOT / "build" / "bench.json"


def arms(shop: Workshop) -> dict[str, Callable[[], object]]:
    """Makers of the model of each arm; ``first picture`` gets an empty store each time."""
    FeatureStore = shop.module("dreammatcher.features").FeatureStore
    cached = shop.matched(shop.kept)
    return {
        PLAIN: lambda: shop.model,
        FIRST: lambda: shop.matched(FeatureStore(capacity=1 << 40)),
        CACHED: lambda: cached,
        FAST: lambda: shop.guided(cached, "fast"),
        PAPER: lambda: shop.guided(cached, "paper"),
        OFFICIAL: lambda: official_model(shop),
    }


class Peak:
    """Bytes that a run needs above what is held before it; None where this machine does not tell."""

    def __init__(self, device: torch.device):
        self.cuda, self.extra = device.type == "cuda", None

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif STATUS.exists():
            if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
                libc.malloc_trim(0)  # what is free goes back to the system, or a run could take it unseen
            CLEAR.write_text("5")  # the high-water mark starts again from what is resident
            self.before = high_water()
        return self

    def __exit__(self, *_) -> None:
        if self.cuda:
            self.extra = torch.cuda.max_memory_allocated() - self.before
        elif STATUS.exists():
            self.extra = high_water() - self.before


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def high_water() -> int:
    return 1024 * int(next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def import_seconds() -> float:
    """What the pack adds to the host's start: its modules once more, under another name."""
    spec = importlib.util.spec_from_file_location("dreammatcher_again", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    started = time.perf_counter()
    spec.loader.exec_module(module)
    return round(time.perf_counter() - started, 3)


def measure(shop: Workshop, rounds: int) -> dict[str, dict]:
    """Of each arm: seconds, median ratio to the plain step beside it, seconds to the end of the first step, peak memory.

    The first step of a run warms up and has nothing to match: it is in no ratio.
    """
    made = {name: make for name, make in arms(shop).items() if name in shop.scene.arms}
    if not shop.kept.rows:
        shop.seconds(made[CACHED]())  # fills the store
    times: dict[str, list[list[float]]] = {name: [] for name in made}
    memory: dict[str, list[int | None]] = {name: [] for name in made}
    for number in range(rounds):
        for name, make in made.items():
            model = make()
            with Peak(shop.device) as peak:
                times[name].append(shop.seconds(model))
            memory[name].append(peak.extra)
            print(f"round {number + 1}, {name}: {statistics.median(times[name][-1][1:]):.2f} s per step", flush=True)
    plain = times[PLAIN]
    return {name: {
        "seconds": round(statistics.median(value for run in runs for value in run[1:]), 3),
        "ratio": round(statistics.median(value / base for run, base_run in zip(runs, plain)
                                         for value, base in zip(run[1:], base_run[1:])), 3),
        "first_step": round(statistics.median(run[0] for run in runs), 3),
        "steps": sum(len(run) - 1 for run in runs),
        "peak_bytes": max((value for value in memory[name] if value is not None), default=None),
    } for name, runs in times.items()}


def match_seconds(shop: Workshop) -> dict[str, float]:
    """The match alone at the finest grid, descriptors of the real widths."""
    correspondence, descriptors = shop.module("dreammatcher.correspondence"), shop.module("dreammatcher.descriptors")
    structure = shop.module("dreammatcher.host.structure")
    finest = min(structure.structure_of(shop.model.model).self_attention.values())
    side = structure.halved((shop.side, shop.side), finest)[0]
    levels = [torch.randn(1, 1280, side // 2, side // 2, device=shop.device),
              torch.randn(1, 640, side, side, device=shop.device)]
    found = {}
    for pca in (256, 64, None):
        started = time.perf_counter()
        source, target = descriptors.descriptors(levels, [level + 0.1 for level in levels], pca=pca)
        found[f"descriptors, pca {pca or 'off'}"] = round(time.perf_counter() - started, 3)
        started = time.perf_counter()
        correspondence.match(source, target)
        found[f"match at {side}x{side}, pca {pca or 'off'}"] = round(time.perf_counter() - started, 3)
    return found


def markdown(results: dict[str, dict]) -> str:
    """One column of ratios per scene; the seconds of its plain step below."""
    names = list(dict.fromkeys(arm for result in results.values() for arm in result["arms"] if arm != PLAIN))
    lines = [f"| step against plain | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    figure = lambda row, key: f"{row[key]:.2f}" if row else "–"  # noqa: E731
    for name in names:
        lines.append(f"| {name} | {' | '.join(figure(result['arms'].get(name), 'ratio') for result in results.values())} |")
    for label, name, key in (("plain step, seconds", PLAIN, "seconds"), ("plain, peak GB", PLAIN, "peak_bytes"),
                             ("cached, peak GB", CACHED, "peak_bytes")):
        lines.append(f"| {label} | {' | '.join(shown(result['arms'][name][key]) for result in results.values())} |")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """Seconds, or bytes as gigabytes."""
    return "–" if value is None else f"{value / 1e9:.1f}" if isinstance(value, int) else f"{value:.1f}"


def best_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the processor has it."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", nargs="*", choices=SCENES, default=list(SCENES))
    parser.add_argument("--arms", nargs="*", help="only these, and plain")
    parser.add_argument("--width", type=int, help="base channels, for a quick look; 320 is the real size")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: half where the processor has it")
    parser.add_argument("--steps", type=int, default=2, help="of a run; the first one is not counted")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    host = Host(ROOT / "build" / "host")
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    dtype = getattr(torch, options.dtype) if options.dtype else best_dtype(device)
    results = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name in options.scenes:
        scene = SCENES[name]
        if options.width:
            scene = replace(scene, width=options.width)
        elif (free := comfy.model_management.get_free_memory(device) / 1e9) < scene.gigabytes * dtype.itemsize / 4:
            print(f"{name}: left out, {free:.0f} GB are free and {scene.gigabytes * dtype.itemsize / 4:.0f} are needed")
            continue
        if options.arms:
            scene = replace(scene, arms=tuple({PLAIN: None, CACHED: None, **dict.fromkeys(options.arms)}))
        with torch.inference_mode():
            shop = Workshop(host, scene, options.steps, dtype, device)
            made = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "dtype": str(dtype),
                    "width": scene.width, "arms": measure(shop, options.rounds), "match": match_seconds(shop),
                    "cache_bytes_per_step": shop.kept.bytes() // max(1, len(shop.kept.rows)),
                    "rows_together": shop.rows_together(), "import_seconds": import_seconds()}
        results[name] = made
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {made['device']}, {made['dtype']}; cache {made['cache_bytes_per_step'] / 1e6:.0f} MB per step; a "
              f"guidance pair and the reference's row in one call take {made['rows_together']:.2f} of what they take in two; "
              f"the pack's import {made['import_seconds']} s; {json.dumps(made['match'])}", flush=True)
        del shop
    print(markdown(results))


if __name__ == "__main__":
    main()
