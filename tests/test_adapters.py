"""DoRA, LoHa and LoKr by their formulas, and the gradients of their factors."""

from __future__ import annotations

import json

import pytest
import torch
from kept_memory import kept_for_the_gradient
from small_training import Linear, latents, normal, seeded

from dreammatcher.training.adapters import MAGNITUDES, Dora, Factors, Loha, Lokr, adapter_of, column_norms, divided
from dreammatcher.training.beginning import begin
from dreammatcher.training.details import ALGORITHMS, DORA, LOHA, LOKR, PLAIN, Details, Uses, details_of
from dreammatcher.training.dreambooth import full_of, lora_of
from dreammatcher.training.export import lora_tensors
from dreammatcher.training.loop import train
from dreammatcher.training.recipe import SubjectRecipe
from dreammatcher.training.settings import LoraSettings, ObjectiveSettings, TrainingSettings
from dreammatcher.training.state import Checkpoint, size_of
from dreammatcher.training.trainables import Lora

pytestmark = pytest.mark.usefixtures("gradients")

FORMS = (DORA, LOHA, LOKR)
WEIGHTS = {"a.to_q.weight": normal(12, 8), "b.conv.weight": normal(6, 4, 3, 3, seed=1)}


def drawn(algorithm: str, rank: int = 2, alpha: float | None = None, weights=WEIGHTS, dropout: float = 0.0):
    """An adapter whose factors are all at work."""
    adapter = adapter_of(algorithm, weights, LoraSettings(rank, alpha), 1e-2, seeded(1), dropout)
    generator = seeded(2)
    with torch.no_grad():
        for value in adapter.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("algorithm", FORMS)
def test_training_begins_with_the_plain_model_and_every_factor_then_moves(algorithm):
    adapter = adapter_of(algorithm, WEIGHTS, LoraSettings(2), 1e-2, seeded())
    seen = adapter.weights(WEIGHTS)
    assert all((seen[name] - weight).norm() < 1e-6 * weight.norm() for name, weight in WEIGHTS.items())
    moved = drawn(algorithm)
    sum((value * normal(*value.shape, seed=7)).sum() for value in moved.weights(WEIGHTS).values()).backward()
    assert all(value.grad is not None and value.grad.norm() > 0 for value in moved.parameters())


def test_a_dora_is_its_magnitudes_times_directions_whose_norms_are_held_constant_for_the_gradient():
    adapter = drawn(DORA, alpha=1.0)
    for name, weight in WEIGHTS.items():
        parts = {end: value.detach().clone().requires_grad_() for end, value in adapter.factors(name).items()}
        down, up, magnitudes = (parts[end] for end in ("lora_down.weight", "lora_up.weight", MAGNITUDES))
        direction = weight + 0.5 * (up @ down.flatten(1)).view_as(weight)
        norms = direction.detach().transpose(0, 1).reshape(weight.shape[1], -1).norm(dim=1)
        wanted = direction * (magnitudes.flatten() / norms).view(1, -1, *[1] * (weight.ndim - 2))
        seen = adapter.weights(WEIGHTS)[name]
        assert (seen - wanted).norm() < 1e-5 * wanted.norm()
        assert (column_norms(seen.detach()) - magnitudes).norm() < 1e-5 * magnitudes.norm(), "norms of columns"
        pull, own = normal(*weight.shape, seed=5), adapter.parts(name)
        gradients = [torch.autograd.grad((value * pull).sum(), [parts_[end] for end in own])
                     for value, parts_ in ((wanted, parts), (seen, own))]
        assert all((one - other).norm() < 1e-4 * one.norm() for one, other in zip(*gradients, strict=True))


