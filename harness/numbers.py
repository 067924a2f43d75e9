"""``python -m harness.numbers``: a few numbers of every Toybox example, which every host must reproduce.

Run it on the packaged host after ``toybox/model.safetensors`` or an example has changed. The tests compare them on whatever
host runs.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .boot import Host
from .examples import EXAMPLES, node, save_and_load
from .library import ROOT

FILE = ROOT / "tests" / "fixtures" / "example_numbers.json"
#: but the easy way to learn, whose hundreds of steps are not to be shortened and drift apart
TOYBOX_EXAMPLES = sorted(name for name in EXAMPLES if "toybox" in name and "learn_easy" not in name)
STEPS = 6
#: inputs that hold a prompt, by node
TEXTS = ("text", "prompt", "reference_prompt", "negative")


def quick(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same graph with few steps, and a rate of learning at which what hosts and threads round differently stays small."""
    prompt = copy.deepcopy(prompt)
    for entry in prompt.values():
        if "steps" in entry["inputs"]:
            entry["inputs"]["steps"] = STEPS
        entry["inputs"].update({name: 1e-4 for name in entry["inputs"] if name.endswith("rate")})
        if entry["inputs"].get("sampler_name") == "euler_ancestral":  # hosts draw its noise from generators of their own
            entry["inputs"]["sampler_name"] = "euler"
    return prompt


def thinned(values: torch.Tensor, count: int = 12) -> list[float]:
    """``count`` values from all over a tensor, rounded to what float32 reproduces on every host."""
    flat = values.float().flatten()
    return [round(value, 4) for value in flat[torch.linspace(0, len(flat) - 1, count).long()].tolist()]


def conditioning_numbers(host: Host, prompt: dict[str, Any]) -> dict[str, list[float]]:
    """Each text of ``prompt`` -> numbers of its encoding by the stock CLIPTextEncode and the Toybox text encoder."""
    given = [entry["inputs"].get(name) for entry in prompt.values() for name in TEXTS]
    texts = sorted({text for text in given if isinstance(text, str)})
    with torch.inference_mode():
        clip = host.nodes["ToyboxLoader"]().load()[1]
        return {text: thinned(host.nodes["CLIPTextEncode"]().encode(clip, text)[0][0][0][0, :12]) for text in texts}


def latent_numbers(host: Host, prompt: dict[str, Any]) -> dict[str, list[float]]:
    """Each sampler of ``prompt`` -> numbers of the latent that it makes in few steps."""
    prompt = quick(prompt)
    if any(entry["class_type"] == "DreamMatcherLoadReference" for entry in prompt.values()):
        saved = host.run(quick(save_and_load())).ui["15"]["text"][0]
        prompt["7"]["inputs"]["file"] = Path(saved).name
    samplers = [number for number, entry in prompt.items() if entry["class_type"] == "KSampler"]
    for number in samplers:
        prompt[f"latent_{number}"] = node("SaveLatent", samples=[number, 0], filename_prefix="numbers/latent")
    result = host.run(prompt)
    if not result.success:
        raise RuntimeError(f"the example failed: {result.error()}")
    return {number: thinned(load_file(host.file(result.ui[f"latent_{number}"]["latents"][0]))["latent_tensor"])
            for number in samplers}


def numbers(host: Host, name: str) -> dict[str, dict[str, list[float]]]:
    prompt = EXAMPLES[name][0]()
    return {"conditioning": conditioning_numbers(host, prompt), "latents": latent_numbers(host, prompt)}


if __name__ == "__main__":
    booted = Host(ROOT / "build" / "host")
    if booted.upstream:
        raise SystemExit("COMFYUI_PATH is set: these numbers are made on the packaged host")
    FILE.write_text(json.dumps({name: numbers(booted, name) for name in TOYBOX_EXAMPLES}, indent=1) + "\n", encoding="utf-8")
