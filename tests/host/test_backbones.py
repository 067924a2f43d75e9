"""The contract of every model family: sites and grids, off is bit-identical, what is injected arrives, inversion leads back."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from world import FAMILIES, Bench, family_unet

POOLED = {name: 1280 if parts[-1] else None for name, parts in FAMILIES.items()}
SIZE = dict(height=16, width=24, steps=4)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, pack):
    bench = Bench(pack, family_unet(request.param), height=16, width=24, steps=6, pooled=POOLED[request.param])
    return bench, pack.module("dreammatcher.host.model.backbone").backbone_of(bench.model.model)


@pytest.fixture
def points(pack):
    return pack.module("dreammatcher.host.model.patch_points").Points


def call(pack, bench, points=None, sigma: float = 1.0) -> torch.Tensor:
    reference = bench.reference
    derivative = pack.module("dreammatcher.host.model.capture").ode_derivative
    with torch.inference_mode():
        return derivative(bench.model.model, reference.positive, reference.trajectory.at(sigma), sigma, points)


def test_sites_and_taps_are_met_in_their_order_with_their_grids(pack, family, points):
    bench, backbone = family
    size = tuple(bench.reference.latent.shape[-2:])
    values, prompts, taps = [], [], []

    def see(into):
        def look(site, n, context, value, extra):
            into.append((site, n.shape[1]))
            return n, context, value
        return look

    call(pack, bench, points(prompt=see(prompts), values=see(values), feature=lambda tap, h, _: taps.append(tap)))
    matched = [(site, tokens) for site, tokens in values if site in backbone.matched]
    assert [site for site, _ in matched] == list(backbone.matched) and matched
    assert {site for site, _ in prompts} == set(backbone.readers)
    assert [tap for tap in taps if tap in backbone.taps] == list(backbone.taps) and backbone.taps
    for site, tokens in (*matched, *prompts):
        height, width = backbone.grid(site, size)
        picture = backbone.picture_tokens(site, size, tokens)
        assert len(range(tokens)[picture]) == height * width
        assert backbone.picture_tokens(site, size, tokens + 1) is None, "a number that does not fit is told"
    assert backbone.map_sites(size) and backbone.map_sites(size) <= set(backbone.readers)


def test_the_coarsest_grid_is_one_cell_at_the_least_side(family):
    _, backbone = family
    least = backbone.coarsest
    assert min(min(backbone.grid(site, (least, 2 * least))) for site in backbone.readers) == 1
    assert min(min(backbone.grid(site, (2 * least, 2 * least))) for site in backbone.readers) == 2


def test_sites_are_chosen_by_their_numbers_and_others_refused(family):
    _, backbone = family
    assert backbone.chosen("") == backbone.matched
    number = str(backbone.matched[-1][1])
    assert set(backbone.chosen(f" {number} ")) < set(backbone.matched)
    for wrong in ("99", "all", ","):
        with pytest.raises(ValueError, match="layers: .* is not among this model's"):
            backbone.chosen(wrong)


def test_points_that_change_nothing_and_strength_0_leave_every_bit(pack, family, points):
    bench, _ = family

    def same(site, n, context, value, extra):
        return n, context, value

    plain = call(pack, bench)
    assert torch.equal(call(pack, bench, points(lambda *_: None, same, same, lambda *_: None)), plain)
    off, _ = bench.apply(strength=0.0)
    assert torch.equal(bench.sample(off, **SIZE), bench.sample(**SIZE))


def test_what_is_given_as_values_is_what_attention_takes(pack, family, points):
    """With values of its own at one site the network says something else, with those it has anyway the same."""
    bench, backbone = family
    site = backbone.matched[-1]

    def put(scale):
        def look(at, n, context, value, extra):
            return n, context, value * scale if at == site else value
        return points(values=look)

    assert torch.equal(call(pack, bench, put(1)), call(pack, bench))
    assert not close(call(pack, bench, put(2)), call(pack, bench), RUN)


def test_inversion_leads_back_where_steps_are_small(pack, family):
    """The network is random, so its flow is rough: small noise levels in many steps."""
    bench, _ = family
    inversion, capture = (pack.module(f"dreammatcher.{name}") for name in ("matching.inversion", "host.model.capture"))
    base, prompt, latent = bench.model.model, bench.reference.positive, bench.reference.latent
    process = pack.module("dreammatcher.host.model.backbone").process_of(base.model_sampling)

    def back(steps: int) -> float:
        sigmas = [0.2 * (k + 1) / steps for k in range(steps)]
        with torch.inference_mode():
            def derivative(x, sigma):
                return capture.ode_derivative(base, prompt, x, sigma)
            trajectory = inversion.invert(derivative, latent, sigmas, sigmas[0] / 4, process)
            return inversion.psnr(inversion.reconstruct(derivative, trajectory), latent)

    few, many = back(4), back(32)
    assert many > few + 6 and many > 25, (few, many)


def test_a_reference_bears_the_family_and_the_process_of_its_model(family):
    bench, backbone = family
    assert bench.reference.fingerprint == backbone.family
    assert bench.reference.trajectory.process.name == ("V" if "prediction=V" in backbone.family else "EPS")


def test_families_differ_from_each_other(pack):
    backbone_of = pack.module("dreammatcher.host.model.backbone").backbone_of
    fingerprints = {backbone_of(family_unet(name).model).family for name in FAMILIES}
    assert len(fingerprints) > 1


def test_a_class_that_is_not_in_the_registry_is_refused_by_name_with_the_list(pack):
    class Mixer(torch.nn.Module):
        pass

    base = torch.nn.Module()
    base.diffusion_model = Mixer()
    with pytest.raises(ValueError, match="model: Mixer is not a UNet.*SD1.x, SD2.x or SDXL"):
        pack.module("dreammatcher.host.model.backbone").backbone_of(base)