def test_a_loha_is_two_products_entry_by_entry_and_a_lokr_blocks_of_one_matrix():
    loha, lokr = drawn(LOHA, alpha=1.0), drawn(LOKR, rank=1, alpha=3.0)
    for name, weight in WEIGHTS.items():
        first, second, third, fourth = (loha.factors(name)[f"hada_w{number}_{side}"] for number in "12" for side in "ab")
        wanted = weight + 0.5 * ((first @ second) * (third @ fourth)).view_as(weight)
        assert (loha.weights(WEIGHTS)[name] - wanted).norm() < 1e-6 * wanted.norm()
        factors, (rows, columns) = lokr.factors(name), (divided(size)[0] for size in weight.shape[:2])
        block = 3.0 * (factors["lokr_w2_a"] @ factors["lokr_w2_b"]).view(weight.shape[0] // rows, weight.shape[1] // columns,
                                                                         *weight.shape[2:])
        wanted = torch.cat([torch.cat([factors["lokr_w1"][row, column] * block for column in range(columns)], 1)
                            for row in range(rows)]) + weight
        assert (lokr.weights(WEIGHTS)[name] - wanted).norm() < 1e-6 * wanted.norm()
    assert (divided(320), divided(1280), divided(127), divided(64)) == ((16, 20), (32, 40), (1, 127), (8, 8))


def test_a_lokr_whose_rank_saves_nothing_keeps_its_second_matrix_whole_and_unscaled():
    adapter = drawn(LOKR, rank=8, alpha=1.0)
    factors = adapter.factors("a.to_q.weight")
    assert set(factors) == {"lokr_w1", "lokr_w2"} and adapter.tensors("a.to_q.weight")["alpha"] == 8
    wanted = torch.kron(factors["lokr_w1"], factors["lokr_w2"])
    assert torch.allclose(adapter.differences()["a.to_q.weight"], wanted)


@pytest.mark.parametrize("algorithm", FORMS)
def test_no_step_keeps_more_than_the_factors_beside_what_the_model_sees(algorithm):
    weights = {"a.weight": normal(256, 128)}
    adapter = drawn(algorithm, weights=weights)
    with kept_for_the_gradient() as kept:
        adapter.weights(weights)
    assert kept.beside() <= 2 * sum(value.nbytes for value in adapter.parameters()) < weights["a.weight"].nbytes


@pytest.mark.parametrize("algorithm", FORMS)
def test_a_run_learns_with_every_form_and_goes_on_bit_for_bit(tmp_path, algorithm):
    def recipe() -> SubjectRecipe:
        model = Linear()
        unet = lora_of(model.unet, ("to_q.weight",), LoraSettings(2), 1e-2, seeded(), algorithm=algorithm)
        return SubjectRecipe(model, latents(1.0, 2.0), ObjectiveSettings(), unet=unet)

    def stop(training) -> None:
        if training.step == 3:
            raise KeyboardInterrupt

    settings, whole = TrainingSettings(steps=60, batch=4), recipe()
    losses = train(whole, settings).losses
    assert sum(losses[-20:]) < sum(losses[:20])
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), settings, Checkpoint(tmp_path / "state", "one"), stop)
    resumed = recipe()
    train(resumed, settings, Checkpoint(tmp_path / "state", "one"))
    assert all(torch.equal(value, resumed.learned.state_dict()[name]) for name, value in whole.learned.state_dict().items())
    assert size_of(whole.learned.state_dict()) > 0


def test_rank_dropout_leaves_out_ranks_of_a_dora_and_is_refused_for_the_others():
    dropped, plain = drawn(DORA, rank=8, dropout=0.5), drawn(DORA, rank=8)
    name = "a.to_q.weight"
    assert torch.equal(dropped.weights(WEIGHTS)[name], plain.weights(WEIGHTS)[name]), "what is drawn and saved has all"
    steps = [dropped.weights(WEIGHTS, seeded(number))[name] for number in range(3)]
    assert not torch.equal(steps[0], steps[1]) and not torch.equal(steps[1], steps[2])
    for algorithm in (LOHA, LOKR):
        with pytest.raises(ValueError, match=f"rank_dropout: 0.1 leaves out ranks of a LoRA or a DoRA, .* is {algorithm}"):
            Details(rank_dropout=0.1, algorithm=algorithm)


