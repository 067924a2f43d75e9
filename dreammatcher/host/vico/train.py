"""Training ViCo in the graph: from MODEL, CLIP, VAE and pictures to blocks and a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ...backbones.base import Site
from ...subject import Conditioning
from ...training.details import Uses
from ...training.new_words import one_word_of
from ...training.sets import TrainingSet
from ...training.settings import TrainingOptions, TrainingSettings
from ...training.textual_inversion import token_rows
from ...training.trainables import TokenRows
from ...vico.block import begun
from ...vico.learned import ViCo, tensors_of
from ...vico.mask import map_of
from ...vico.recipe import SiteOutput, VicoRecipe, VicoSettings
from ...watch import AttentionLayer
from ...weights import WeightOverrides
from ..model.blocks import changed, states_of
from ..text.towers import check_one
from ..training.auto import sized
from ..training.details import taught
from ..training.going_on import start_of
from ..training.kept import kept_steps
from ..training.learn import has_masks
from ..training.model import HostDenoiser
from ..training.run import check_pictures, ready, run
from ..training.schedule import check_unet
from .files import write_vico
from .sites import blocks_of, widths


class LookingHost:
    """The host's model as ViCo trains on it."""

    def __init__(self, denoiser: HostDenoiser):
        self.denoiser, self.model = denoiser, denoiser.model
        self.sites = blocks_of(denoiser.model.model)
        self.alpha_bars, self.prediction, self.device = denoiser.alpha_bars, denoiser.prediction, denoiser.device
        self.unet, self.text = denoiser.unet, denoiser.text

    def encode(self, captions: list[str], weights: WeightOverrides | None = None,
               rows: Mapping[str, TokenRows] | None = None) -> Conditioning:
        return self.denoiser.encode(captions, weights, rows)

    def places(self, captions: list[str], word: str) -> tuple[torch.Tensor, torch.Tensor]:
        places = [self.denoiser.places(caption, word) for caption in captions]
        return torch.tensor([[position] for position, _ in places]), torch.tensor([[end] for _, end in places])

    def look(self, reference: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> dict[Site, SiteOutput]:
        watch = Maps(tuple(self.sites))
        with torch.inference_mode(False), torch.enable_grad():
            states = states_of(self.sites, lambda: self.denoiser.predict(reference, timesteps, conditioning, {}, watch=watch))
        return {site: SiteOutput(states[site], attention) for site, attention in zip(self.sites, watch.collected, strict=True)}

    def predict_changed(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning,
                        changes: Mapping[Site, Callable[[torch.Tensor], torch.Tensor]]) -> torch.Tensor:
        with changed(self.sites, lambda site, states, _: changes[site](states.float()).to(states)):
            return self.denoiser.predict(noisy, timesteps, conditioning, {})


class Maps:
    """Takes the attention to the prompt [B, N, T] of some sites, in the order in which they run.

    The model is watched, and no hook is set on its layers: a hook is gone when a block runs again for the gradient.
    """

    def __init__(self, sites: tuple[Site, ...]):
        self.sites = sites
        self.collected: list[torch.Tensor] = []

    def __call__(self, layer: AttentionLayer) -> None:
        if layer.layer in self.sites:
            self.collected.append(map_of(layer.queries, layer.keys(layer.context)))


def train_vico(model, clip, vae, subject_set: TrainingSet, initial_word: str, chosen: VicoSettings, settings: TrainingSettings,
               options: TrainingOptions) -> tuple[ViCo, list[float]]:
    """Blocks and the vector of the set's identifier. Raises ValueError as :class:`HostDenoiser`, and for models of another kind.
    """
    check_unet(model, "ViCo")
    word = one_word_of(subject_set, "ViCo")
    check_pictures(subject_set, options.details.one_picture)
    subject_set, _ = taught(options, Uses("ViCo"), subject_set)
    check_one(clip, "ViCo")
    subject_set, options = sized(model, subject_set, options)
    sizes = widths(model.model)
    with ready(model, clip, vae, subject_set, None, settings, options.running) as work:
        with torch.inference_mode(False):
            looking = LookingHost(work.denoiser)
            blocks = begun(sizes, torch.Generator().manual_seed(settings.seed), chosen.zero)
            rows = token_rows(work.denoiser.rows_of(initial_word), 1, chosen.word_rate)
            masked = has_masks(subject_set)
            objective = options.objective(masked=masked)
            recipe = VicoRecipe(looking, work.subject_set, word, rows, blocks, chosen, objective)
        job = work.job("ViCo", training_set=subject_set, initial_word=initial_word, chosen=chosen,
                       objective=objective, settings=settings, details=options.details)

        def learned(losses: list[float]) -> ViCo:
            about = {"word": word, "initial_word": initial_word, "subject": subject_set.called(), "steps": str(len(losses)),
                     "seed": str(settings.seed), "pictures": str(len(subject_set.examples))}
            return ViCo(tensors_of(blocks), rows.rows.detach().cpu().clone(), about)

        start = start_of(recipe, job, options, subject_set.words)
        kept = kept_steps(options, job, start.run, work.vae,
                          lambda losses, _, name, old: write_vico(learned(losses), name, old))
        losses = run(recipe, settings, job, options, kept, start)
    return learned(losses), losses

