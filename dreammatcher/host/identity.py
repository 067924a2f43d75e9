"""What tells the weights of one model from those of another, by a few numbers of each."""

from __future__ import annotations

import hashlib
import json

import torch


def weights_identity(unet: torch.nn.Module) -> tuple:
    """Changes when any weight patch changes: a few values of every parameter and the identity of deferred patches."""
    deferred = tuple(id(module.weight_function) for module in unet.modules() if getattr(module, "weight_function", None))
    return tuple(_read([_few(value) for value in unet.parameters()])), deferred


def fingerprint(*values: object) -> str:
    """Changes with any of nested values, of tensors with a few of their numbers. The same after a restart of the host."""
    samples: list[torch.Tensor] = []
    shape = [_walk(value, samples) for value in values]
    return hashlib.sha256(json.dumps([shape, _read(samples)]).encode()).hexdigest()


def unpatched(model) -> dict[str, torch.Tensor]:
    """A ModelPatcher's weights by name, without the LoRAs that the host has put into them."""
    kept = {key: getattr(backup, "weight", backup) for key, backup in model.backup.items()}
    return {**model.model.state_dict(), **kept}


def _walk(value: object, samples: list[torch.Tensor]) -> object:
    """``value`` without its tensors, of each of which a sample is added to ``samples``."""
    if torch.is_tensor(value):
        samples.append(_few(value))
        return "tensor"
    if isinstance(value, dict):
        return [[str(name), _walk(value[name], samples)] for name in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [_walk(part, samples) for part in value]
    if hasattr(value, "weights"):  # an adapter of newer hosts
        return _walk(value.weights, samples)
    return value if isinstance(value, (int, float, str, type(None))) else type(value).__name__


def _few(value: torch.Tensor) -> torch.Tensor:
    return value.detach().flatten()[:: max(1, value.numel() // 8)][:8].float().sum()


def _read(samples: list[torch.Tensor]) -> list[float]:
    """Tensors of one number each as numbers, with one transfer from each device that they lie on."""
    places: dict[torch.device, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample.device, []).append(place)
    numbers = [0.0] * len(samples)
    for chosen in places.values():
        for place, number in zip(chosen, torch.stack([samples[place] for place in chosen]).tolist()):
            numbers[place] = number
    return numbers
