"""Small random edit models whose references stand in their sequence."""

from __future__ import annotations

import torch
from transformers_world import SIGMA, SIZE, bench_of, made

#: of :data:`transformers_world.TRANSFORMERS`, those whose stock class takes other pictures
EDITED = ("Flux.1", "Flux.2", "Qwen-Image", "Z-Image")


def with_pictures(bench, prompt: list, *latents: torch.Tensor, **more) -> list:
    """A prompt that shows the network ``latents``, as the sampler has them, beside the picture that it makes."""
    shown = [bench.model.model.process_latent_out(each) for each in latents]
    return [[prompt[0][0], {**prompt[0][1], "reference_latents": shown, **more}]]


def locked(bench, model=None, mask: torch.Tensor | None = None, **settings):
    """(model, trace) with a lock that trusts every match unless told otherwise."""
    module = bench.pack.module("dreammatcher.matching.locking")
    given = {"start": 0.0, "similarity": -1.0, "threshold": 10.0, **settings}
    return bench.pack.module("dreammatcher.host.matching.lock").lock(model or bench.model, module.LockSettings(**given), mask)


def without_places(model):
    """The model with the same position for every token, so that tokens of the same content stay the same in every block."""
    class Nowhere(torch.nn.Module):
        def __init__(self, embedder):
            super().__init__()
            self.embedder = embedder

        def forward(self, places):
            return self.embedder(places * 0)

    clone = model.clone()
    for name in ("pe_embedder", "rope_embedder"):
        if hasattr(clone.model.diffusion_model, name):
            place = f"diffusion_model.{name}"
            clone.add_object_patch(place, Nowhere(clone.get_model_object(place)))
    return clone


def values_of(bench, model) -> tuple[object, dict[int, torch.Tensor]]:
    """A clone of a model, and the values [B, L, C] of its blocks as attention took them last, which a run of the clone fills."""
    values: dict[int, torch.Tensor] = {}

    def hold(func, q, k, v, *rest, **named):
        options = named["transformer_options"]
        if "block_index" in options:
            values[bench.backbone.site(options["block_type"], options["block_index"])[1]] = v.transpose(1, 2).flatten(2).clone()
        return func(q, k, v, *rest, **named)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = hold
    return clone, values


def places(bench, values: torch.Tensor, *sizes) -> list[slice]:
    """The tokens of the picture and of others of these sizes, by the order of the family."""
    backbone = bench.backbone
    counts = [h * w for h, w in (backbone.grid(backbone.matched[0], size) for size in (SIZE, *sizes))]
    padded = [-(-count // backbone.multiple) * backbone.multiple for count in counts]
    if backbone.order.name != "LAST":
        text = values.shape[1] - sum(counts)
        starts = [text + sum(counts[:number]) for number in range(len(counts))]
        return [slice(start, start + count) for start, count in zip(starts, counts)]
    first = values.shape[1] - sum(padded)
    starts = [values.shape[1] - padded[0], *(first + sum(padded[1:number]) for number in range(1, len(counts)))]
    return [slice(start, start + count) for start, count in zip(starts, counts)]


__all__ = ["EDITED", "SIGMA", "SIZE", "bench_of", "locked", "made", "places", "values_of", "with_pictures", "without_places"]
