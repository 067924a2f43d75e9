"""``make bench-training``: seconds of a training step and its peak memory, against diffusers' script and ComfyUI's TrainLoraNode.

``--device cuda`` measures SD1.5 at 512 and SDXL at 1024 pixels, batch 1 and 4, in bfloat16 on a card. Every arm runs in a process
of its own, in turn, so that none inherits memory; TrainLoraNode needs a current host (COMFYUI_PATH). Memory is what training
takes above the loaded model, a copy of it that an arm makes included. Beside it stands what this pack tells before a training,
by arithmetic on a model of the same shapes; ``--arithmetic`` prints that alone, for a card that is not at hand. Writes
build/bench_training.json, or build/bench_training_cuda.json for a card.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict

import torch

from harness.boot import Host
from harness.library import ROOT, upstream_path

from .bench import Peak
from .paper_model import attention_of_cards, paper_model
from .training_arms import ARMS, FAMILIES, SIDES, Setting, step_times
from .training_memory import Case, recipe_of

OURS, MARK = "this pack", "measured: "
ARITHMETIC = "this pack, told before"


def measured(name: str, setting: Setting) -> dict:
    """Measures one arm in this process: the seconds of its steps, and its bytes. Of the arithmetic, the bytes alone."""
    host = Host(ROOT / "build" / "host-training")
    with torch.inference_mode():  # as the host runs its nodes
        if name == ARITHMETIC:
            return {"seconds": [], "bytes": by_arithmetic(host, setting)}
        run = ARMS[name](host, setting)
        with Peak(torch.device(setting.device)) as peak:
            seconds = step_times(run, setting.device)
    return {"seconds": seconds, "bytes": peak.extra}


def by_arithmetic(host: Host, setting: Setting) -> int:
    """Bytes that this pack tells before such a training, on a model that has shapes and no memory."""
    module = host.pack().module
    estimate, settings, recipes = (module(f"dreammatcher.{name}") for name in (
        "host.training.estimate", "training.settings", "training.recipe"))
    with torch.inference_mode(False), attention_of_cards() if setting.device == "cuda" else nullcontext():
        model = paper_model(host, setting.kind, setting.checkpointing, setting.width, setting.dtype)
        recipe = recipe_of(host, model, Case("", setting.kind, 8 * setting.side, rank=setting.rank), recipes, settings)
        chosen = settings.TrainingSettings(setting.steps, setting.batch, bfloat16=setting.bfloat16)
        return estimate.need_of(recipe, model, chosen, setting.batch, (setting.side, setting.side)).total


def in_a_process(name: str, setting: Setting) -> dict | None:
    """:func:`measured` in a process of its own; None where that has not enough memory."""
    said = json.dumps(asdict(setting))
    done = subprocess.run([sys.executable, "-m", "benchmarks.bench_training", "--arm", name, "--setting", said], cwd=ROOT,
                          capture_output=True, text=True,
                          env={**os.environ, "COMFYUI_DEVICE": "cpu" if name == ARITHMETIC else setting.device})
    if done.returncode and "OutOfMemoryError" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"{name}: its process ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith(MARK)).removeprefix(MARK))


def compare(setting: Setting, names: list[str], rounds: int) -> dict[str, dict]:
    """For each arm: the median seconds of a step, its ratio to this pack's, and the peak bytes; None for what is not known."""
    runs_by_arm: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names):] + names[:number % len(names)]:
            done = in_a_process(name, setting) if name != ARITHMETIC or not runs_by_arm[name] else None
            if done is not None:
                runs_by_arm[name].append(done)
            if name != ARITHMETIC:
                print(f"round {number + 1}, {name}: " + ("out of memory" if done is None else
                      f"{statistics.median(done['seconds']):.3f} s a step, {(done['bytes'] or 0) / 1e9:.3f} GB"), flush=True)
    times = {name: [value for each in runs for value in each["seconds"]] for name, runs in runs_by_arm.items()}
    seconds = {name: statistics.median(each) if each else None for name, each in times.items()}
    ours = seconds.get(OURS)
    return {name: {"seconds": mine and round(mine, 4), "ratio": round(mine / ours, 3) if mine and ours else None,
                   "bytes": min((each["bytes"] for each in runs_by_arm[name] if each["bytes"]), default=None)}
            for name, mine in seconds.items()}


