"""``make bench-training``: seconds of a training step and its peak memory, against diffusers' script and ComfyUI's TrainLoraNode.

Every arm runs in a process of its own, in turn, so that none inherits memory; TrainLoraNode needs a current host (COMFYUI_PATH).
Memory is what training takes above the loaded model, a copy of it that an arm makes included. Writes build/bench_training.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace

import torch

from harness.boot import Host
from harness.library import ROOT, upstream_path

from .bench import Peak
from .training_arms import ARMS, Setting, step_times

FILE = ROOT / "build" / "bench_training.json"
OURS, MARK = "this pack", "measured: "


def measured(name: str, setting: Setting) -> dict:
    """Measures one arm in this process: the seconds of its steps, and its bytes."""
    host = Host(ROOT / "build" / "host-training")
    with torch.inference_mode():  # as the host runs its nodes
        run = ARMS[name](host, setting)
        with Peak(torch.device("cpu")) as peak:
            seconds = step_times(run)
    return {"seconds": seconds, "bytes": peak.extra}


def in_a_process(name: str, setting: Setting) -> dict:
    said = json.dumps(asdict(setting))
    done = subprocess.run([sys.executable, "-m", "benchmarks.bench_training", "--arm", name, "--setting", said],
                          cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith(MARK)).removeprefix(MARK))


def compare(setting: Setting, names: list[str], rounds: int) -> dict[str, dict]:
    """For each arm: the median seconds of a step, its ratio to this pack's, and the peak bytes."""
    runs_by_arm: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names):] + names[:number % len(names)]:
            runs_by_arm[name].append(in_a_process(name, setting))
            print(f"round {number + 1}, {name}: {statistics.median(runs_by_arm[name][-1]['seconds']):.2f} s a step, "
                  f"{(runs_by_arm[name][-1]['bytes'] or 0) / 1e9:.2f} GB", flush=True)
    seconds = {name: statistics.median(value for each in runs for value in each["seconds"]) for name, runs in runs_by_arm.items()}
    return {name: {"seconds": round(seconds[name], 3), "ratio": round(seconds[name] / seconds[OURS], 3),
                   "bytes": min((each["bytes"] for each in runs if each["bytes"]), default=None)}
            for name, runs in runs_by_arm.items()}


def markdown(results: dict[str, dict[str, dict]]) -> str:
    lines = ["| setting | trainer | seconds a step | against this pack | peak above the model, GB |", "|---|---|---|---|---|"]
    for title, arms in results.items():
        for name, row in arms.items():
            memory = "–" if row["bytes"] is None else f"{row['bytes'] / 1e9:.2f}"
            lines.append(f"| {title} | {name} | {row['seconds']:.2f} | {row['ratio']:.2f} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64, help="of the latent: 64 is 512x512")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--width", type=int, default=320, help="base channels; 320 is SD1.5's real size")
    parser.add_argument("--steps", type=int, default=4, help="of a run; the first one is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arms", nargs="*", choices=ARMS, help="only these and this pack")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(MARK + json.dumps(measured(options.arm, Setting(**json.loads(options.setting)))))
        return
    names = [name for name in ARMS if (name != "TrainLoraNode" or upstream_path())
             and (options.arms is None or name in (OURS, *options.arms))]
    setting = Setting(options.side, options.batch, options.rank, options.width, options.steps)
    results = {title: compare(replace(setting, checkpointing=kept), names, options.rounds)
               for title, kept in (("every activation kept", False), ("gradient checkpointing", True))}
    if options.arms is None:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps({"setting": asdict(setting), **results}, indent=1) + "\n", encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
