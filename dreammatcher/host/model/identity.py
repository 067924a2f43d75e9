"""Identities: texts that change with what a model computes, and with nothing else.

They are the keys of all that is kept between runs. There are two. :func:`network_identity` is that of the network by itself,
which inverts references and makes their features with nobody's patches. :func:`model_identity` is that of the model as a sampler
uses it, with all that packs do around the network. Both are the same when a graph is run again and after a restart, whether nodes
ran anew or the host had their outputs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from .digest import SMALL, digest, few, inside, read_numbers

#: the part of a model that is its noise schedule and what its prediction means
SCHEDULE = {"model_sampling": None}
#: of a ModelPatcher: what is done around the network while it is sampled
AROUND_IT = ("model_options", "attachments", "additional_models")
#: entries of transformer options under keys that nodes make up
KEYED = ("wrappers", "callbacks")


def network_identity(model, hooks: Iterable[Any] = ()) -> str:
    """The identity of a model's UNet by itself.

    It covers the weights with everything that is patched into them, noise schedule, replaced parts and injections. ``hooks`` are
    those that a run's prompts bring (newer hosts). On older hosts the model must be loaded: what is patched into it by nodes
    further down is only there to be seen then.
    """
    with _ejected(model):
        if hasattr(model, "injections"):
            return _digest(model, weights_of(model), _network(model), list(hooks))
        base = model.model
        replaced = {name: comfy.utils.get_attr(base, name) for name in {**model.object_patches_backup, **SCHEDULE}}
        return _digest(model, _numbers(dict(base.diffusion_model.named_parameters())), _deferred(base), _not_ours(base, replaced))


def model_identity(model) -> str:
    """The identity of a model as a sampler uses it: its network, and patches, wrappers and functions of every pack, ours too."""
    with _ejected(model):
        return _digest(model, weights_of(model), _network(model), _sampled(model))


def clip_identity(clip) -> str:
    """The identity of a text encoder: weights, patches, hooks, what it skips, and the words that it has learned."""
    attributes = {name: value for name, value in vars(clip).items() if name not in ("patcher", "cond_stage_model", "tokenizer")}
    words = getattr(clip.tokenizer, "words", None)  # of ours
    with _ejected(clip.patcher):
        return _digest(clip.patcher, weights_of(clip.patcher), _network(clip.patcher), _sampled(clip.patcher), attributes, words)


def vae_identity(vae) -> str:
    """The identity of an autoencoder: weights and patches."""
    patcher = getattr(vae, "patcher", None)
    if patcher is None:
        return digest(_numbers(vae.first_stage_model.state_dict()))
    with _ejected(patcher):
        return _digest(patcher, weights_of(patcher), _network(patcher), _sampled(patcher))


def beside_weights(model) -> str:
    """An identity of what makes the network compute something else with the same weights."""
    with _ejected(model):
        return _digest(model, _network(model))


def weights_of(model) -> list:
    """A few numbers of every weight as the model was loaded, and of every patch that is to go into it."""
    weights = {name: value for name, value in unpatched(model).items() if not name.startswith("model_sampling.")}
    return [_numbers(weights), digest(model.patches, known=_known(model), special=_special, most=SMALL)]


def weights_identity(module: torch.nn.Module) -> str:
    """The identity of a module's weights as they are, with all that is patched into them."""
    return _numbers(dict(module.named_parameters()))


def unpatched(model) -> dict[str, torch.Tensor]:
    """A ModelPatcher's weights by name, without the LoRAs that the host has put into them."""
    weights = model.model.state_dict()
    for name, module in _originals(model).items():
        others = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
        weights = others | module.state_dict(prefix=f"{name}.")
    hooked = {key: backup[0] for key, backup in getattr(model, "hook_backup", {}).items()}
    kept = {key: getattr(backup, "weight", backup) for key, backup in model.backup.items()}
    return {**weights, **hooked, **kept}


