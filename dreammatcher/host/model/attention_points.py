"""Points at which a method looks into a call of a diffusion transformer and changes it.

The host calls a wrapper around the network, and hands queries, keys and values of every attention to whoever holds the slot
``optimized_attention_override`` of its transformer options. Both are taken at call time: the wrapper is the innermost one, and
whoever held the slot then is called with what the method made of the values.

What stands in the options are functions of this module, the same for every model: newer hosts have torch.compile skip the
guards on transformer options, so what belongs to one call is read from them when it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from comfy.ldm.modules import attention
from einops import rearrange

from ...backbones.base import Grid, Site, Tokens
from ...backbones.dit import Beside, DiTBackbone, Numbers
from ...sizes import single_frame, spatial_size
from .backbone import OTHERS, backbone_of
from .compiling import hidden
from .options import POINTS_KEY, exchanged, options_of
from .outputs import with_output
from .patch_points import APART_KEY, Apart, Pictures, Points
from .sequence import by_head, tokens_of, with_parts, with_tokens

try:
    from comfy.patcher_extension import WrappersMP
except ImportError:
    WrappersMP = None

SLOT = "optimized_attention_override"
#: in the transformer options: who held the slot before, and the sequence of the current forward
HOLDER_KEY, SEQUENCE_KEY = "dreammatcher_attention", "dreammatcher_sequence"
#: the host's names of the block that runs; stacks in front of the blocks set none
KIND, NUMBER = "block_type", "block_index"
#: the host's number of tokens of each other picture in the sequence
PICTURES = "reference_image_num_tokens"
#: where others put something in the place of a block, with its number
SLOT_OF_BLOCK = "double_block"
#: the networks' name for the latent of a picture that stands beside the one that is made, in the same rows
SIDE = "image_cond"


@dataclass(frozen=True, eq=False)
class Listening:
    """The points of a method in a transformer."""

    points: Points
    backbone: DiTBackbone


@dataclass(frozen=True)
class Sequence:
    """One forward: the size of its latent, and what its sequence holds beside the picture."""

    latent: Grid
    text: int
    pictures: tuple[Grid, ...] | None = ()  # sizes of the latents of other pictures; None where one has several frames
    wide: int = 1  # pictures side by side in one
    attended: set[int] = field(default_factory=set, compare=False)  # numbers of the blocks that have attended to the picture

    def beside(self, told: tuple[int, ...]) -> Beside:
        return Beside(self.text, None if self.pictures != () and not told else sum(told), self.wide)


def available() -> bool:
    """True if the host has the slot and wrappers around the network."""
    return hasattr(attention, "wrap_attn") and hasattr(WrappersMP, "DIFFUSION_MODEL")


def alone(base: Any, points: Points | None) -> dict[str, Any]:
    """Transformer options that have ``points`` as all that runs inside of a call of the host's BaseModel."""
    if points is None:
        return {"patches": {}}
    backbone = backbone_of(base)
    if isinstance(backbone, DiTBackbone):
        return {"patches": {}, **listening({}, points, backbone)}
    return {"patches": points.alone()}


def listening(options: dict[str, Any], points: Points, backbone: DiTBackbone) -> dict[str, Any]:
    """Transformer ``options`` of one call with ``points`` at work in every forward of the network, behind those there are."""
    wrappers = options.get("wrappers", {})
    outside = backbone.numbers is Numbers.SLOTS
    kind, wrapper = (WrappersMP.APPLY_MODEL, _call) if outside else (WrappersMP.DIFFUSION_MODEL, _forward)
    others = {key: value for key, value in wrappers.get(kind, {}).items() if key != POINTS_KEY}
    return {**options, POINTS_KEY: (*options.get(POINTS_KEY, ()), Listening(points, backbone)),
            "wrappers": {**wrappers, kind: {**others, POINTS_KEY: [wrapper]}}}


def heard_call(call: Callable, arguments: tuple, named: dict[str, Any], points: Points, backbone: DiTBackbone) -> torch.Tensor:
    """One call of the host's model with ``points`` at work, made by a wrapper of such calls."""
    options = options_of(arguments, named)
    arguments, named = exchanged(arguments, named, options, listening(options, points, backbone))
    if backbone.numbers is Numbers.SLOTS:  # the wrappers of this call are called already
        return _call(call, *arguments, **named)
    return call(*arguments, **named)


def _forward(executor, x: torch.Tensor, *rest, **named):
    """Wrapper of the network, [B, C, H, W] or with a single frame [B, C, 1, H, W]."""
    options = options_of(rest, named)
    rest, named = exchanged(rest, named, options, hidden(_begun_forward, executor.original, x, rest, named, options))
    return executor(x, *rest, **named)


def _begun_forward(network: Callable, x: torch.Tensor, rest: tuple, named: dict[str, Any], given: dict[str, Any]) -> dict:
    context = named["context"] if "context" in named else rest[1]
    taken = inspect.signature(network)
    known = taken.bind_partial(x, *rest, **named).arguments if {OTHERS, SIDE} & taken.parameters.keys() else {}
    wide = 1 if known.get(SIDE) is None else 2
    return _begun(x, Sequence(spatial_size(x), context.shape[1], _sizes(known.get(OTHERS) or ()), wide), given)


