"""``python -m benchmarks.against_official --official DIR --python VENV/bin/python``: compares with the official code.

Both have the same Toybox weights, prompts, noise and references. Prints the table of docs/measured.md.

DIR is a checkout of cvlab-kaist/DreamMatcher; VENV has torch, safetensors, transformers 4.30.2, huggingface_hub 0.16.4, numpy
below 2, einops, matplotlib, opencv-python-headless, tqdm and Pillow. The two sides run one after the other and exchange latents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

from dreammatcher.evaluation.report import write
from dreammatcher.evaluation.statistics import summary
from harness.boot import Host
from harness.library import ROOT
from toybox.evaluation import ERROR, Case, cases, protocol

from .arms import PLAIN, REPLACED
from .quality import arms_in, draw, keep
from .toybox_runner import ToyboxRunner

FOLDER = ROOT / "build" / "official"
#: the official settings (run_dreammatcher.py); layers are the last four of Toybox's ten, as theirs are the last six of 16
SETTINGS = {"initial_step": 4, "cut_step": 50, "initial_layer": 6, "cut_layer": 10, "thres": 0.05, "cc_thres": 0.4,
            "fg_mask": True, "key_replace": False, "mg_initial_step": 4, "mg_cut_step": 50, "mg_cc_thres": 0.4,
            "invert_path": "", "save_pred_x0": False}
#: their guidance weight is meant for 64x64 latents; undivided it diverges at 16x16
GUIDANCE_WEIGHT, THEIR_CELLS = 50.0, 64 * 64
#: cells of the maps that the foreground is read from: the coarsest scale but one, as theirs is
MAP_CELLS = 8 * 8


def arms(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    matched = runner.matched(ready)
    settings = runner.module("dreammatcher.matching.settings")
    return {
        PLAIN: runner.model,
        "this pack, preset paper, soft foreground": runner.matched(
            ready, {"otsu": False}, match=vars(settings.PRESETS["paper"])),
        "this pack, balanced": matched,
        "this pack, balanced + guidance fast": runner.guided(matched, mode="fast"),
        "this pack, best + guidance inside (Easy)": runner.easy(ready),
        REPLACED: runner.matched(ready, injection=settings.REPLACED),
    }


def unet_config(family: dict) -> dict:
    """The diffusers form of Toybox's UNet."""
    widths = [family["model_channels"] * factor for factor in family["channel_mult"]]
    scales = len(widths)
    return {"sample_size": family["image_size"], "block_out_channels": widths, "layers_per_block": family["num_res_blocks"][0],
            "attention_head_dim": 4, "cross_attention_dim": family["context_dim"],
            "down_block_types": ["CrossAttnDownBlock2D"] * scales, "up_block_types": ["CrossAttnUpBlock2D"] * scales}


def latent_noise(runner: ToyboxRunner, case: Case) -> torch.Tensor:
    """The noise that the host's sampler starts from, of unit variance with the picture's share left out."""
    import comfy.sample
    import comfy.samplers

    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 16, 16), case.seed)
    sampling = runner.model.get_model_object("model_sampling")
    sigma = comfy.samplers.calculate_sigmas(sampling, runner.sampling.scheduler, runner.sampling.steps)[0]
    return noise * sigma / (1 + sigma**2).sqrt()


def write_job(runner: ToyboxRunner, chosen: list[Case], file: Path) -> None:
    """Writes everything that the official process needs, as FILE and a .json beside it."""
    import comfy.utils

    from toybox.host import ToyboxFamily

    weights = runner.model.model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(runner.model.model.model_config.unet_config)
    tensors = {f"unet.{theirs}": weights[ours].float().contiguous() for theirs, ours in names.items() if ours in weights}
    prompts, entries = [""], []
    for number, case in enumerate(chosen):
        tensors[f"latent.{number}"] = runner.encode(case.reference()[0])["samples"].contiguous()
        tensors[f"noise.{number}"] = latent_noise(runner, case)
        entry = {"reference_prompt": case.reference_prompt(), "prompt": case.prompt()}
        for text, key in ((case.reference_prompt(), "reference_token"), (case.prompt(), "token")):
            entry[key], = runner.prompt(text, case.subject.kind)[1].columns
        prompts += [text for text in (entry["reference_prompt"], entry["prompt"]) if text not in prompts]
        entries.append(entry)
    for place, text in enumerate(prompts):
        tensors[f"context.{place}"] = runner.prompt(text)[0][0][0].float().contiguous()
    weight = GUIDANCE_WEIGHT * 16 * 16 / THEIR_CELLS
    how = runner.sampling
    job = {"unet": unet_config(ToyboxFamily.unet_config), "cells": MAP_CELLS, "steps": how.steps, "cfg": how.cfg,
           "prompts": prompts, "cases": entries,
           "settings": {**SETTINGS, "mg_grad_weight": weight, "cut_step": how.steps,
                        "mg_cut_step": how.steps}}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    file.with_suffix(".json").write_text(json.dumps(job), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True, help="a checkout of cvlab-kaist/DreamMatcher")
    parser.add_argument("--python", type=Path, required=True, help="the Python that runs it")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--weights", type=Path, help="a Toybox file other than the shipped one")
    options = parser.parse_args()
    runner, folder = ToyboxRunner(Host(ROOT / "build" / "host"), options.weights), FOLDER / "arms"
    chosen, file = cases(options.cases, options.first), FOLDER / "job.safetensors"
    asked = list(protocol(FOLDER / "references", options.cases, options.first).cases())
    with torch.inference_mode():
        write_job(runner, chosen, file)
        subprocess.run([options.python, Path(__file__).with_name("official_process.py"), options.official, file], check=True,
                       stdout=subprocess.DEVNULL)
        theirs = load_file(file.with_suffix(".done.safetensors"))
        for number, (case, facts) in enumerate(zip(asked, chosen)):
            ready = runner.prepare(facts)
            drawn = {name: runner.decode({"samples": theirs[f"{key}.{number}"]}) for name, key in (
                ("official code, plain", "plain"), ("official code", "official"), ("official code + guidance", "guided"))}
            keep(folder, case, draw(runner, facts, ready, arms(runner, ready), drawn))
            print(f"case {number + 1} of {len(chosen)}", flush=True)
    measured = arms_in(folder, asked)
    told = summary(measured, (ERROR,))
    write(told, FOLDER / "report")
    print(told.markdown())


if __name__ == "__main__":
    main()
