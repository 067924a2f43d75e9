"""Encoders of the metrics, from folders on this machine; none is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .metrics import CLIP, DREAMBOOTH, VICO, prepared

#: folder -> (repository, what it is for)
DINO, DINO_2, CLIP_B32 = "dino-vits16", "dinov2-small", "clip-vit-base-patch32"
REPOSITORIES = {DINO: "facebook/dino-vits16", DINO_2: "facebook/dinov2-small", CLIP_B32: "openai/clip-vit-base-patch32"}
FILES = {DINO: "config.json and model.safetensors (or pytorch_model.bin)", DINO_2: "config.json and model.safetensors",
         CLIP_B32: "config.json, model.safetensors (or pytorch_model.bin), tokenizer.json, vocab.json and merges.txt"}

WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, eq=False)
class Encoder:
    """Features of pictures [3, H, W] in 0..1, and of texts where it has any."""

    name: str
    pictures: Callable[[list[torch.Tensor]], torch.Tensor]  # -> [N, D]
    texts: Callable[[list[str]], torch.Tensor] | None = None  # -> [N, D]


def missing(roots: Mapping[str, Path]) -> str:
    """Says what to put where for all encoders that are not there; empty if all are. ``roots``: name -> folder around its own."""
    said = [f"{name} is missing; put {FILES[name]} of huggingface.co/{REPOSITORIES[name]} into {root / name}"
            for name, root in roots.items() if not _is_there(root / name)]
    return f"encoders: {'. '.join(said)}" if said else ""


def _is_there(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in WEIGHTS)


def load_encoder(root: Path, name: str, preparation: str = DREAMBOOTH, device: str | torch.device = "cpu") -> Encoder:
    """Loads one of :data:`REPOSITORIES` from its folder in ``root``. CLIP's pictures are always prepared as CLIP's own.

    Raises ValueError, naming repository, files and folder, when it is not there or cannot be read.
    """
    folder = root / name
    if lacking := missing({name: root}):
        raise ValueError(lacking)
    import transformers
    from safetensors import SafetensorError

    try:
        if name == CLIP_B32:
            model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).to(device).eval()
            return _clip(name, model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), device)
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"encoders: {folder} cannot be read ({first}); it needs {FILES[name]} of "
                         f"huggingface.co/{REPOSITORIES[name]}") from error
    return Encoder(f"{name} ({preparation})", _class_token(model, preparation, device))


@dataclass(frozen=True, eq=False)
class Distance:
    """Perceptual distance of two pictures [3, H, W] in 0..1."""

    name: str
    between: Callable[[torch.Tensor, torch.Tensor], float]


NO_LPIPS = "lpips: the package is not installed; pip install lpips, or leave --lpips out"


def load_lpips(device: str | torch.device = "cpu") -> Distance:
    """Loads LPIPS with AlexNet (Zhang et al. 2018) by its authors' package.

    The package fetches AlexNet's weights when it is first used. Raises ValueError, naming the package, when it is not installed.
    """
    try:
        import lpips
    except ImportError as error:
        raise ValueError(NO_LPIPS) from error
    model = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.no_grad()
    def between(one: torch.Tensor, other: torch.Tensor) -> float:
        return model(one[None].to(device), other[None].to(device), normalize=True).item()
    return Distance("LPIPS (AlexNet)", between)


def _class_token(model, preparation: str, device) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """Features of the class token behind the last norm, as DINO's own code gives them."""
    more = {"interpolate_pos_encoding": True} if preparation == VICO else {}  # 256 pixels where 224 were trained

    @torch.no_grad()
    def encode(pictures: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([model(torch.stack([prepared(picture, preparation) for picture in batch]).to(device),
                                **more).last_hidden_state[:, 0].float().cpu() for batch in _batches(pictures)])
    return encode


def _clip(name: str, model, tokenizer, device) -> Encoder:
    @torch.no_grad()
    def pictures(given: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([_plain(model.get_image_features(
            pixel_values=torch.stack([prepared(picture, CLIP) for picture in batch]).to(device))) for batch in _batches(given)])

    @torch.no_grad()
    def texts(given: list[str]) -> torch.Tensor:
        how = {"padding": True, "truncation": True, "max_length": model.config.text_config.max_position_embeddings,
               "return_tensors": "pt"}
        return torch.cat([_plain(model.get_text_features(**tokenizer(batch, **how).to(device))) for batch in _batches(given)])

    return Encoder(name, pictures, texts)


def _plain(features) -> torch.Tensor:
    return getattr(features, "pooler_output", features).float().cpu()


def _batches(items: list, size: int = 32) -> list[list]:
    return [items[start:start + size] for start in range(0, len(items), size)]
