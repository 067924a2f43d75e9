"""Names of weights in LoRA files, by the host's own tables: what is saved under them, its loaders find."""

from __future__ import annotations

import comfy.lora

#: how names begin, best first: diffusers' paths, which every other program knows, then those of the original code
UNET_FORMS = ("lora_unet_down_blocks_", "lora_unet_mid_block_", "lora_unet_up_blocks_", "lora_unet_")
TEXT_FORMS, TWO_TEXTS_FORMS = ("lora_te_", "lora_te1_", "lora_te2_"), ("lora_te1_", "lora_te2_")


def unet_names(base) -> dict[str, str]:
    """Weight of the UNet -> name in a file."""
    table = comfy.lora.model_lora_keys_unet(base, {})
    return {key.removeprefix("diffusion_model."): name for key, name in _inverted(table, UNET_FORMS).items()}


def text_names(tower) -> dict[str, str]:
    """Weight of the text encoders -> name in a file."""
    forms = TWO_TEXTS_FORMS if hasattr(tower, "clip_g") and hasattr(tower, "clip_l") else TEXT_FORMS
    return _inverted(comfy.lora.model_lora_keys_clip(tower, {}), forms)


def _inverted(table: dict[str, str], forms: tuple[str, ...]) -> dict[str, str]:
    best: dict[str, str] = {}
    for form in reversed(forms):
        best.update({key: name for name, key in table.items() if isinstance(key, str) and name.startswith(form)})
    return best
