"""Of a reference's passes are kept the values of the layers that are matched, and no others."""

from __future__ import annotations

import pytest
import torch
from transformers_world import SIGMA, SIZE, applied, drawn, evaluated, latent_of, made, other_reference, reference_of
from world import Bench, random_unet

KINDS = ("cond", "uncond")


def kept(store) -> list:
    """The features in a store."""
    return [row for key, (_, row) in store.rows.items() if key[1] in KINDS]


def fresh(pack, reference):
    return reference.with_store(pack.module("dreammatcher.matching.features").FeatureStore())


@pytest.mark.parametrize("layers, blocks", [("", {3, 4}), ("2, 3, 4", {2, 3, 4}), ("4", {4})])
def test_a_transformer_keeps_the_values_of_the_chosen_blocks_and_of_the_one_that_is_compared(family, layers, blocks):
    clean, noise, x = made(family)
    reference = reference_of(family, clean, noise, family.positive)
    matched, trace = applied(family, reference, layers=layers)
    evaluated(matched, family.positive, family.negative, [(x, SIGMA)] * 2)
    row, = kept(reference.store)
    assert {site[1] for site in row.hidden} == blocks and trace.layers
    height, width = family.backbone.grid(family.backbone.matched[0], SIZE)
    value = row.scales[0].shape[1] * height * width * 4  # bytes
    assert row.bytes() == (len(blocks) + 1) * value and reference.store.bytes() == row.bytes()


@pytest.fixture(scope="module")
def unet(pack):
    return Bench(pack, random_unet())


def in_turn(pack, reference, choices: tuple[str, ...], picture) -> None:
    """One reference matched at each of these layers, one choice after the other and again, gives what each alone does."""
    alone = {layers: picture(layers, fresh(pack, reference)) for layers in choices}
    assert not any(torch.equal(alone[choices[0]], alone[other]) for other in choices[1:])
    for order in (choices, choices[::-1]):
        shared = fresh(pack, reference)
        for layers in (*order, *order):
            assert torch.equal(picture(layers, shared), alone[layers]), (order, layers)


def test_two_choices_of_blocks_of_one_reference_are_both_right(z):
    def picture(layers, reference):
        return drawn(applied(z, reference, layers=layers)[0], z.longer, z.negative, cfg=3.0)

    in_turn(z.pack, other_reference(z), ("", "2", "2, 3, 4"), picture)


def test_two_choices_of_a_unets_layers_of_one_reference_are_both_right(pack, unet):
    numbers = numbers_of(pack, unet)

    def picture(layers, reference):
        return unet.sample(unet.apply(reference=reference, layers=layers)[0])

    in_turn(pack, unet.reference, ("", numbers[0], numbers[-1]), picture)


def numbers_of(pack, bench) -> list[str]:
    """Numbers of the output blocks that can be matched."""
    backbone = pack.module("dreammatcher.host.model.backbone").backbone_of(bench.model.model)
    return [str(number) for number in sorted({site[1] for site in backbone.matched})]


def test_two_plans_of_other_layers_on_one_model_give_the_same_with_one_reference_and_with_two(z):
    """Both are matched in one call, so that each asks the store while the other's features are the newest."""
    def both(first, second):
        model, one = applied(z, first, layers="4")
        model, two = applied(z, second, layers="2, 3", model=model)
        picture = drawn(model, z.longer, z.negative, cfg=3.0)
        assert one.layers and two.layers and not one.skipped and not two.skipped
        return picture

    reference = other_reference(z)
    apart = both(reference, fresh(z.pack, reference))
    shared = fresh(z.pack, reference)
    assert torch.equal(both(shared, shared), apart) and torch.equal(both(shared, shared), apart)


def counted(pack, monkeypatch) -> list:
    references, passes = pack.module("dreammatcher.host.matching.references"), []
    run = references.reference_pass
    monkeypatch.setattr(references, "reference_pass", lambda *given: passes.append(given[-1]) or run(*given))
    return passes


def test_fewer_layers_take_what_is_kept_and_more_are_looked_at_again(pack, unet, monkeypatch):
    passes = counted(pack, monkeypatch)
    reference, numbers = fresh(pack, unet.reference), numbers_of(pack, unet)
    counts = []
    for layers in (numbers[0], "", numbers[-1], numbers[0]):
        passes.clear()
        unet.sample(unet.apply(reference=reference, layers=layers)[0])
        counts.append(len(passes))
    assert counts == [counts[0], counts[0], 0, 0] and counts[0] > 0


def test_features_that_are_made_ahead_are_those_of_their_layers(z, monkeypatch):
    passes = counted(z.pack, monkeypatch)
    prepare = z.pack.module("dreammatcher.host.matching.invert").prepare_features
    module = z.pack.module("dreammatcher.matching.features")
    settings = z.pack.module("dreammatcher.matching.settings")
    mask = settings.MaskSettings(reference_mask=torch.ones(1, 1, *SIZE), carried=True)
    clean, noise = (latent_of(z.model, seed, *SIZE) for seed in (5, 6))
    reference = reference_of(z, clean, noise, z.positive)
    found = {}
    for made_for, sampled in (("", ""), ("", "4"), ("2, 3, 4", ""), ("", "2")):
        with torch.inference_mode():
            prepared = prepare(z.model, reference, mask, module.FeatureOptions(layers=made_for))
        passes.clear()
        drawn(applied(z, prepared, layers=sampled)[0], z.longer, z.negative)
        found[made_for, sampled] = len(passes)
    assert found == {("", ""): 0, ("", "4"): 0, ("2, 3, 4", ""): 0, ("", "2"): 1}, "made anew where they are not there"
    with pytest.raises(ValueError, match="layers: '1' is not among"):
        prepare(z.model, reference, mask, module.FeatureOptions(layers="1"))
