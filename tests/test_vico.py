"""ViCo by itself: its sites, its mask, its losses in closed form, its recipe, and what it has learned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from closeness import close
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import normal

from dreammatcher.backbones.unet import UNetBackbone
from dreammatcher.subject import Conditioning
from dreammatcher.training import objective
from dreammatcher.training.data import LatentSet, Prepared
from dreammatcher.training.settings import ObjectiveSettings
from dreammatcher.training.trainables import TokenRows
from dreammatcher.vico.block import ImageAttention, begun, name_of, sites_of
from dreammatcher.vico.learned import ViCo, tensors_of
from dreammatcher.vico.loss import alignment, regularisation
from dreammatcher.vico.mask import column, subject_mask, text_attention, threshold
from dreammatcher.vico.recipe import SiteOutput, VicoRecipe, VicoSettings
from dreammatcher.vico.settings import LookSettings, LookTrace

pytestmark = pytest.mark.usefixtures("gradients")

SITE = ("output", 4, 0)


def readers_among(sites: list) -> tuple:
    return UNetBackbone({}, (), dict.fromkeys(sites, 0), "").decoder_readers


def test_the_sites_are_every_second_place_in_which_the_decoder_reads_the_prompt():
    sd1 = [("output", number, 0) for number in range(3, 12)]
    assert [site[1] for site in sites_of(readers_among(sd1))] == [4, 6, 8, 10]
    assert [site[1] for site in sites_of(readers_among(sd1[::-1]))] == [4, 6, 8, 10]
    deep = [("output", number, index) for number in range(6) for index in range(10 if number < 3 else 2)]
    assert sites_of(readers_among([*deep, ("input", 1, 0), ("middle", 0, 0)])) == (
        ("output", 1, 9), ("output", 3, 1), ("output", 5, 1))
    assert sites_of([("output", 0, 0)]) == ()


def by_hand(values: list[float]) -> list[list[bool]]:
    """The mask as the specification words it, one candidate after the other; several where candidates are equally good."""
    low, high = min(values), max(values)
    if low == high:
        return [[True] * len(values)]
    scaled = (torch.tensor(values) - low) / (high - low)
    splits = []
    for step in range(10):
        below, above = scaled[scaled < step / 10], scaled[scaled >= step / 10]
        if len(below) and len(above):
            gap = (below.double().mean() - above.double().mean()).item()
            splits.append((len(below) / len(scaled) * len(above) / len(scaled) * gap**2, (scaled >= step / 10).tolist()))
    best = max((between for between, _ in splits), default=0.0)
    return [mask for between, mask in splits if between > best * (1 - 1e-9)] or [(scaled > 0).tolist()]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=40))
def test_the_mask_is_that_of_the_coarse_otsu_search(levels):
    values = [level / 64 for level in levels]  # exact in floating point: no tie is a matter of rounding
    span = max(levels) - min(levels)
    if span and any(10 * (level - min(levels)) % span == 0 and 0 < level - min(levels) < span for level in levels):
        return  # a value on a candidate, up to the rounding of a tenth
    assert subject_mask(torch.tensor([values]))[0].tolist() in by_hand(values)


def test_a_map_without_contrast_masks_nothing_and_rows_are_told_apart():
    constant, split = torch.full((1, 6), 0.3), torch.tensor([[0.0, 0.0, 0.1, 0.9, 1.0, 0.0]])
    assert subject_mask(torch.cat([constant, split])).tolist() == [[True] * 6, [False, False, False, True, True, False]]
    assert threshold(split).item() == pytest.approx(0.2)


def test_attention_to_text_is_a_softmax_over_all_tokens_and_a_word_the_mean_of_its_places():
    query, key = normal(2, 5, 8), normal(2, 7, 8, seed=1)
    maps = text_attention(query, key, 2)
    assert close(maps.sum(-1), torch.ones(2, 5))
    one = torch.stack([(query[..., half] @ key[..., half].mT / 2).softmax(-1) for half in (slice(0, 4), slice(4, 8))]).mean(0)
    assert close(maps, one)
    places = torch.tensor([[1, 3], [6, 6]])
    assert close(column(maps, places), torch.stack([maps[0, :, [1, 3]].mean(-1), maps[1, :, 6]]))


def test_alignment_is_the_squared_difference_of_maps_by_their_maxima_and_leaves_the_end_token_alone():
    placeholder, end = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[3.0, 1.0]], requires_grad=True)
    loss = alignment(placeholder, end)
    assert loss.item() == pytest.approx(((0.5 - 1) ** 2 + (1 - 1 / 3) ** 2) / 2)
    loss.backward()
    assert end.grad is None
    # d/dp of ((p0/p1 - 1)^2 + c) / 2: the maximum has a gradient too
    assert close(placeholder.grad, torch.tensor([[(0.5 - 1) / 2, -(0.5 - 1) * 1 / 4]]))
    assert regularisation([(placeholder, end)] * 4).item() == pytest.approx(4 * loss.item())


def test_blocks_begin_by_the_seed_alone_and_at_zero_as_the_plain_model():
    widths, before = {SITE: (8, 2)}, torch.get_rng_state()
    first, same, other = (begun(widths, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    weight = lambda blocks: blocks[SITE].attn1.to_q.weight  # noqa: E731
    assert torch.equal(weight(first), weight(same)) and not torch.equal(weight(first), weight(other))
    x, reference = normal(1, 4, 8), normal(1, 6, 8, seed=1)
    assert not torch.allclose(first[SITE](x, reference), x, atol=1e-2)
    assert torch.equal(begun(widths, torch.Generator(), zero=True)[SITE](x, reference), x)


def test_the_block_sees_of_the_reference_what_the_mask_leaves():
    block, x, reference = ImageAttention(8, 2), normal(2, 4, 8), normal(2, 6, 8, seed=1)
    mask = torch.tensor([[True] * 3 + [False] * 3, [True] * 6])
    seen = block(x, reference, mask)
    hidden = reference.clone()
    hidden[0, 3:] = -10 * hidden[0, 3:]
    assert close(block(x, hidden, mask), seen)
    assert not torch.allclose(block(x, hidden), block(x, reference), atol=1e-3)
    assert close(block(x[:1], reference[:1, :3]), seen[:1])


@dataclass(eq=False)
class Tiny:
    """A model that predicts its input, changed at one site; its reference's states are the reference's cells."""

    prediction: str = objective.EPSILON
    alpha_bars: torch.Tensor = field(default_factory=lambda: torch.linspace(0.999, 0.01, 100))
    device: torch.device = torch.device("cpu")
    unet: dict = field(default_factory=dict)
    text: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)

    def encode(self, captions, weights=None, rows=None):
        row = rows["sks"].rows[0]
        return Conditioning(torch.stack([torch.stack([torch.ones(8), row, 2 * torch.ones(8)])] * len(captions)))

    def places(self, captions, word):
        return torch.tensor([[1]] * len(captions)), torch.tensor([[2]] * len(captions))

    def look(self, reference, timesteps, conditioning):
        self.asked.append((reference, timesteps))
        states = reference.flatten(2).mT.repeat(1, 1, 2)
        return {SITE: SiteOutput(states, text_attention(states, conditioning.cross_attention, 2))}

    def predict_changed(self, noisy, timesteps, conditioning, changes):
        states = changes[SITE](noisy.flatten(2).mT.repeat(1, 1, 2))
        return states[..., :4].mT.reshape(noisy.shape)


def pictures(*seeds: int, size=(4, 4)) -> tuple[Prepared, ...]:
    return tuple(Prepared(normal(1, 4, *size, seed=seed), None, ("a photo of a sks dog",)) for seed in seeds)


def recipe(examples=None, **chosen) -> tuple[VicoRecipe, Tiny]:
    model = Tiny()
    rows = TokenRows(normal(1, 8, seed=9), 1e-2)
    blocks = begun({SITE: (8, 2)}, torch.Generator().manual_seed(1))
    examples_used = LatentSet(examples or pictures(1, 2, 3))
    return VicoRecipe(model, examples_used, "sks", rows, blocks, VicoSettings(**chosen), ObjectiveSettings()), model


@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_is_the_noise_error_with_the_reference_seen_and_the_weighted_alignment(masked):
    vico, model = recipe(masked=masked, regularisation=0.3)
    loss = vico.loss(2, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    batch, references = vico.subject_set.draw_with_references(2, generator)
    timesteps = torch.randint(100, (2,), generator=generator)
    noise = torch.randn(batch.latents.shape, generator=generator)
    (asked, at), = model.asked
    assert torch.equal(asked, references) and torch.equal(at, timesteps), "the reference has no noise and the same timestep"
    conditioning = model.encode(batch.captions, None, vico.rows)
    seen = model.look(references, timesteps, conditioning)[SITE]
    placeholder, end = seen.attention[..., 1], seen.attention[..., 2]
    noisy = objective.add_noise(batch.latents, noise, model.alpha_bars[timesteps])
    states = noisy.flatten(2).mT.repeat(1, 1, 2)
    mask = subject_mask(placeholder) if masked else None
    predicted = vico.blocks[SITE](states, seen.states, mask)[..., :4].mT.reshape(noisy.shape)
    assert close(loss, (predicted - noise).square().mean() + 0.3 * alignment(placeholder, end))
    loss.backward()
    assert vico.rows["sks"].rows.grad.any() and all(value.grad is not None for value in vico.blocks[SITE].parameters())
    assert [group.rate for group in vico.groups()] == [1e-2, 1e-5]


def test_without_regularisation_the_word_learns_nothing_from_a_model_that_does_not_read_it():
    vico, _ = recipe(regularisation=0.0)
    vico.loss(2, torch.Generator().manual_seed(5)).backward()
    assert vico.rows["sks"].rows.grad is None


def test_a_reference_is_another_picture_and_all_of_a_batch_are_of_one_size():
    generator, examples = torch.Generator().manual_seed(0), pictures(1, 2, 3)
    latent_set = LatentSet(examples)
    for _ in range(20):
        batch, references = latent_set.draw_with_references(3, generator)
        assert not any(torch.equal(one, other) for one, other in zip(batch.latents, references))
    mixed = LatentSet((*examples, *pictures(4, 5, size=(4, 6))))
    sizes = set()
    for _ in range(200):
        batch, references = mixed.draw_with_references(3, generator)
        sizes.add((batch.latents.shape[-1], references.shape[-1]))
    assert sizes == {(4, 4), (4, 6), (6, 4), (6, 6)}
    alone = LatentSet(pictures(1))
    batch, references = alone.draw_with_references(2, generator)
    assert torch.equal(batch.latents, references)


def learned(**changes) -> ViCo:
    tensors = tensors_of(begun({SITE: (8, 2)}, torch.Generator().manual_seed(1)))
    return ViCo({**tensors, **changes}, torch.ones(1, 8), {"word": "sks"})


def test_what_is_learned_makes_the_same_blocks_again():
    saved = learned()
    assert len(saved.tensors) == 20 and saved.sites() == (4,) and saved.word == "sks"
    assert f"{name_of(SITE)}.ff.net.0.proj.bias" in saved.tensors
    block, x, reference = saved.blocks({SITE: (8, 2)})[SITE], normal(1, 4, 8), normal(1, 6, 8, seed=1)
    assert torch.equal(block(x, reference), begun({SITE: (8, 2)}, torch.Generator().manual_seed(1))[SITE](x, reference))


@pytest.mark.parametrize("make, says", [
    (lambda: learned().blocks({("output", 2, 0): (8, 2)}), "output blocks 4 and this model's sites are 2"),
    (lambda: learned().blocks({SITE: (16, 2)}), "is 8x8 and this model's is 16x16"),
    (lambda: learned(**{f"{name_of(SITE)}.attn3.to_q.weight": torch.ones(1)}).blocks({SITE: (8, 2)}), "unknown attn3"),
    (lambda: ViCo({name: value for name, value in learned().tensors.items() if "norm2.bias" not in name}, torch.ones(1, 8)
                  ).blocks({SITE: (8, 2)}), "lacks norm2.bias"),
    (lambda: learned(**{"lora_unet_x": torch.ones(1)}), "lora_unet_x is no name of image attention"),
    (lambda: learned(**{f"{name_of(SITE)}.norm1.bias": torch.full((8,), float("nan"))}), "norm1.bias holds NaN"),
    (lambda: replace(learned(), rows=torch.ones(8)), r"the word's vectors are \(8,\)"),
    (lambda: ViCo({}, torch.ones(1, 8)), "no image attention"),
    (lambda: VicoSettings(block_rate=0.0), "block_rate: 0.0 is outside"),
    (lambda: VicoSettings(regularisation=-1.0), "regularisation: -1.0 is outside"),
    (lambda: LookSettings(strength=3.0), "strength: 3.0 is outside 0..2"),
    (lambda: LookSettings(start=0.6, end=0.5), "start: 0.6 lies after end"),
])
def test_what_does_not_fit_is_refused_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_trace_says_why_nothing_was_looked_at():
    assert LookTrace(off=True).why_nothing_seen() == "strength is 0"
    assert "no step lies between" in LookTrace().why_nothing_seen()
    assert LookTrace(skipped=["a reason"]).why_nothing_seen() == "a reason" and LookTrace(looks=1).why_nothing_seen() == ""