def markdown(results: dict[str, dict[str, dict]], device: str) -> str:
    lines = ["| setting | trainer | seconds a step | against this pack | peak above the model, GB | how |",
             "|---|---|---|---|---|---|"]
    for title, arms in results.items():
        for name, row in arms.items():
            how = "by arithmetic" if name == ARITHMETIC else f"measured on {device}"
            if name != ARITHMETIC and row["seconds"] is None:
                how = f"out of memory on {device}"
            cells = [_number(row["seconds"], 3), _number(row["ratio"], 2), _number(row["bytes"], 3, 1e9)]
            lines.append(f"| {title} | {name} | {' | '.join(cells)} | {how} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return "–" if value is None else f"{value / unit:.{digits}f}"


def settings_of(options: argparse.Namespace) -> dict[str, Setting]:
    """Each setting under its title. What is left open is what suits the device."""
    card = options.device == "cuda"
    found = {}
    for family in options.family or (list(FAMILIES) if card else ["SD1.5"]):
        for batch in options.batch or ([1, 4] if card else [1]):
            for checkpointing in (False, True):
                side = options.side or SIDES[family]
                bfloat16 = card if options.dtype is None else options.dtype == "bfloat16"
                setting = Setting(side, batch, options.rank, options.width, options.steps or (24 if card else 4), checkpointing,
                                  family, options.device, bfloat16)
                title = (f"{family} {8 * side}x{8 * side}, batch {batch}, {'bfloat16' if bfloat16 else 'float32'}, "
                         f"{'gradient checkpointing' if checkpointing else 'every activation kept'}")
                found[title] = setting
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--family", nargs="*", choices=FAMILIES, help="SD1.5 on a CPU, both on a card")
    parser.add_argument("--side", type=int, help="of the latent; a family's own without it: 64 is 512x512")
    parser.add_argument("--batch", type=int, nargs="*", help="1 on a CPU, 1 and 4 on a card")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a card")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--width", type=int, default=320, help="base channels; 320 is the families' real size")
    parser.add_argument("--steps", type=int, help="of a run; the first one is not counted; 4 on a CPU, 24 on a card")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arms", nargs="*", choices=ARMS, help="only these and this pack")
    parser.add_argument("--arithmetic", action="store_true", help="only what is told before, without a device")
    parser.add_argument("--arm", choices=[*ARMS, ARITHMETIC], help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(MARK + json.dumps(measured(options.arm, Setting(**json.loads(options.setting)))))
        return
    if options.device == "cuda" and not options.arithmetic and not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is no CUDA device here; give --device cpu (with --side 8 --width 32 for a short "
                         "run), or --arithmetic for what this pack tells of a card")
    names = [name for name in ARMS if (name != "TrainLoraNode" or upstream_path())
             and (options.arms is None or name in (OURS, *options.arms))]
    names = [ARITHMETIC] if options.arithmetic else [*names, ARITHMETIC]
    settings = settings_of(options)
    results = {}
    for title, setting in settings.items():
        print(title, flush=True)
        results[title] = compare(setting, names, 1 if options.arithmetic else options.rounds)
    device = torch.cuda.get_device_name() if options.device == "cuda" and torch.cuda.is_available() else "a CPU"
    if options.arms is None and not options.arithmetic:
        file = ROOT / "build" / f"bench_training{'_cuda' if options.device == 'cuda' else ''}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        said = {title: {"device": device, "setting": asdict(setting), "arms": results[title]}
                for title, setting in settings.items()}
        file.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(markdown(results, device))


if __name__ == "__main__":
    main()
