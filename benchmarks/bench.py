"""``make bench``: what a step costs, against the plain model and against the official way, on random SD1.5-size weights.

All arms run in one process through the host's own sampler, in turn, step times from its callback; ratios are medians over
steps. Peak memory is that of a whole run above what is held before it, of the device on CUDA, of the process on Linux. Writes
build/bench.json and prints the README's table. Weights are random: only the work counts.
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
from pathlib import Path
from types import SimpleNamespace

import torch

from harness.boot import Host
from harness.library import ROOT

from .official import official_model

FILE = ROOT / "build" / "bench.json"
PLAIN, FIRST, CACHED, FAST, PAPER, OFFICIAL = (
    "plain", "first picture", "cached", "cached + guidance fast", "cached + guidance paper", "the official way")


def random_sd15(width: int, dtype: torch.dtype, device: torch.device):
    """The host's SD1.5 UNet with ``width`` base channels (320: 860 M parameters) and weights that keep activations in range."""
    import comfy.model_patcher
    import comfy.supported_models

    original = comfy.supported_models.SD15
    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": width, "num_res_blocks": [2] * 4,
        "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1, "use_spatial_transformer": True, "use_linear_in_transformer": False,
        "context_dim": 768, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
    }
    family = original(config)
    family.set_inference_dtype(dtype, None)
    base = family.get_model({}, "", device=device)
    torch.manual_seed(0)
    for name, parameter in base.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(float(name.endswith("weight")))
    return comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=torch.device("cpu"))


def prompt(seed: int) -> list:
    return [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed)), {}]]


class Workshop:
    """A model with an inverted reference, and one way to time a run."""

    def __init__(self, host: Host, width: int, side: int, batch: int, steps: int, dtype: torch.dtype, device: torch.device):
        self.module = host.pack().module
        self.model = random_sd15(width, dtype, device)
        self.side, self.batch, self.steps, self.device = side, batch, steps, device
        Subject = self.module("dreammatcher.reference").Subject
        self.mask = self.module("dreammatcher.settings").MaskSettings(
            Subject("dog", "a dog", (5,), 77), Subject("dog", "the dog", (6,), 77))
        latent = {"samples": torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(7))}
        self.reference, _ = self.module("dreammatcher.host.invert").invert_reference(
            self.model, latent, prompt(1), prompt(2), steps, "normal")

    def matched(self, store: object):
        settings = self.module("dreammatcher.settings").ApplySettings(start=0.0)
        return self.module("dreammatcher.host.apply").apply(self.model, self.reference.with_store(store), self.mask, settings)[0]

    def guided(self, model, mode: str):
        settings = self.module("dreammatcher.guidance").GuidanceSettings(1.0, 0.0, 1.0, mode)
        return self.module("dreammatcher.host.guide").guide(model, settings)

    def seconds(self, model) -> list[float]:
        """Of each step but the first, which warms up and has nothing to match."""
        import comfy.sample

        marks = []

        def mark(*_):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

        noise = torch.randn(self.batch, 4, self.side, self.side, generator=torch.Generator().manual_seed(3))
        comfy.sample.sample(model, noise, self.steps, 7.5, "euler", "normal", prompt(3), prompt(2), torch.zeros_like(noise),
                            callback=mark, disable_pbar=True, seed=0)
        return [after - before for before, after in zip(marks, marks[1:])]


def arms(shop: Workshop) -> dict[str, Callable[[], object]]:
    """Makers of the model of each arm; ``first picture`` gets an empty store each time."""
    FeatureStore = shop.module("dreammatcher.features").FeatureStore
    kept = FeatureStore(capacity=1 << 40)
    cached = shop.matched(kept)
    shop.kept = kept
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


def measure(shop: Workshop, names: list[str], rounds: int) -> dict[str, dict]:
    made = {name: make for name, make in arms(shop).items() if name in names or name == PLAIN}
    if CACHED in made or FAST in made or PAPER in made:
        shop.seconds(made.get(CACHED, made.get(FAST, made.get(PAPER)))())  # fills the store
    times: dict[str, list[list[float]]] = {name: [] for name in made}
    memory: dict[str, list[int | None]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, make in made.items():
            model = make()
            with Peak(shop.device) as peak:
                times[name].append(shop.seconds(model))
            memory[name].append(peak.extra)
            print(f"{name}: {statistics.median(times[name][-1]):.2f} s per step", flush=True)
    plain = times[PLAIN]
    return {name: {
        "seconds": round(statistics.median(value for run in runs for value in run), 3),
        "ratio": round(statistics.median(value / base for run, base_run in zip(runs, plain)
                                         for value, base in zip(run, base_run)), 3),
        "peak_bytes": max((value for value in memory[name] if value is not None), default=None),
    } for name, runs in times.items()}


def match_seconds(shop: Workshop) -> dict[str, float]:
    """The match alone at the two attention grids, descriptors of the real widths."""
    correspondence, descriptors = shop.module("dreammatcher.correspondence"), shop.module("dreammatcher.descriptors")
    levels = [torch.randn(1, 1280, shop.side // 2, shop.side // 2, device=shop.device),
              torch.randn(1, 640, shop.side, shop.side, device=shop.device)]
    found = {}
    for pca in (256, 64, None):
        started = time.perf_counter()
        source, target = descriptors.descriptors(levels, [level + 0.1 for level in levels], pca=pca)
        found[f"descriptors, pca {pca or 'off'}"] = round(time.perf_counter() - started, 3)
        started = time.perf_counter()
        correspondence.match(source, target)
        found[f"match at {shop.side}x{shop.side}, pca {pca or 'off'}"] = round(time.perf_counter() - started, 3)
    return found


def markdown(table: dict[str, dict]) -> str:
    lines = ["| arm | step against plain | seconds per step | peak memory of a run |", "|---|---|---|---|"]
    megabytes = lambda value: "unknown" if value is None else f"{value / 1e6:.0f} MB"  # noqa: E731
    return "\n".join(lines + [f"| {name} | {row['ratio']:.2f} | {row['seconds']:.2f} | {megabytes(row['peak_bytes'])} |"
                              for name, row in table.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=320, help="base channels; 320 is SD1.5")
    parser.add_argument("--side", type=int, default=64, help="latent side; 64 is 512 pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=[PLAIN, FIRST, CACHED, FAST, PAPER, OFFICIAL])
    options = parser.parse_args()
    host = Host(ROOT / "build" / "host")
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    with torch.inference_mode():
        shop = Workshop(host, options.width, options.side, options.batch, options.steps, dtype, device)
        table = measure(shop, options.arms, options.rounds)
        alone = match_seconds(shop)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result = SimpleNamespace(device=name, dtype=str(dtype), side=options.side, batch=options.batch, width=options.width,
                             arms=table, match=alone, cache_bytes_per_step=shop.kept.bytes() // max(1, len(shop.kept.rows)),
                             import_seconds=import_seconds())
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(vars(result), indent=1) + "\n", encoding="utf-8")
    print(markdown(table))
    print(json.dumps(alone), f"cache {result.cache_bytes_per_step / 1e6:.0f} MB per step, pack import "
          f"{result.import_seconds} s, {name}, {dtype}")


if __name__ == "__main__":
    main()
