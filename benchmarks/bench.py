"""``make bench``: what a step costs, against the plain model and against the official way, on random weights of real sizes.

All arms of a case run in one process through the host's own sampler, in turn, step times from its callback; ratios are
medians over steps. Peak memory is that of a whole run above what is held before it, of the device on CUDA, of the process
on Linux. Writes build/bench.json, one entry per case, and prints the table of docs/measured.md.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
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

from . import timing_transformer
from .official import official_model
from .timing_model import (
    ALL,
    BALANCED,
    CACHED,
    CASES,
    FIRST,
    INSIDE,
    OFFICIAL,
    PAPER,
    PLAIN,
    VICO_CACHED,
    VICO_FIRST,
    Clock,
    TimingCase,
    TimingModel,
)
from .timing_transformer import LOCKED, TRANSFORMERS, TimingTransformer, TransformerCase

FILE = ROOT / "build" / "bench.json"
EVERY: dict[str, TimingCase | TransformerCase] = {**CASES, **TRANSFORMERS}


def arms(timing: TimingModel) -> dict[str, Callable[[], object]]:
    """Makers of the model of each arm; ``first picture`` gets an empty store each time."""
    FeatureStore = timing.module("dreammatcher.matching.features").FeatureStore
    cached, balanced, looking = timing.matched(timing.kept), timing.matched(timing.kept, "balanced"), functools.cache(timing.vico)
    locked = {LOCKED: timing.locked} if isinstance(timing, TimingTransformer) else {}
    return {
        PLAIN: lambda: timing.model,
        FIRST: lambda: timing.matched(FeatureStore(capacity=1 << 40)),
        CACHED: lambda: cached,
        INSIDE: lambda: timing.guided(cached, "inside"),
        BALANCED: lambda: balanced,
        PAPER: lambda: timing.guided(balanced, "paper"),
        OFFICIAL: lambda: official_model(timing),
        VICO_FIRST: timing.vico,
        VICO_CACHED: looking,
        **locked,
    }


class Peak:
    """Bytes that a run needs above what is held before it; None where this machine does not tell."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.extra: int | None = None

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
    """Seconds that the pack adds to the host's start, measured by importing its modules once more under another name."""
    spec = importlib.util.spec_from_file_location("dreammatcher_again", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{ROOT} holds no pack")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    started = time.perf_counter()
    spec.loader.exec_module(module)
    return round(time.perf_counter() - started, 3)


def measure(timing: TimingModel, rounds: int) -> dict[str, dict]:
    """For each arm: its seconds, its median ratio to the plain step beside it, and the seconds to the end of the first step.

    The first step of a run warms up and has nothing to match: it is in no ratio.
    """
    makers = {name: make for name, make in arms(timing).items() if name in timing.case.arms}
    if CACHED in makers and not timing.kept.rows:
        timing.seconds(makers[CACHED]())  # fills the store
    if VICO_CACHED in makers:
        timing.seconds(makers[VICO_CACHED]())
    times: dict[str, list[list[float]]] = {name: [] for name in makers}
    names = list(makers)
    for number in range(rounds):
        start = number % len(names)  # every round begins with another arm, or what stands before it would always be the same
        for name in names[start:] + names[:start]:
            times[name].append(timing.seconds(makers[name]()))
            print(f"round {number + 1}, {name}: {statistics.median(times[name][-1][1:]):.2f} s per step", flush=True)
    plain = times[PLAIN]
    return {name: {
        "seconds": round(statistics.median(value for run in runs for value in run[1:]), 3),
        "ratio": round(statistics.median(value / base for run, base_run in zip(runs, plain)
                                         for value, base in zip(run[1:], base_run[1:])), 3),
        "each": [round(value, 2) for run in runs for value in run[1:]],
        "first_step": round(statistics.median(run[0] for run in runs), 3),
    } for name, runs in times.items()}


def peak_bytes(timing: TimingModel) -> dict[str, int | None]:
    """Peak memory of the plain run, a cached one and one in mode paper.

    They are runs of their own, since the measurement slows them down.
    """
    peaks: dict[str, int | None] = {}
    for name, make in arms(timing).items():
        if name in timing.case.arms and name in (PLAIN, CACHED, PAPER):
            with Peak(timing.device) as peak:
                timing.seconds(make())
            peaks[name] = peak.extra
    return peaks


def match_seconds(timing: TimingModel) -> dict[str, float]:
    """The match alone at the finest grid, between the reference's features and the same mirrored."""
    if not timing.kept.rows:
        return {}
    correspondence = timing.module("dreammatcher.matching.correspondence")
    descriptors = timing.module("dreammatcher.matching.descriptors")
    _, row = next(iter(timing.kept.rows.values()))
    one = [scale.to(timing.device) for scale in row.scales]
    other = [scale.flip(-1) for scale in one]
    half = torch.float16 if timing.device.type == "cuda" else torch.float32
    seconds = {}
    for pca in (256, 64, None):
        with Clock(timing.device) as describing:
            source, target = descriptors.descriptors(one, other, pca=pca)
        with Clock(timing.device) as matched:
            correspondence.match(source, target, dtype=half)
        size = "x".join(map(str, source.shape[-2:]))
        seconds[f"descriptors, pca {pca or 'off'}"] = round(describing.seconds, 3)
        seconds[f"match at {size}, pca {pca or 'off'}"] = round(matched.seconds, 3)
    return seconds


def markdown(results: dict[str, dict]) -> str:
    """One column of ratios per case; the seconds of its plain step below."""
    names = list(dict.fromkeys(arm for result in results.values() for arm in result["arms"] if arm != PLAIN))
    lines = [f"| step against plain | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    figure = lambda row, key: f"{row[key]:.2f}" if row else "–"  # noqa: E731
    for name in names:
        lines.append(f"| {name} | {' | '.join(figure(result['arms'].get(name), 'ratio') for result in results.values())} |")
    plain = " | ".join(f"{result['arms'][PLAIN]['seconds']:.2f}" for result in results.values())
    lines.append(f"| plain step, seconds | {plain} |")
    for name in (PLAIN, CACHED, PAPER):
        memory = [result["peak_bytes"].get(name) for result in results.values()]
        if any(memory):
            lines.append(f"| {name}, peak GB | {' | '.join('–' if x is None else f'{x / 1e9:.1f}' for x in memory)} |")
    return "\n".join(lines)


def known_results(here: dict) -> dict[str, dict]:
    """Results of the cases measured earlier on this device and in this precision."""
    if not FILE.exists():
        return {}
    known = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: known[name] for name in EVERY
            if name in known and all(known[name][key] == here[key] for key in ("device", "dtype"))}


def best_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the processor has it."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", nargs="*", choices=EVERY, default=list(EVERY))
    parser.add_argument("--arms", nargs="*", choices=(*ALL, LOCKED), help="only these, plain and cached")
    parser.add_argument("--width", type=int, help="base channels, for a quick look that writes nothing; 320 is a UNet's real "
                                                  "size, 3840 Z-Image's and 3072 Flux.1's")
    parser.add_argument("--blocks", type=int, help="of a transformer; default: as many as half of the free memory holds")
    parser.add_argument("--pixels", type=int, help="side of a transformer's picture, for a quick look that writes nothing")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: half where the processor has it")
    parser.add_argument("--steps", type=int, default=2, help="of a run; the first one is not counted")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--processor-time", action="store_true", help="count the seconds of the processor instead of the wall "
                                                                      "clock's, on a CPU that others use too; writes nothing")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="also measure peaks")
    options = parser.parse_args()
    if options.processor_time:
        Clock.read = staticmethod(time.process_time)
    quick = bool(options.width or options.pixels or options.processor_time)
    host = Host(ROOT / "build" / "host")
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    free = comfy.model_management.get_free_memory(device)
    if device.type == "cpu":
        # the host forms its batches by free memory; what this process keeps for its next run would look taken
        comfy.model_management.get_free_memory = lambda dev=None, torch_free_too=False: (
            (free, free) if torch_free_too else free)
    host.pack()  # what it needs of others is loaded
    dtype = getattr(torch, options.dtype) if options.dtype else best_dtype(device)
    here = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "dtype": str(dtype),
            "import_seconds": import_seconds()}
    results = known_results(here)
    for name in options.scenes:
        case = EVERY[name]
        if isinstance(case, TransformerCase):
            if not timing_transformer.known():
                print(f"{name}: left out, this ComfyUI does not let us into transformers")
                continue
            case = replace(case, blocks=options.blocks or 0, width=options.width or case.width,
                           side=options.pixels // 8 if options.pixels else case.side).fitting(free, dtype)
            print(f"{name}: {case.blocks} of {case.whole} blocks, {case.width} channels, latents {case.side}x{case.side}")
        elif options.width:
            case = replace(case, width=options.width)
        elif free / 1e9 < case.gigabytes * dtype.itemsize / 4:
            print(f"{name}: left out, {free / 1e9:.0f} GB are free and {case.gigabytes * dtype.itemsize / 4:.0f} are needed")
            continue
        if options.arms:
            chosen = tuple({PLAIN: None, CACHED: None, **dict.fromkeys(options.arms)})
            case = replace(case, arms=chosen)
        with torch.inference_mode():
            kind = TimingTransformer if isinstance(case, TransformerCase) else TimingModel
            timing = kind(host, case, options.steps, dtype, device)
            result = {**here, "arms": measure(timing, options.rounds),
                      "peak_bytes": peak_bytes(timing) if options.memory else {},
                      "match": match_seconds(timing),
                      "cache_bytes_per_step": timing.kept.bytes() // max(1, len(timing.kept.rows)),
                      "rows_together": timing.rows_together()}
        results[name] = result
        if not quick:
            FILE.parent.mkdir(parents=True, exist_ok=True)
            FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {result['device']}, {result['dtype']}; cache {result['cache_bytes_per_step'] / 1e6:.0f} MB per step; a "
              f"guidance pair and the reference's row in one call take {result['rows_together']:.2f} of what they take in two; "
              f"the pack's import {result['import_seconds']} s; {json.dumps(result['match'])}", flush=True)
        del timing
    print(markdown(results))


if __name__ == "__main__":
    main()