def test_the_choice_travels_and_is_refused_where_no_lora_learns():
    for algorithm in ALGORITHMS:
        chosen = Details(algorithm=algorithm)
        assert details_of(json.loads(json.dumps(chosen.described()))) == chosen
    older = {name: value for name, value in Details(one_picture=True).described().items() if name != "algorithm"}
    assert details_of(older) == Details(one_picture=True)
    with pytest.raises(ValueError, match="algorithm: DreamBooth .full. cannot use this option"):
        Uses("DreamBooth (full)").check(Details(algorithm=DORA))
    with pytest.raises(ValueError, match="algorithm: 'OFT' is unknown; choose one of LoRA, DoRA, LoHa, LoKr"):
        Details(algorithm="OFT")
    with pytest.raises(ValueError, match="a weight of shape .4,. has no rows and columns"):
        adapter_of(LOHA, {"bias": torch.zeros(4)}, LoraSettings(2), 1e-2, seeded())
    assert isinstance(lora_of(WEIGHTS, ("weight",), LoraSettings(2), 1e-2, seeded(), algorithm=PLAIN), Lora)


def beginning(adapter, alpha_factor: float = 1.0) -> dict[str, Factors]:
    """Changes as a file has them, with another alpha and the difference to match."""
    changes = {}
    for name in adapter.shapes:
        tensors = {end: value.detach().clone() for end, value in adapter.tensors(name).items()}
        alpha = float(tensors.pop("alpha"))
        if adapter.multiplied in tensors:
            tensors[adapter.multiplied] /= alpha_factor
            alpha *= alpha_factor
        changes[name] = Factors(adapter.algorithm, tensors, alpha)
    return changes


@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_each_form_begins_from_its_own_with_the_same_effect_whatever_its_alpha(algorithm, factor):
    learned, again = drawn(algorithm), adapter_of(algorithm, WEIGHTS, LoraSettings(2), 1e-2, seeded(9))
    begin(again, beginning(learned, factor))
    for name, value in learned.weights(WEIGHTS).items():
        assert (again.weights(WEIGHTS)[name] - value).norm() < 1e-5 * (value - WEIGHTS[name]).norm()
    larger = adapter_of(algorithm, WEIGHTS, LoraSettings(1), 1e-2, seeded(9))
    with pytest.raises(ValueError, match=r"begin_from: .* its factors are .* there and .* here; set rank as it was"):
        begin(larger, beginning(learned))


def test_forms_do_not_begin_from_one_another():
    lora, full = lora_of(WEIGHTS, ("weight",), LoraSettings(2), 1e-2, seeded()), full_of(WEIGHTS, 1e-2)
    for other in (lora, full):
        with pytest.raises(ValueError, match="is changed by a LoHa, and a .* learns here; set algorithm to LoHa"):
            begin(other, beginning(drawn(LOHA)))
    for changes, said in ((beginning(drawn(LOKR)), "LoKr"), (lora.low_rank(), "plain LoRA"), (WEIGHTS, "whole difference")):
        with pytest.raises(ValueError, match=f"is changed by a {said}, and a LoHa learns here; set algorithm .* as it was"):
            begin(drawn(LOHA), changes)
    with pytest.raises(ValueError, match="changes 2 weights that are not taught here"):
        begin(drawn(LOHA, weights={"other.weight": normal(4, 4)}), beginning(drawn(LOHA)))


@pytest.mark.parametrize(("kind", "ends"), [
    (Dora, {"lora_up.weight", "lora_down.weight", "alpha", "dora_scale"}),
    (Loha, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"}),
    (Lokr, {"lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"})])
def test_files_have_lycoris_s_names(kind, ends):
    adapter = drawn(kind.algorithm, rank=1)
    tensors = lora_tensors(adapter, {"a.to_q.weight": "lora_unet_a_to_q", "b.conv.weight": "lora_unet_b_conv"})
    assert set(tensors) == {f"lora_unet_{name}.{end}" for name in ("a_to_q", "b_conv") for end in ends}
    if kind is Dora:
        assert tensors["lora_unet_b_conv.dora_scale"].shape == (1, 4, 1, 1)
        assert tensors["lora_unet_b_conv.lora_up.weight"].shape == (6, 1, 1, 1)