def _call(executor, x: torch.Tensor, *rest, **named):
    """Wrapper of the host's call, for a network that has none."""
    options = options_of(rest, named)
    context = named["c_crossattn"] if "c_crossattn" in named else rest[2]
    begun = hidden(_begun, x, Sequence(spatial_size(x), context.shape[1]), options)
    rest, named = exchanged(rest, named, options, _numbered(begun))
    return executor(x, *rest, **named)


def _begun(x: torch.Tensor, sequence: Sequence, given: dict[str, Any]) -> dict[str, Any]:
    """The options of one forward, whose begin is told."""
    options = {key: value for key, value in given.items() if key not in (KIND, NUMBER)}
    if given.get(SLOT) is not attend:
        options[HOLDER_KEY] = given.get(SLOT)
    options[SLOT], options[SEQUENCE_KEY] = attend, sequence
    for heard in given[POINTS_KEY]:
        if heard.points.begin is not None:
            heard.points.begin(single_frame(x), options)
    return options


def _sizes(latents: Iterable[torch.Tensor]) -> tuple[Grid, ...] | None:
    """Sizes of the latents of other pictures that the network is given. None where one has several frames."""
    if any(one.ndim == 5 and one.shape[2] != 1 for one in latents):
        return None
    return tuple(spatial_size(one) for one in latents)


def _numbered(options: dict[str, Any]) -> dict[str, Any]:
    """Options whose blocks are told their number, inside of what others put in their place."""
    replaced = options.get("patches_replace", {})
    held, blocks = replaced.get("dit", {}), options[POINTS_KEY][0].backbone.blocks
    return {**options, "patches_replace": {**replaced, "dit": {**held, **{
        (SLOT_OF_BLOCK, number): _block(number) if (holder := held.get((SLOT_OF_BLOCK, number))) is None
        else partial(_replaced, number, holder) for number in range(blocks)}}}}


@cache
def _block(number: int) -> Callable:
    return partial(_replaced, number, None)


def _replaced(number: int, holder: Callable | None, arguments: dict, more: dict) -> dict:
    numbered = {**arguments, "transformer_options": {**arguments["transformer_options"], NUMBER: number}}
    return more["original_block"](numbered) if holder is None else holder(numbered, more)


def attend(func: Callable, *arguments, **named) -> torch.Tensor:
    """Holder of the slot."""
    return hidden(_attend, func, arguments, named)


def _attend(func: Callable, arguments: tuple, named: dict[str, Any]) -> torch.Tensor:
    options = named.get("transformer_options") or {}
    holder, heard = options.get(HOLDER_KEY), options.get(POINTS_KEY)
    call = func if holder is None else partial(holder, func)
    if heard is None or len(arguments) < 3:
        return call(*arguments, **named)
    backbone, sequence = heard[0].backbone, options[SEQUENCE_KEY]
    if backbone.numbers is Numbers.COUNTED:
        options = {**options, NUMBER: len(sequence.attended)}
    if NUMBER not in options:
        return call(*arguments, **named)
    if (backbone.cross or backbone.numbers is Numbers.SLOTS) and options[NUMBER] in sequence.attended:
        for each in heard:
            if backbone.cross:
                _shown(each, arguments, options)
        return call(*arguments, **named)
    sequence.attended.add(options[NUMBER])
    heads = arguments[3] if len(arguments) > 3 else named.get("heads")
    query, key, value = arguments[:3]  # SD3 has its values cut into heads already, [B, L, heads, D]
    inputs = query, key, value.flatten(2) if value.ndim > query.ndim else value
    for each in sorted(heard, key=lambda each: each.points.pictures is None):  # those that leave nothing apart first
        if not each.backbone.cross:
            _shown_in_one(each, inputs, heads, options)
        inputs = _changed(each, inputs, options)
    made = call(*inputs, *arguments[3:], **named)
    if (apart := options.pop(APART_KEY, None)) is not None:
        cells = apart.cells if made.ndim == 3 else apart.cells.unsqueeze(1)
        made = torch.where(cells, made, call(*apart.inputs, *arguments[3:], **named))
    mask = arguments[4] if len(arguments) > 4 else named.get("mask")
    return made if heads is None else _followed(heard, made, inputs, heads, mask, options)


def _followed(heard: Iterable[Listening], output: torch.Tensor, inputs: tuple, heads: int, mask: torch.Tensor | None,
              options: dict[str, Any]) -> torch.Tensor:
    """The output of one block's attention with what methods make of the picture's part."""
    for each in heard:
        site = each.backbone.site(options.get(KIND), options[NUMBER])
        if (look := each.points.attended) is None or site not in each.backbone.matched:
            continue
        picture, tokens = _picture(each.backbone, site, inputs, options)
        if picture is not None and (places := _places(each.backbone, site, picture, tokens, options[SEQUENCE_KEY])) is not None:
            output = with_output(partial(look, site), output, inputs, heads, picture, places, mask, options)
    return output


