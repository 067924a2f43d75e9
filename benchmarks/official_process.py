"""The official DreamMatcher code on Toybox, in its own Python. :mod:`benchmarks.against_official` runs this file.

``python official_process.py CHECKOUT JOB.safetensors``: reads weights and cases, writes the latents of every arm beside them as
JOB.done.safetensors. Nothing of this repository is imported, nor is the pipeline's tokenizer, text encoder or autoencoder used:
contexts and latents come from the host.

The code was written for 64x64 latents and four scales. What is adapted, and nothing else: the UNet's forward, which names four
decoder features (a three-scale UNet's first and second stand for the second and third); the size of the attention maps that the
foreground is read from; the number of principal components, at most the width; guidance's weight, as the caller gives it.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the code moves to a GPU by itself where it sees one

import torch
import transformers  # noqa: F401  must look for the real torchvision
from safetensors.torch import load_file, save_file


def stand_in(name: str, *members: str) -> None:
    """An empty module in the place of one whose functions are never called here."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for member in members:
        setattr(module, member, lambda *given, **named: None)
    sys.modules[name] = module


def import_official(checkout: Path):
    """The checkout's pipeline module, its editors and its UNet."""
    sys.path[:0] = [str(checkout), str(checkout / "diffusers" / "src")]
    for name, *members in (("torchvision", "transforms"), ("torchvision.utils", "save_image"), ("torchvision.io", "read_image"),
                           ("torchvision.transforms", "Compose", "Resize", "ToTensor", "Normalize")):
        stand_in(name, *members)
    setattr(sys.modules["torchvision"], "transforms", sys.modules["torchvision.transforms"])  # noqa: B010  a module of no types

    from diffusers import DDIMScheduler, UNet2DConditionModel

    diffuser_utils, matching, editors = (importlib.import_module(f"dreammatcher.{name}") for name in (
        "diffuser_utils", "dreammatcher", "dreammatcher_utils"))

    return SimpleNamespace(pipelines=diffuser_utils, matching=matching, editors=editors,
                           UNet=UNet2DConditionModel, Scheduler=DDIMScheduler)


