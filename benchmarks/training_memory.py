"""``python -m benchmarks.training_memory``: the plans of trainings on cards of several sizes, by arithmetic.

Models have their real shapes and no memory; nothing is measured on a card. Of a card, :data:`CONTEXT` is taken by its driver and
the desktop, and the plan leaves itself room for libraries. Writes the list into web/docs/DreamMatcherPriorSet.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from harness.boot import Host
from harness.library import ROOT

from .paper_model import CELL, attention_of_cards, paper_model
from .timing_model import SD15, SDXL, Family

PAGE = ROOT / "web" / "docs" / "DreamMatcherPriorSet.md"
CARDS = (8, 12, 16, 24)  # GB
GB = 1 << 30
CONTEXT = GB // 2
LIST = re.compile(r"^- SD1\.5 LoRA – .*\n(?:- .*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One training."""

    title: str
    family: Family
    side: int  # pixels
    full: bool = False
    text: bool = False
    prior: bool = False
    rank: int = 4


CASES = (
    Case("SD1.5 LoRA", SD15, 512),
    Case("SD1.5 LoRA, text encoder, class pictures", SD15, 512, text=True, prior=True, rank=8),
    Case("SD1.5 full", SD15, 512, full=True),
    Case("SDXL LoRA", SDXL, 1024),
    Case("SDXL LoRA, text encoders, class pictures", SDXL, 1024, text=True, prior=True, rank=8),
    Case("SDXL full", SDXL, 1024, full=True),
)


@dataclass(frozen=True)
class Row:
    """One plan of a training, and the memory that it takes in all."""

    said: str  # beyond what was asked for
    taken: int  # bytes, the model's included

    def fits(self, card: float) -> bool:
        """``card``: GB."""
        return self.taken + CONTEXT <= card * GB


def rows_of(host: Host, case: Case) -> list[Row]:
    """Every plan of a training, each more sparing than the one before."""
    module = host.pack().module
    estimate, plan = (module(f"dreammatcher.host.training.{name}") for name in ("estimate", "plan"))
    settings, recipes = (module(f"dreammatcher.training.{name}") for name in ("settings", "recipe"))
    rows: list[Row] = []
    needs: dict[tuple, Any] = {}
    with torch.inference_mode(False), attention_of_cards():
        model = paper_model(host, case.family)
        recipe = recipe_of(host, model, case, recipes, settings)
        asked = settings.TrainingSettings()
        for way in plan.plans(recipe, asked, settings.Running()):
            planned = way.settings(asked)
            if way.computing not in needs:
                needs[way.computing] = estimate.need_of(recipe, model.changed(checkpointing=way.checkpointing), planned,
                                                        recipe.streams * planned.batch, (case.side // CELL, case.side // CELL))
            need = needs[way.computing]
            weights = sum(value.nbytes for value in model.unet.values())
            weights += 0 if way.text_away else sum(value.nbytes for value in model.text.values())
            rows.append(Row(", ".join(way.said(asked)), weights + need.total + plan.WORKSPACE))
    return rows


def recipe_of(host: Host, model: Any, case: Case, recipes: Any, settings: Any) -> Any:
    methods, data = (host.pack().module(f"dreammatcher.training.{name}") for name in ("dreambooth", "data"))
    names = host.pack().module("dreammatcher.host.training.names")
    generator, lora = torch.Generator(), settings.LoraSettings(case.rank)
    latents = torch.empty(1, 4, case.side // CELL, case.side // CELL)
    pictures = data.LatentSet((data.Prepared(latents, None, ("a photo of a sks dog",)),))
    text = methods.lora_of(model.text, methods.TEXT_TARGETS, lora, 1e-4, generator) if case.text else None
    if case.full:
        known = names.unet_names(model.model.model)
        with torch.device("meta"):
            unet = methods.full_of({name: value for name, value in model.unet.items()
                                    if name.rpartition(".")[0] + ".weight" in known}, 5e-6)
    else:
        unet = methods.lora_of(model.unet, methods.UNET_TARGETS, lora, 1e-4, generator)
    return recipes.SubjectRecipe(model, pictures, settings.ObjectiveSettings(), unet=unet, text=text,
                                 prior=pictures if case.prior else None)


def listed(plans: dict[str, list[Row]]) -> str:
    """A list in Markdown: for each training and card, the first of its plans that fits and the GB that it takes in all."""
    lines = []
    for title, rows in plans.items():
        cards: dict[str, list[int]] = {}
        for card in CARDS:
            fits = next((f"{row.taken / GB:.1f}{f' ({row.said})' if row.said else ''}" for row in rows if row.fits(card)), None)
            cards.setdefault(fits or f"no ({rows[-1].taken / GB:.1f})", []).append(card)
        lines.append(f"- {title} – " + "; ".join(f"{'–'.join(map(str, sorted({of[0], of[-1]})))} GB: {said}"
                                                 for said, of in cards.items()))
    return "\n".join(lines) + "\n"


def main() -> None:
    with torch.inference_mode():
        host = Host(ROOT / "build" / "host-training")
        said = listed({case.title: rows_of(host, case) for case in CASES})
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(LIST.sub(lambda _: said, page), encoding="utf-8")
    print(said)


if __name__ == "__main__":
    main()
