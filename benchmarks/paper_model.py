"""Models of real size that have shapes and no memory, for sums about training them on cards that are not at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.boot import Host

from .timing_model import Family

CELL = 8  # pixels


def paper_model(host: Host, family: Family, checkpointing: bool | None = None, width: int = 320,
                dtype: torch.dtype = torch.float16) -> Any:
    """A family's UNet and text encoders as training sees them, in half precision unless told; the same tensors on every host."""
    import comfy.model_patcher
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models

    module = host.pack().module
    Conditioning, epsilon = module("dreammatcher.subject").Conditioning, module("dreammatcher.training.objective").EPSILON
    device, meta = torch.device("cpu"), torch.device("meta")

    class OnPaper(module("dreammatcher.host.training.model").HostDenoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            config = getattr(comfy.supported_models, family.host_class)(family.config(width))
            config.set_inference_dtype(dtype, None)
            base = config.get_model({}, "", device=meta)
            self.model = comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=meta)
            self.device, self.checkpointing, self.constant_start = device, checkpointing, False
            self.prediction, self.text_away, self.reads_alone = epsilon, False, False
            tower, tokens = ((comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer) if family.pooled else
                             (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer))
            with torch.no_grad():
                encoder, tokenizer = tower(device=meta, dtype=dtype), tokens(embedding_directory=None)
            self.clip = SimpleNamespace(
                cond_stage_model=encoder, patcher=SimpleNamespace(load_device=device, offload_device=meta),
                tokenize=tokenizer.tokenize_with_weights,
                encode_from_tokens=lambda said, return_pooled: encoder.encode_token_weights(said)[:2])
            self.unet, self.text = shapes_of(base.diffusion_model), shapes_of(encoder)
            self.times, self.alpha_bars = torch.arange(1000).float(), torch.linspace(1, 0, 1000)
            self._encoded: dict = {}

        def encode(self, captions, weights=None, rows=None):
            if weights:
                return super().encode(captions, weights)
            pooled = torch.zeros(len(captions), family.pooled) if family.pooled else None
            return Conditioning(torch.zeros(len(captions), 77, family.context), pooled)

    return OnPaper()


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers as tensors in main memory that take none."""
    with FakeTensorMode():
        return {name: torch.empty(value.shape, dtype=value.dtype)
                for name, value in (*module.named_parameters(), *module.named_buffers())}


@contextmanager
def attention_of_cards() -> Iterator[None]:
    """Inside, UNets run on PyTorch's own attention, as on NVIDIA cards, which keeps no matrix of scores."""
    import comfy.ldm.modules.attention as attention

    before = attention.optimized_attention
    attention.optimized_attention = attention.attention_pytorch
    try:
        yield
    finally:
        attention.optimized_attention = before