def _changed(heard: Listening, inputs: tuple, options: dict[str, Any]) -> tuple:
    """Queries, keys and values of one block, [B, heads, L, D] or [B, L, heads * D] each, as attention is to take them."""
    points, backbone, sequence = heard.points, heard.backbone, options[SEQUENCE_KEY]
    site = backbone.site(options.get(KIND), options[NUMBER])
    tapped = site[1] in backbone.taps
    if not tapped and site not in backbone.matched:
        return inputs
    picture, tokens = _picture(backbone, site, inputs, options)
    places = None if picture is None or points.pictures is None else _places(backbone, site, picture, tokens, sequence)
    if picture is None or (points.pictures is not None and places is None):
        if points.misfit is not None:
            points.misfit(site, options)
        return inputs
    if points.pictures is not None and places is not None:
        return *inputs[:2], _with_pictures(points.pictures, backbone, site, inputs[2], (picture, *places), options)
    query, key, value = parts = tuple(tokens_of(each, picture) for each in inputs)
    if tapped and points.feature is not None:
        height, _ = backbone.grid(site, sequence.latent)
        points.feature(site[1], rearrange(value, "b (h w) c -> b c h w", h=height), options)
    if points.values is None or site not in backbone.matched:
        return inputs
    made = points.values(site, query, key, value, options)
    if (apart := options.get(APART_KEY)) is not None:
        cells = apart.cells.new_zeros(len(apart.cells), inputs[0].shape[-2], 1)
        cells[:, picture] = apart.cells
        options[APART_KEY] = Apart(with_parts(inputs, picture, parts, apart.inputs), cells)
    return with_parts(inputs, picture, parts, made)


def _shown(heard: Listening, arguments: tuple, options: dict[str, Any]) -> None:
    """Shows queries and keys of a block's attention to the prompt, which comes behind that to the picture itself."""
    points, sequence = heard.points, options[SEQUENCE_KEY]
    site = heard.backbone.site(options.get(KIND), options[NUMBER])
    query, key = arguments[:2]
    if points.prompt is not None and site in heard.backbone.readers and key.shape[-2] == sequence.text:
        picture, text = tokens_of(query, slice(None)), tokens_of(key, slice(None))
        points.prompt(site, picture, text, text, options)


def _shown_in_one(heard: Listening, inputs: tuple, heads: int | None, options: dict[str, Any]) -> None:
    """Shows a block's queries of the picture, keys of the prompt, and all keys, those in front, [B, heads, tokens, d] each."""
    points, backbone, sequence = heard.points, heard.backbone, options[SEQUENCE_KEY]
    site = backbone.site(options.get(KIND), options[NUMBER])
    if points.prompt is None or site not in backbone.readers or heads is None:
        return
    picture, _ = _picture(backbone, site, inputs, options)
    if picture is not None:
        depth = inputs[0].shape[-1] // (1 if inputs[0].ndim == 4 else heads)
        query, key = (by_head(each, depth) for each in inputs[:2])
        text = backbone.prompt_tokens(site, sequence.latent, sequence.beside(()))
        prompt = key[:, :, text]
        keys = torch.cat((prompt, key[:, :, :text.start], key[:, :, text.stop:]), 2) if text.start else key
        points.prompt(site, query[:, :, picture], prompt, keys, options)


def _picture(backbone: DiTBackbone, site: Site, inputs: tuple, options: dict[str, Any]) -> tuple[Tokens | None, int]:
    """The picture's tokens in a block's queries, keys and values, and the length by which they fit; None where they do not."""
    sequence: Sequence = options[SEQUENCE_KEY]
    beside = sequence.beside(tuple(options.get(PICTURES, ())))
    # queries may be fewer: FluxKVCache and its like keep keys and values of other pictures, and put them behind
    lengths = {each.shape[-2]: None for each in (inputs[2], inputs[0])}
    fits = ((backbone.picture_tokens(site, sequence.latent, tokens, beside), tokens) for tokens in lengths)
    return next((each for each in fits if each[0] is not None), (None, 0))


def _places(backbone: DiTBackbone, site: Site, picture: Tokens, tokens: int, sequence: Sequence) -> tuple[slice, ...] | None:
    """The tokens of the other pictures; None where they are not told apart."""
    if sequence.pictures is None or not isinstance(picture, slice):
        return None
    return backbone.other_pictures(site, picture, tokens, sequence.pictures, sequence.text)


def _with_pictures(look: Callable, backbone: DiTBackbone, site: Site, whole: torch.Tensor, places: tuple[Tokens, ...],
                   options: dict[str, Any]) -> torch.Tensor:
    """All values of a block, with what a method makes of the picture's, at the first of ``places``, by the other pictures'."""
    sequence = options[SEQUENCE_KEY]
    value, *others = (tokens_of(whole, place) for place in places)
    grid, *grids = (backbone.grid(site, size) for size in (sequence.latent, *sequence.pictures))
    made = look(site, Pictures(value, grid, tuple(others), tuple(grids)), options)
    return whole if made is value else with_tokens(whole, places[0], made)
