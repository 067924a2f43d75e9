"""Reads subject maps out of a network's attention to the prompt, and calls the network by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from ...attention import attention_columns, repeated_columns, shared_attention_columns
from ...backbones.base import Backbone, Grid, Site
from ...sizes import single_frame
from ...subject import Conditioning, Subject
from .arguments import frames, model_arguments
from .attention_points import alone
from .backbone import network_of
from .patch_points import Points


@dataclass(frozen=True, eq=False)
class SubjectMaps:
    """Reads the subject's columns out of cross-attention, beside the attention itself."""

    modules: dict[Site, Any]
    backbone: Backbone
    subject: Subject

    @staticmethod
    def of(base: Any, backbone: Backbone, subject: Subject, latent_size: Grid) -> SubjectMaps:
        return SubjectMaps(backbone.prompt_attention(network_of(base), backbone.map_sites(latent_size)), backbone, subject)

    def read(self, site: Site, query: torch.Tensor, context: torch.Tensor, value: torch.Tensor,
             latent_size: Grid) -> torch.Tensor | None:
        """The map [B, 1, h, w] of one site, or None when another pack changed its token count.

        ``query`` [B, N, C] and ``context`` [B, T, D] are inputs of attention to the prompt. Where prompt and picture attend in
        one sequence they are the picture's queries and the prompt's keys, and ``value`` is all keys, [B, heads, tokens, d] each.
        """
        if self.modules[site] is None:
            return self._read_shared(site, query, context.shape[2], value, latent_size)
        picture = self.backbone.picture_tokens(site, latent_size, query.shape[1])
        if picture is None:
            return None
        module = self.modules[site]
        columns = repeated_columns(self.subject.columns, self.subject.tokens, context.shape[1])
        maps = attention_columns(module.to_q(query[:, picture]), module.to_k(context), module.heads, columns)
        return rearrange(maps, "b (h w) -> b 1 h w", h=self.backbone.grid(site, latent_size)[0])

    def _read_shared(self, site: Site, query: torch.Tensor, text: int, keys: torch.Tensor, latent_size: Grid) -> torch.Tensor:
        maps = shared_attention_columns(query, keys, self._places(text))
        return rearrange(maps, "b (h w) -> b 1 h w", h=self.backbone.grid(site, latent_size)[0])

    def _places(self, length: int) -> list[int]:
        """Places of the subject's columns in the text of ``length`` tokens that the network is given."""
        columns, front = self.subject.columns, length - self.subject.tokens
        if self.backbone.padded_in_front and front > 0:
            return [front + column for column in columns]
        return repeated_columns(columns, self.subject.tokens, length)


def ode_derivative(
    base: Any, conditioning: Conditioning, x: torch.Tensor, sigma: float, points: Points | None = None
) -> torch.Tensor:
    """dx / dsigma of the probability flow at ``x`` [B, C, H, W] (Karras et al. 2022, Eq. 3).

    That is the predicted noise, or the flow of a flow model. ``points`` are all that runs inside of the call.

    Raises ValueError for a noise level that is not above 0.
    """
    if not math.isfinite(sigma) or sigma <= 0:
        raise ValueError(f"sigma: {sigma} is not above 0")
    sigmas = torch.full((x.shape[0],), sigma, device=x.device)
    options = {**alone(base, points), "cond_or_uncond": [0], "sigmas": sigmas}
    given = x.unsqueeze(2) if frames(base) else x
    clean = base.apply_model(given, sigmas, **model_arguments(base, conditioning, given), transformer_options=options)
    return (x - single_frame(clean)) / sigma
