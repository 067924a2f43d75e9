"""Reads subject maps out of a network's attention to the prompt, and calls the network by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from ...attention import attention_columns, repeated_columns
from ...backbones.base import Backbone, Grid, Site
from ...concepts import word_likeness
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

    def read(self, site: Site, query: torch.Tensor, context: torch.Tensor, latent_size: Grid) -> torch.Tensor | None:
        """The map [B, 1, h, w] of one site, or None when another pack changed its token count.

        ``query`` [B, N, C] and ``context`` [B, T, D] are inputs of attention to the prompt; where prompt and picture attend in
        one sequence they are what it makes of the picture's and the prompt's tokens.
        """
        if self.modules[site] is None:
            return self._read_joint(site, query, context, latent_size)
        picture = self.backbone.picture_tokens(site, latent_size, query.shape[1])
        if picture is None:
            return None
        module = self.modules[site]
        columns = repeated_columns(self.subject.columns, self.subject.tokens, context.shape[1])
        maps = attention_columns(module.to_q(query[:, picture]), module.to_k(context), module.heads, columns)
        return rearrange(maps, "b (h w) -> b 1 h w", h=self.backbone.grid(site, latent_size)[0])

    def _read_joint(self, site: Site, picture: torch.Tensor, text: torch.Tensor, latent_size: Grid) -> torch.Tensor:
        subject, length = self.subject, text.shape[1]
        rest = subject.rest or tuple(column for column in range(subject.tokens) if column not in subject.columns)
        columns, others = (self._places(each, length) for each in (subject.columns, rest))
        maps = word_likeness(picture, text, columns, others or [column for column in range(length) if column not in columns])
        return rearrange(maps, "b (h w) -> b 1 h w", h=self.backbone.grid(site, latent_size)[0])

    def _places(self, columns: tuple[int, ...], length: int) -> list[int]:
        """Places of the prompt's columns in the text that the network is given."""
        front = length - self.subject.tokens
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
