"""Beside what people already use: each pack in front of and behind Apply (DreamMatcher), on the host's own nodes.

The README's table of compositions says what these tests prove.
"""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from world import Bench, family_unet, picture, prompt, random_unet, sample

SIZE = dict(height=32, width=32, steps=4)


@pytest.fixture(scope="module")
def bench(pack) -> Bench:
    return Bench(pack, random_unet(), height=32, width=32, steps=6)


def first_node(host, *names):
    kind = next((host.nodes[name] for name in names if name in host.nodes), None)
    if kind is None:
        pytest.skip(f"this host has none of {', '.join(names)}")
    return getattr(kind, "execute", None) if not hasattr(kind, "FUNCTION") else getattr(kind(), kind.FUNCTION)


def model_of(result):
    """The MODEL that a node returned, of either node generation."""
    return result[0] if isinstance(result, tuple) else result.args[0]


def like_ip_adapter(model):
    """An attn2 replacement in every site: it adds what the text would have attended to in an image prompt."""
    image = torch.randn(1, 4, 96, generator=torch.Generator().manual_seed(4))

    def replace(q, k, v, extra):
        from comfy.ldm.modules.attention import optimized_attention

        heads = extra["n_heads"]
        extra_keys = image.repeat(1, 1, k.shape[-1] // 96 + 1)[..., : k.shape[-1]].expand(q.shape[0], -1, -1)
        return optimized_attention(q, k, v, heads) + 0.5 * optimized_attention(q, extra_keys, extra_keys, heads)

    clone = model.clone()
    for kind, number in (("input", 1), ("input", 3), ("middle", 0), ("output", 0), ("output", 1), ("output", 2), ("output", 3)):
        clone.set_model_attn2_replace(replace, kind, number)
    return clone


def lora(host, model):
    clone = model.clone()
    clone.add_patches({"diffusion_model.output_blocks.2.1.transformer_blocks.0.attn2.to_q.weight": (torch.eye(32) * 0.4,)}, 1.0)
    return clone


def merge(host, model):
    """Half of the model, half of a model whose output layer is another."""
    import comfy.model_patcher

    other = comfy.model_patcher.ModelPatcher(random_unet().model, model.load_device, model.offload_device)
    for parameter in other.model.diffusion_model.middle_block.parameters():
        parameter.data = parameter.data * 1.3
    return model_of(first_node(host, "ModelMergeSimple")(model, other, 0.5))


#: name -> a function of (host, model) that returns the model with the pack applied
PACKS = {
    "LoRA": lora,
    "IPAdapter-like attn2 replacement": lambda host, model: like_ip_adapter(model),
    "PAG": lambda host, model: model_of(first_node(host, "PerturbedAttentionGuidance")(model, 3.0)),
    "SAG": lambda host, model: model_of(first_node(host, "SelfAttentionGuidance")(model, 0.5, 2.0)),
    "HyperTile": lambda host, model: model_of(first_node(host, "HyperTile")(model, 128, 1, 0, False)),
    "ToMe": lambda host, model: model_of(first_node(host, "TomePatchModel")(model, 0.3)),
    "FreeU": lambda host, model: model_of(first_node(host, "FreeU")(model, 1.1, 1.2, 0.9, 0.2)),
    "PerpNeg": lambda host, model: model_of(first_node(host, "PerpNeg")(model, prompt(55), 1.0)),
    "CFG rescale": lambda host, model: model_of(first_node(host, "RescaleCFG")(model, 0.7)),
    "model merge": merge,
}
#: packs that draw from the global random state while they run, so that two orders see other numbers
RANDOM = {"ToMe", "HyperTile"}
#: packs that sampling applies before or after ours whatever the order of the nodes
ORDERLESS = set(PACKS) - RANDOM


@pytest.mark.parametrize("name", PACKS)
def test_the_pack_works_in_front_and_behind(host, bench, name):
    patched = PACKS[name](host, bench.model)
    with_pack = bench.sample(patched, **SIZE)
    results = {}
    for where, model in (("front", bench.apply(patched)), ("behind", None)):
        if model is None:
            matched, trace = bench.apply()
            matched = PACKS[name](host, matched)
        else:
            matched, trace = model
        results[where] = bench.sample(matched, **SIZE)
        assert torch.isfinite(results[where]).all()
        assert not torch.equal(results[where], with_pack), f"{where}: DreamMatcher had no effect"
        assert not trace.skipped, trace.skipped
        assert trace.last() is not None
    if name in ORDERLESS:
        assert close(results["front"], results["behind"], RUN), "the order of the nodes must not matter"


@pytest.mark.parametrize("name", PACKS)
def test_without_strength_the_pack_is_as_if_alone(host, bench, name):
    patched = PACKS[name](host, bench.model)
    off = bench.apply(patched, strength=0.0)[0]
    assert torch.equal(bench.sample(off, **SIZE), bench.sample(patched, **SIZE))


@pytest.mark.parametrize("name", ["PAG", "SAG", "IPAdapter-like attn2 replacement", "CFG rescale", "FreeU"])
@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_guidance_works_with_the_pack(host, bench, pack, name, mode):
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(0.3 if mode == "fast" else 0.01, 0.0, 1.0, mode)
    matched, trace = bench.apply(PACKS[name](host, bench.model))
    guided = pack.module("dreammatcher.host.matching.guide").guide(matched, settings)
    out = bench.sample(guided, **SIZE)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample(matched, **SIZE))
    assert not any("not possible" in reason for reason in trace.skipped)