def unet_of(official, config: dict, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    class ThreeScales(official.UNet):
        def forward(self, sample, timestep, encoder_hidden_states):
            time = self.time_proj(timestep.expand(len(sample))).to(sample.dtype)
            embedded = self.time_embedding(time)
            sample = self.conv_in(sample)
            skips = [sample]
            for block in self.down_blocks:
                sample, states = block(hidden_states=sample, temb=embedded, encoder_hidden_states=encoder_hidden_states)
                skips += states
            sample = self.mid_block(sample, embedded, encoder_hidden_states=encoder_hidden_states)
            features = []
            for block in self.up_blocks:
                count = len(block.resnets)
                skips, taken = skips[:-count], tuple(skips[-count:])
                sample = block(hidden_states=sample, temb=embedded, res_hidden_states_tuple=taken,
                               encoder_hidden_states=encoder_hidden_states)
                features.append(sample)
            sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
            return SimpleNamespace(sample=(sample, {"up_feat2": features[0], "up_feat3": features[1]}))

    unet = ThreeScales(**config)
    unet.load_state_dict(weights)
    return unet.eval().requires_grad_(False)


class Prompts:
    """Stands for tokenizer and text encoder: a prompt's token is its place among the contexts that the host made."""

    def __init__(self, contexts: dict[str, torch.Tensor]):
        self.places = {text: place for place, text in enumerate(contexts)}
        self.contexts = torch.cat(list(contexts.values()))

    def tokenize(self, prompts: str | list[str], **_):
        texts = [prompts] if isinstance(prompts, str) else prompts
        return SimpleNamespace(input_ids=torch.tensor([[self.places[text]] for text in texts]))

    def encode(self, tokens: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.contexts[tokens[:, 0]],)


def adapt(official, cells: int) -> None:
    """Maps are read from layers of ``cells`` cells, where the code has 16 * 16, and co_pca keeps at most the width."""
    editor = official.matching.MutualSelfAttentionControlMaskAuto_Matching
    code = editor.forward.__code__
    if 256 not in code.co_consts:
        raise ValueError("the checkout's matching module no longer reads maps of 16 * 16 cells: it is not the one measured")
    editor.forward.__code__ = code.replace(co_consts=tuple(cells if value == 256 else value for value in code.co_consts))
    original = official.pipelines.co_pca
    official.pipelines.co_pca = lambda one, other, dims: original(
        one, other, [min(dim, one[name].shape[1]) for dim, name in zip(dims, ("s1", "s2"))])
    official.pipelines.load_image = lambda *_: None  # image2latent knows the reference


def pipeline_of(official, unet: torch.nn.Module, prompts: Prompts, latent: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """The pipeline with one reference latent, and the list of what it would decode: the last is its result."""
    seen: list[torch.Tensor] = []

    class Pipeline(official.pipelines.DreamMatcherPipeline):
        __setattr__ = object.__setattr__  # diffusers' own expects a pipeline with an autoencoder

        def __init__(self):
            self.unet, self.tokenizer, self.text_encoder = unet, prompts.tokenize, prompts.encode
            self.scheduler = official.Scheduler(
                num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                steps_offset=1, set_alpha_to_one=True)
            self.pca_feats, self.latents_list, self.pred_x0_list = [], None, None

        def image2latent(self, _):
            return latent

        def latent2image(self, latents, **_):
            seen.append(latents)

    return Pipeline(), seen


def draw(official, unet, case: dict, prompts: Prompts, latent: torch.Tensor, noise: torch.Tensor,
         job: dict) -> dict[str, torch.Tensor]:
    """The case's plain latent, its matched one, and the matched one led by guidance."""
    pipeline, seen = pipeline_of(official, unet, prompts, latent)

    def run(editor, **named) -> torch.Tensor:
        official.editors.regiter_attention_editor_diffusers(pipeline, editor)
        torch.manual_seed(0)  # of its randomised PCA
        side = latent.shape[-1] * 8
        pipeline([case["reference_prompt"], case["prompt"]], height=side, width=side, latents=torch.cat([start, noise]),
                 num_inference_steps=job["steps"], guidance_scale=job["cfg"], **named)
        return seen[-1][1:]

    plain = official.editors.AttentionBase
    official.editors.regiter_attention_editor_diffusers(pipeline, plain())
    start, path = pipeline.invert(latent, "", guidance_scale=job["cfg"], num_inference_steps=job["steps"],
                                  return_intermediates=True)
    settings = {**job["settings"], "ref_token_idx": case["reference_token"], "cur_token_idx": case["token"]}
    matched = official.matching.MutualSelfAttentionControlMaskAuto_Matching
    return {"plain": run(plain()), "official": run(matched(settings), ref_intermediate_latents=path),
            "guided": run(matched(settings), ref_intermediate_latents=path, matching_guidance=settings)}


def main(checkout: Path, file: Path) -> None:
    job = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    tensors = load_file(file)
    part = lambda prefix: {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}  # noqa: E731
    official = import_official(checkout)
    unet = unet_of(official, job["unet"], part("unet."))
    adapt(official, job["cells"])
    prompts = Prompts({text: tensors[f"context.{place}"] for place, text in enumerate(job["prompts"])})
    latents_by_arm = {}
    for number, case in enumerate(job["cases"]):
        drawn = draw(official, unet, case, prompts, tensors[f"latent.{number}"], tensors[f"noise.{number}"], job)
        latents_by_arm.update({f"{arm}.{number}": latents.contiguous() for arm, latents in drawn.items()})
        print(f"official case {number + 1} of {len(job['cases'])}", file=sys.stderr, flush=True)
    save_file(latents_by_arm, file.with_suffix(".done.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