def _originals(model) -> dict[str, torch.nn.Module]:
    """Modules of the model for which others stand in at the moment, by name."""
    return {name: value for name, value in model.object_patches_backup.items() if isinstance(value, torch.nn.Module)}


def _ejected(model) -> contextlib.AbstractContextManager:
    """Inside, what packs inject into the modules is out of them, as between runs."""
    return model.use_ejected() if hasattr(model, "use_ejected") else contextlib.nullcontext()


def _digest(model, *parts: object) -> str:
    return digest(*parts, known=_known(model), special=_special)


def _known(model) -> dict[int, str]:
    """Names of the model and its modules: weights are looked at elsewhere."""
    originals = _originals(model)
    others = {id(module) for name in originals for module in comfy.utils.get_attr(model.model, name).modules()}
    modules = {id(module): name for name, module in model.model.named_modules()
               if id(module) not in others and not name.startswith("model_sampling")}
    modules |= {id(module): each for name, original in originals.items() for each, module in original.named_modules(prefix=name)
                if not name.startswith("model_sampling")}
    return {**modules, id(model.model): "the model", id(model): "its patcher"}


def _special(value: Any) -> Any:
    """The parts to compare of another model that patches use, and of a hook, whose keyframes move while a run lasts."""
    if isinstance(value, ModelPatcher):
        return [weights_of(value), _network(value), _sampled(value)]
    if hasattr(value, "hook_keyframe") and hasattr(value, "hook_ref"):
        attributes = {name: one for name, one in vars(value).items() if name not in ("hook_ref", "hook_keyframe")}
        return [attributes, [[frame.strength, frame.start_percent] for frame in value.hook_keyframe.keyframes]]
    return NotImplemented


def _network(model) -> list:
    replaced = {name: model.get_model_object(name) for name in {**model.object_patches, **SCHEDULE} if _has(model, name)}
    keyed = [_values(getattr(model, name, None)) for name in ("injections", "callbacks")]
    extras = [getattr(model, name, None) for name in ("weight_wrapper_patches", "forced_hooks")]
    return [_not_ours(model.model, replaced), keyed, extras]


def _has(model, name: str) -> bool:
    return name in model.object_patches or hasattr(model.model, name)


def _not_ours(base: torch.nn.Module, replaced: dict[str, Any]) -> dict[str, Any]:
    """Parts of a model by name. Ours are looked through; what is the model's own method then is no replacement."""
    seen = {name: inside(value) for name, value in replaced.items()}
    return {name: value for name, value in seen.items() if getattr(value, "__self__", None) is not base}


def _sampled(model) -> dict:
    attributes: dict[str, Any] = {name: getattr(model, name, None) for name in AROUND_IT}
    transformer = dict(attributes["model_options"].get("transformer_options", {}))
    for name in KEYED:
        transformer[name] = _values(transformer.get(name))
    return {**attributes, "model_options": {**attributes["model_options"], "transformer_options": transformer},
            "wrappers": _values(getattr(model, "wrappers", None))}


def _values(keyed: dict | None) -> dict[str, list]:
    """The entries under the keys that nodes make up, by kind and in their order."""
    return {kind: list(entries.values()) if isinstance(entries, dict) else entries
            for kind, entries in (keyed or {}).items() if entries}


def _deferred(base: torch.nn.Module) -> list:
    """Patches that an older host puts into weights when a layer runs."""
    functions = {name: getattr(module, "weight_function", None) for name, module in base.named_modules()}
    return [[name, one.model_patcher.patches.get(one.key) if hasattr(one, "model_patcher") else one]
            for name, one in functions.items() if one]


def _numbers(weights: dict[str, torch.Tensor]) -> str:
    """A hash of a few numbers of every weight."""
    plain = {name: value for name, value in weights.items() if not value.is_meta}
    read = read_numbers([few(value) for value in plain.values()])
    shapes = {name: [*value.shape] for name, value in weights.items()}
    return hashlib.sha256(json.dumps([shapes, read]).encode()).hexdigest()