def tiny_controlnet():
    """A real ControlNet for a narrow SD1.5, random weights."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    net = comfy.cldm.cldm.ControlNet(
        image_size=32, in_channels=4, model_channels=32, hint_channels=3, num_res_blocks=[2] * 4,
        channel_mult=[1, 2, 4, 4], transformer_depth=[1] * 6 + [0, 0], transformer_depth_middle=1,
        use_spatial_transformer=True, context_dim=96, num_heads=4,
        legacy=False, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(6)
    for value in net.parameters():
        scale = 0.5 / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 0.05
        value.data = torch.randn(value.shape, generator=generator) * scale
    return comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))


def tiny_t2i_adapter():
    import comfy.controlnet
    import comfy.t2i_adapter.adapter

    net = comfy.t2i_adapter.adapter.Adapter(
        cin=192, channels=[32, 64, 128, 128], nums_rb=2, ksize=1, sk=True, use_conv=False, xl=False)
    generator = torch.Generator().manual_seed(7)
    for value in net.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.05
    return comfy.controlnet.T2IAdapter(net, 3, 8, "nearest-exact")


@pytest.mark.parametrize("make", [tiny_controlnet, tiny_t2i_adapter])
def test_control_reaches_the_target_and_not_the_reference(host, pack, make):
    bench = Bench(pack, family_unet("SD1.5"), height=32, width=32, steps=4)
    hint = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(8))
    controlled = first_node(host, "ControlNetApply")(bench.target, make(), hint, 0.8)[0]
    plain = sample(bench.model, controlled, bench.negative, **SIZE)
    matched, trace = bench.apply()
    out = sample(matched, controlled, bench.negative, **SIZE)
    assert torch.isfinite(out).all() and not torch.equal(out, plain) and not trace.skipped
    assert not torch.equal(plain, bench.sample(**SIZE)), "the control must do something"
    alone = bench.sample(bench.apply()[0], **SIZE)
    bench.sample(matched, **SIZE)
    assert torch.equal(bench.sample(matched, **SIZE), alone), "features made beside a control must serve without it"


@pytest.mark.parametrize("make", [tiny_controlnet, tiny_t2i_adapter])
def test_guidance_in_mode_paper_goes_along_with_control(host, pack, make):
    """The host adds control to skip connections in place, after the blocks that need them for their gradient have run."""
    bench = Bench(pack, family_unet("SD1.5"), height=32, width=32, steps=4)
    hint = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(8))
    controlled = first_node(host, "ControlNetApply")(bench.target, make(), hint, 0.8)[0]
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(1.0, 0.0, 1.0, "paper")
    matched, trace = bench.apply()
    out = sample(pack.module("dreammatcher.host.matching.guide").guide(matched, settings), controlled, bench.negative, **SIZE)
    assert not trace.skipped and torch.isfinite(out).all()
    assert not torch.equal(out, sample(matched, controlled, bench.negative, **SIZE))


def test_a_pack_that_merges_values_in_front_is_skipped_layer_by_layer_with_a_message(bench):
    """Behind ours it may do what it likes; in front of it nobody can be, for ours always runs first."""
    clone = bench.apply()[0].clone()
    patches = clone.model_options["transformer_options"]["patches"]
    patches["attn1_patch"] = [lambda n, context, value, extra: (n, context[:, ::2], value[:, ::2]), *patches["attn1_patch"]]
    trace = clone.model_options["transformer_options"]["dreammatcher"][0].plan.trace
    out = bench.sample(clone, **SIZE)
    assert torch.isfinite(out).all()
    assert any("changed the token count" in reason for reason in trace.skipped)


def test_two_branches_of_one_model_and_two_graphs_in_turn_never_mix(bench):
    plain = bench.sample(**SIZE)
    one, other = bench.apply()[0], bench.apply(strength=0.5)[0]
    first, second = bench.sample(one, **SIZE), bench.sample(other, **SIZE)
    for _ in range(2):
        assert torch.equal(bench.sample(one, **SIZE), first)
        assert torch.equal(bench.sample(**SIZE), plain)
        assert torch.equal(bench.sample(other, **SIZE), second)


def test_two_applies_on_one_model_both_act(pack, bench):
    Subject = pack.module("dreammatcher.matching.reference").Subject
    other = bench.mask(target_subject=Subject("cat", "the dog and cat", (9,), 77))
    one = bench.apply()[0]
    both, trace = bench.apply(one, other)
    out = bench.sample(both, **SIZE)
    assert not torch.equal(out, bench.sample(one, **SIZE)) and trace.last() is not None


def test_a_picture_in_tiles_is_left_alone_with_one_message(bench):
    def tiled(apply_model, options):
        x, sigma, c = options["input"], options["timestep"], options["c"]
        halves = [apply_model(half, sigma, **c) for half in x.chunk(2, 3)]
        return torch.cat(halves, 3)

    plain, (matched, trace) = bench.model.clone(), bench.apply()
    for model in (plain, matched):
        model.set_model_unet_function_wrapper(tiled)
    assert torch.equal(bench.sample(matched, **SIZE), bench.sample(plain, **SIZE))
    assert len(trace.skipped) == 1 and "see a part of the picture (tiles" in trace.skipped[0]


def test_calls_of_the_whole_picture_between_windows_are_matched(bench):
    """Packs that blend windows call the whole picture in between, as a guiding pass."""
    def windowed(apply_model, options):
        x, sigma, c = options["input"], options["timestep"], options["c"]
        halves = [apply_model(half, sigma, **c) for half in x.chunk(2, 3)]
        return 0.5 * apply_model(x, sigma, **c) + 0.5 * torch.cat(halves, 3)

    plain, (matched, trace) = bench.model.clone(), bench.apply()
    for model in (plain, matched):
        model.set_model_unet_function_wrapper(windowed)
    assert not torch.equal(bench.sample(matched, **SIZE), bench.sample(plain, **SIZE))
    assert trace.last().flow.shape[-2:] == (SIZE["height"], SIZE["width"]) and len(trace.skipped) == 1


def test_tiles_as_large_as_the_whole_picture_are_left_alone_too(bench):
    def rolled(apply_model, options):
        x, sigma, c = options["input"], options["timestep"], options["c"]
        return 0.5 * apply_model(x, sigma, **c) + 0.5 * apply_model(x.roll(7, 3), sigma, **c).roll(-7, 3)

    plain, (matched, trace) = bench.model.clone(), bench.apply()
    for model in (plain, matched):
        model.set_model_unet_function_wrapper(rolled)
    bench.sample(matched, **SIZE)
    assert len(trace.skipped) == 1 and "sees different pictures" in trace.skipped[0]


def test_the_noise_of_a_second_pass_at_another_size_finds_the_same_reference(bench):
    matched, trace = bench.apply()
    small = bench.sample(matched, height=16, width=16, steps=4)
    large = torch.nn.functional.interpolate(small, size=(28, 28))
    plain, out = (sample(model, bench.target, bench.negative, steps=6, denoise=0.5, latent=large, noise=picture(5, 28, 28))
                  for model in (bench.model, matched))
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert trace.last().flow.shape[-2:] == (28, 28) and not trace.skipped
