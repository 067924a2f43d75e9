"""A training of a model of two matrices, for tests of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from dreammatcher.subject import Conditioning
from dreammatcher.training import objective
from dreammatcher.training.data import LatentSet, Prepared
from dreammatcher.training.dreambooth import full_of, lora_of
from dreammatcher.training.loop import Training, train
from dreammatcher.training.recipe import SubjectRecipe
from dreammatcher.training.settings import LoraSettings, ObjectiveSettings, TrainingSettings
from dreammatcher.training.state import Checkpoint
from dreammatcher.weights import dense


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


@dataclass(eq=False)
class Linear:
    """A model of one weight matrix and a text of one: noise is predicted from the picture's channels and the caption's."""

    prediction: str = objective.EPSILON
    alpha_bars: torch.Tensor = field(default_factory=lambda: torch.linspace(0.999, 0.01, 100))
    device: torch.device = torch.device("cpu")
    unet: dict = field(default_factory=lambda: {"attn1.to_q.weight": 0.1 * normal(4, 4), "out.bias": torch.zeros(4)})
    text: dict = field(default_factory=lambda: {"self_attn.q_proj.weight": 0.1 * normal(4, 4, seed=1),
                                                "embeddings.weight": normal(3, 4)})

    def encode(self, captions, weights=None, rows=None):
        letters = torch.tensor([[caption.count(letter) for letter in "aeio"] for caption in captions]).float()
        return Conditioning((letters @ dense(self.text, weights or {})["self_attn.q_proj.weight"])[:, None])

    def predict(self, noisy, timesteps, conditioning, weights):
        weight_of = dense(self.unet, weights)
        seen = noisy + conditioning.cross_attention[:, 0, :, None, None]
        return torch.einsum("oc,bchw->bohw", weight_of["attn1.to_q.weight"], seen) + weight_of["out.bias"][:, None, None]


def latents(*values: float, size: tuple[int, int] = (4, 4), captions=("a photo of a sks dog",)) -> LatentSet:
    return LatentSet(tuple(Prepared(torch.full((1, 4, *size), value), None, captions) for value in values))


def recipe(kind: str = "lora", text: bool = False, prior: bool = True, model: Linear | None = None, **wanted) -> SubjectRecipe:
    model = model or Linear()
    unet = full_of(model.unet, 1e-2) if kind == "full" else lora_of(model.unet, ("to_q.weight",), LoraSettings(2), 1e-2, seeded())
    learned_text = lora_of(model.text, ("q_proj.weight",), LoraSettings(2), 1e-2, seeded(1)) if text else None
    return SubjectRecipe(model, latents(1.0, 2.0), ObjectiveSettings(**wanted), unet=unet, text=learned_text,
                         prior=latents(-1.0, captions=("a photo of a dog",)) if prior else None)


def outcome(trained: SubjectRecipe) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.learned.state_dict().items()}


def stopped(path, at: int, steps: int = 2, minutes: float = 10.0, begun: SubjectRecipe | None = None,
            chosen: TrainingSettings | None = None) -> Training:
    """A training whose user interrupts it after some steps."""
    seen = []

    def interrupt(training: Training) -> None:
        seen[:] = [training]
        if training.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(begun or recipe(), chosen or TrainingSettings(steps=steps), Checkpoint(path, "one", minutes), interrupt)
    return seen[0]
