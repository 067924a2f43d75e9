"""The host's model as training sees it: frozen, with overrides for some weights during a call, and differentiable.

The graph runs in inference mode and weights of loader nodes are inference tensors, which have no gradient. Calls run on ordinary
tensors over the same memory, which stand in for the module's own while the call lasts. LoRAs and merges on the model are part of
what is seen: the host has put them into its weights.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import comfy.model_management
import torch
from einops import rearrange

from ...backbones.unet import KEYS_AND_VALUES
from ...subject import Conditioning
from ...texts import holds
from ...training.custom_diffusion import first_token_constant
from ...training.denoising import FrozenModel
from ...training.objective import FLOW
from ...training.trainables import TokenRows
from ...watch import Watch
from ...weights import WeightOverrides
from ..model.arguments import batch_arguments, network_call, takes_pooled, with_frames
from ..model.hooks import norms_keep_their_input, outputs_changed, rows_in_place_of, told_of_training, with_overrides
from ..model.recompute import recomputed, run_again_for_the_gradient
from ..model.text_patches import text_options
from ..text.new_words import MARKER, with_markers, without_marker
from ..text.towers import Tower, towers_of
from ..text.words import as_columns, width_of
from .schedule import schedule_of
from .whole import weights_of, whole, whole_clip

MOST_KEPT = 256  # captions as the text encoder reads them: shuffled tags would fill the memory


class HostLearner(FrozenModel, Protocol):
    """The host's model as a recipe has it: itself, or with a method's own around it."""

    @property
    def denoiser(self) -> HostDenoiser:
        """The model itself."""


class HostDenoiser:
    """MODEL and CLIP of the graph. Raises ValueError when they cannot be trained on, saying what to do."""

    def __init__(self, model, clip, latent_size: tuple[int, int], constant_start: bool = False,
                 checkpointing: bool | None = False, prompts: Iterable[str] = ()):
        """``constant_start``: keys and values of the start token learn nothing (Custom Diffusion). ``checkpointing``: blocks of
        the network run again for the gradient; None while that is not chosen yet. ``prompts``, if any, are read before the
        network is loaded, and the text encoder is not kept beside it."""
        originals, clip = (model, clip.patcher), without_marker(clip)
        schedule = schedule_of(model)
        model, clip = whole("model", model), whole_clip(clip)
        self.model, self.clip, self.constant_start, self.checkpointing = model, clip, constant_start, checkpointing
        #: copies that were made for this training, and what they were made of
        self.borrowed = [(original, used) for original, used in zip(originals, (model, clip.patcher))
                         if original.model is not used.model]
        base = model.model
        self.prediction, self.alpha_bars, self.times = schedule.prediction, schedule.alpha_bars, schedule.times
        self.device = model.load_device
        self._encoded: dict[str, Conditioning] = {}
        self.text: dict[str, torch.Tensor] = {}
        self.text_away = False  # the text encoder comes back for single prompts alone
        self.reads_alone = bool(prompts)  # nothing of the text encoder learns: its weights may be of any kind
        if self.reads_alone:
            self.encode(list(dict.fromkeys((*prompts, ""))))
            self.text_away = True
        memory = model.memory_required([2, base.latent_format.latent_channels, *latent_size])
        loaded = [model] if self.reads_alone else [model, clip.patcher]
        comfy.model_management.load_models_gpu(loaded, memory)
        self.unet = weights_of("model", base.diffusion_model, self.device)
        if not self.reads_alone:
            self.text = self._text_weights()

    def _text_weights(self) -> dict[str, torch.Tensor]:
        return weights_of("clip", self.clip.cond_stage_model, self.clip.patcher.load_device)

    @property
    def denoiser(self) -> HostDenoiser:
        """Itself: methods that wrap it have it under this name."""
        return self

    def changed(self, **attributes: object) -> HostDenoiser:
        """The same model with other ``unet`` weights, or with or without ``checkpointing``."""
        vars(other := copy.copy(self)).update(attributes)
        return other

    def encode(self, captions: list[str], weights: WeightOverrides | None = None,
               rows: Mapping[str, TokenRows] | None = None) -> Conditioning:
        """Conditioning [B, L, D] of the captions, each padded to the longest as the host does, by repetition.

        A transformer reads each at its own length. A caption is encoded once for a batch, and without overrides once for all.
        """
        known = rows or {}
        if len(self._encoded) > MOST_KEPT and not self.text_away:
            self._encoded.clear()
        encoded = {} if weights or known else self._encoded
        for caption in captions:
            if caption not in encoded:
                encoded[caption] = self._encode(caption, weights or {}, {word: one.rows for word, one in known.items()})
        conditionings = [encoded[caption] for caption in captions]
        if self.prediction == FLOW:
            return Conditioning.filled_up(conditionings)
        length = math.lcm(*(one.cross_attention.shape[1] for one in conditionings))
        return Conditioning.stacked([
            Conditioning(one.cross_attention.repeat(1, length // one.cross_attention.shape[1], 1), one.pooled)
            for one in conditionings])

    def encode_each(self, caption: str, word: str, vectors: torch.Tensor) -> Conditioning:
        """Conditioning [V, L, D] of one caption in which ``word`` stands for each of ``vectors`` [V, D] in turn, in one call."""
        if not holds(caption, word):
            return self.encode([caption] * len(vectors))
        pools = takes_pooled(self.model.model)  # a call pools its first text only
        if len(vectors) == 1 or pools or len(self.towers) > 1:
            return Conditioning.stacked([self._encode(caption, {}, {word: vector[None]}) for vector in vectors])
        (name, chunks), = self.clip.tokenize(with_markers(caption, {word: 1})[0]).items()
        places = sum(not torch.is_tensor(entry[0]) and entry[0] == self._markers[name] for chunk in chunks for entry in chunk)
        cond = self._run({name: chunks * len(vectors)}, {}, vectors.repeat_interleave(places, 0)).cross_attention
        return Conditioning(rearrange(cond, "1 (v l) d -> v l d", v=len(vectors)), None)

    def _encode(self, caption: str, weights: WeightOverrides, words: Mapping[str, torch.Tensor]) -> Conditioning:
        """Conditioning of a caption, in which each of ``words`` stands for its vectors [V, D]."""
        text, there = with_markers(caption, {word: len(vectors) for word, vectors in words.items()})
        return self._run(self.clip.tokenize(text), weights, torch.cat([words[word] for word in there]) if there else None)

    def _run(self, tokens: dict, weights: WeightOverrides, vectors: torch.Tensor | None) -> Conditioning:
        """Conditioning of a text that is cut already; ``vectors`` [V, D] stand in the marker's places in turn."""
        def run() -> Conditioning:
            cond, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)
            return Conditioning(cond, pooled).each(lambda value: value.to(self.device))

        if self.text_away:
            return self._with_text_back(lambda: self._run(tokens, weights, vectors))
        tower = self.clip.cond_stage_model
        learns = bool(weights) or vectors is not None
        def read() -> Conditioning:
            with torch.inference_mode(False), torch.set_grad_enabled(learns), ExitStack() as stack:
                stack.enter_context(norms_keep_their_input(tower))
                if vectors is not None:
                    for each in self.towers:
                        stack.enter_context(rows_in_place_of(each.table, self._markers[each.name], each.part(vectors)))
                return with_overrides(tower, self.text, weights, run)

        return run_again_for_the_gradient(read) if learns and self.checkpointing else read()

    def put_text_away(self, captions: Iterable[str]) -> None:
        """Reads the captions, and lets the host take the text encoder off the device. Other prompts have it back for a moment."""
        self.encode(list(dict.fromkeys((*captions, ""))))
        self._let_text_go()

    def _let_text_go(self) -> None:
        self.text, self.text_away = {}, True
        kept = [loaded for loaded in comfy.model_management.current_loaded_models if loaded.model is self.model]
        comfy.model_management.free_memory(1e30, self.clip.patcher.load_device, keep_loaded=kept)

    def _with_text_back(self, encode: Callable[[], Conditioning]) -> Conditioning:
        comfy.model_management.load_models_gpu([self.model, self.clip.patcher])
        self.text, self.text_away = {} if self.reads_alone else self._text_weights(), False
        try:
            return encode()
        finally:
            self._let_text_go()

    def rows_of(self, word: str) -> torch.Tensor:
        """The rows of the token tables for a word, or those learned for it, [tokens, D] in float32."""
        parts = []
        for tower in self.towers:
            rows = [token if torch.is_tensor(token) else tower.table.weight[token] for token in self._tokens(word)[tower.name]]
            parts.append(torch.stack([row.detach().float().cpu() for row in rows]) if rows else
                         torch.empty(0, tower.table.weight.shape[1]))
        return torch.cat(parts, 1)

    def row_of(self, word: str) -> torch.Tensor:
        """The row of a known word [1, D], whose prompt is compared with a learned word's, token by token.

        Otherwise as :meth:`rows_of`. Raises ValueError for a word of several tokens, or of none.
        """
        rows = self.rows_of(word)
        if len(rows) != 1:
            raise ValueError(f"class_word: {word!r} is {len(rows)} tokens of this model's vocabulary and the learned word is "
                             "one; choose a word that is one token, as dog, toy or person")
        return rows

    def places(self, caption: str, word: str) -> tuple[int, int]:
        """The places of a learned word of one vector and of the first end token in a caption's conditioning.

        Where the caption does not hold the word, both are that of the end token.
        """
        name = self.towers[0].name  # every tower has its tokens in the same places
        chunks, empty = (self.clip.tokenize(text)[name] for text in (with_markers(caption, {word: 1})[0], ""))
        width, last = width_of(self.clip, name), empty[0][1][0]
        tokens = [entry[0] for chunk in chunks for entry in as_columns(chunk, width)]
        numbers = [None if torch.is_tensor(token) else token for token in tokens]
        end = numbers.index(last, 1)
        return numbers.index(self._markers[name]) if holds(caption, word) else end, end

    @cached_property
    def towers(self) -> tuple[Tower, ...]:
        return towers_of(self.clip)

    def _tokens(self, word: str) -> dict[str, list[int | torch.Tensor]]:
        """A text's tokens for every tower, without start, end and padding: numbers, or vectors of learned words."""
        tokens = {}
        for (name, chunks), empty in zip(self.clip.tokenize(word).items(), self.clip.tokenize("").values()):
            end = empty[0][1][0]
            tokens[name] = _in_front_of(end, (token for token, *_ in chunks[0][1:]))
        return tokens

    def give_back(self) -> None:
        """Takes copies that were made for this training off the device; nobody else knows them."""
        for original, borrowed in self.borrowed:
            comfy.model_management.unload_model_and_clones(borrowed)
            original.non_dynamic_delegate_model = None
        self.borrowed = []

    @cached_property
    def _markers(self) -> dict[str, int]:
        """The marker's token for every tower."""
        return {name: token for name, (token, *_) in self._tokens(MARKER).items() if not torch.is_tensor(token)}

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning, weights: WeightOverrides,
                values: torch.Tensor | None = None, watch: Watch | None = None) -> torch.Tensor:
        """The network's prediction for ``noisy`` [B, C, h, w], scaled as the diffusion process has it (variance 1 in UNets).

        With checkpointing, blocks of the network run again for the gradient; so does ``watch`` then.
        """
        if conditioning.lengths:
            return conditioning.in_parts(lambda rows, part: self.predict(noisy[rows], timesteps[rows], part, weights, values,
                                                                         watch))
        base = self.model.model
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            stack.enter_context(self._as_it_learns(base.diffusion_model))
            if self.checkpointing:
                collected = [] if watch is None else watch.collected
                stack.enter_context(recomputed(base.diffusion_model, self._as_it_learns, weights, collected))
            given = batch_arguments(base, conditioning, with_frames(base, noisy))
            arguments = {name: _normal(value) for name, value in given.items()}
            times, options = self.times[timesteps.cpu()].to(noisy), text_options(base, values, watch)
            return with_overrides(base.diffusion_model, self.unet, weights,
                                  lambda: network_call(base, _normal(noisy), times, arguments, options))

    @contextmanager
    def _as_it_learns(self, module: torch.nn.Module) -> Iterator[None]:
        with told_of_training(self.prediction == FLOW), norms_keep_their_input(module), self._start_kept(module):
            yield

    def _start_kept(self, module: torch.nn.Module) -> AbstractContextManager:
        """Inside, keys and values of the start token learn nothing, where that was asked for."""
        return outputs_changed(module, KEYS_AND_VALUES, first_token_constant) if self.constant_start else nullcontext()


def _in_front_of(end: int, tokens: Iterable[int | torch.Tensor]) -> list[int | torch.Tensor]:
    return list(itertools.takewhile(lambda token: torch.is_tensor(token) or token != end, tokens))


def _normal(value: Any) -> Any:
    """``value``, or a copy of a tensor that was made in inference mode and could not be kept for a gradient."""
    return value.clone() if torch.is_tensor(value) and value.is_inference() else value
