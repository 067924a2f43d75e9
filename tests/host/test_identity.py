"""The key of what a model computes: it differs for whatever changes a prediction, and stays when a graph runs again."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace

import pytest
import torch
from world import Bench, random_unet

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture
def identity(pack):
    """MODEL -> (of its network, of all that a sampler does with it), with the model loaded."""
    import comfy.model_management

    module = pack.module("dreammatcher.host.model.identity")

    def of(model) -> tuple[str, str]:
        comfy.model_management.load_models_gpu([model])
        return module.network_identity(model), module.model_identity(model)
    return of


def run(host, name: str, *given, **named):
    """The first output of one of the host's nodes."""
    kind = host.nodes[name]
    result = kind.execute(*given, **named) if hasattr(kind, "define_schema") else getattr(kind(), kind.FUNCTION)(*given, **named)
    return (result.args if hasattr(result, "args") else result)[0]


#: node -> inputs, and inputs that do something else
PATCHES = {
    "FreeU_V2": (dict(b1=1.3, b2=1.4, s1=0.9, s2=0.2), dict(b1=1.3, b2=1.4, s1=0.9, s2=0.3)),
    "FreeU": (dict(b1=1.1, b2=1.2, s1=0.9, s2=0.2), dict(b1=1.0, b2=1.2, s1=0.9, s2=0.2)),
    "RescaleCFG": (dict(multiplier=0.7), dict(multiplier=0.70001)),
    "PerturbedAttentionGuidance": (dict(scale=3.0), dict(scale=2.0)),
    "SelfAttentionGuidance": (dict(scale=0.5, blur_sigma=2.0), dict(scale=0.5, blur_sigma=3.0)),
    "HyperTile": (dict(tile_size=256, swap_size=2, max_depth=0, scale_depth=False),
                  dict(tile_size=256, swap_size=2, max_depth=1, scale_depth=False)),
    "TomePatchModel": (dict(ratio=0.3), dict(ratio=0.5)),
    "EasyCache": (dict(reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False),
                  dict(reuse_threshold=0.3, start_percent=0.15, end_percent=0.95, verbose=False)),
}
SCHEDULES = {
    "ModelSamplingDiscrete": (dict(sampling="v_prediction", zsnr=False), dict(sampling="v_prediction", zsnr=True),
                              dict(sampling="eps", zsnr=True), dict(sampling="lcm", zsnr=False)),
    "ModelSamplingContinuousEDM": (dict(sampling="eps", sigma_max=120.0, sigma_min=0.002),
                                   dict(sampling="eps", sigma_max=100.0, sigma_min=0.002),
                                   dict(sampling="v_prediction", sigma_max=120.0, sigma_min=0.002)),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_around_the_network_changes_what_is_sampled_and_a_second_one_like_it_is_the_same(host, toybox, fresh, identity,
                                                                                                name):
    if name not in host.nodes:
        pytest.skip(f"this host has no {name}")
    plain, chosen = identity(toybox[0]), PATCHES[name]
    first, again, other = (identity(run(host, name, model, **inputs)) for model, inputs in (
        (toybox[0], chosen[0]), (fresh[0], chosen[0]), (toybox[0], chosen[1])))
    assert first == again, "the node ran again, on the same model loaded anew"
    assert len({plain[1], first[1], other[1]}) == 3
    assert plain[0] == first[0] == other[0], "references are inverted without such patches"
    assert identity(toybox[0]) == plain


@pytest.mark.parametrize("name", SCHEDULES)
def test_another_noise_schedule_or_kind_of_prediction_changes_the_network(host, toybox, fresh, identity, name):
    plain = identity(toybox[0])
    identities = [identity(run(host, name, toybox[0], **inputs)) for inputs in SCHEDULES[name]]
    assert identities == [identity(run(host, name, fresh[0], **inputs)) for inputs in SCHEDULES[name]]
    for part in (0, 1):
        assert len({plain[part], *(one[part] for one in identities)}) == len(identities) + 1
    assert identity(toybox[0]) == plain


def lora(folder, name: str, scale: float = 1.0) -> str:
    from safetensors.torch import save_file

    key, generator = "lora_unet_output_blocks_4_1_transformer_blocks_0_attn1_to_v", torch.Generator().manual_seed(1)
    save_file({f"{key}.lora_down.weight": torch.randn(4, 64, generator=generator),
               f"{key}.lora_up.weight": scale * torch.randn(64, 4, generator=generator)}, folder / f"{name}.safetensors")
    return f"{name}.safetensors"


@pytest.mark.parametrize("loader", ["LoraLoaderModelOnly", "LoraLoaderBypassModelOnly"])
def test_a_lora_changes_the_network_in_the_weights_and_beside_them(host, toybox, fresh, identity, model_folder, loader):
    if loader not in host.nodes:
        pytest.skip(f"this host has no {loader}")
    folder = model_folder("loras")
    names = lora(folder, "identity"), lora(folder, "identity_2", 0.5)
    plain = identity(toybox[0])
    first, again, weaker, other = (identity(run(host, loader, model, lora_name=name, strength_model=strength))
                                   for model, name, strength in ((toybox[0], names[0], 1.0), (fresh[0], names[0], 1.0),
                                                                 (toybox[0], names[0], 0.9), (toybox[0], names[1], 1.0)))
    assert first == again
    for part in (0, 1):
        assert len({plain[part], first[part], weaker[part], other[part]}) == 4
    assert identity(toybox[0]) == plain, "and it is as before when the LoRA is gone"


@pytest.mark.parametrize("count", [5_000, 9_999, 10_001, 123_456])
def test_a_tensor_is_read_from_one_end_to_the_other(pack, count):
    read = pack.module("dreammatcher.host.model.digest").few(torch.arange(float(count)), 5_000)
    assert read[0] == 0 and len(read) <= 5_000 and read[-1] >= count - 1 - count / 2_000


def test_a_merge_changes_the_network(host, toybox, fresh, identity):
    plain = identity(toybox[0])
    nothing = run(host, "ModelMergeSubtract", fresh[0], fresh[0], multiplier=1.0)
    merged = [run(host, "ModelMergeSimple", toybox[0], nothing, ratio=ratio) for ratio in (0.5, 0.5, 0.25)]
    first, again, other = map(identity, merged)
    assert first == again and len({plain[0], first[0], other[0]}) == 3


def test_dreammatcher_apply_leaves_the_network_as_it_is_and_is_part_of_what_is_sampled(pack, identity):
    bench = Bench(pack, random_unet())
    plain = identity(bench.model)
    first, again, weaker = (identity(bench.apply(strength=strength)[0]) for strength in (1.0, 1.0, 0.5))
    assert first == again and plain[0] == first[0] == weaker[0]
    assert len({plain[1], first[1], weaker[1]}) == 3
    matched, trace = bench.apply()
    bench.sample(matched)
    assert trace.last() is not None and identity(matched) == first, "a run leaves records and features, and changes nothing"


def test_two_subjects_and_guidance_do_not_change_the_network_either(pack, identity):
    bench = Bench(pack, random_unet())
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings
    guide = pack.module("dreammatcher.host.matching.guide").guide
    identities = []
    for mode in ("fast", "paper", "paper"):
        model, _ = bench.apply(bench.apply()[0], strength=0.5)
        identities.append(identity(guide(model, settings(1.0, 0.0, 1.0, mode))))
    plain = identity(bench.model)
    assert all(one[0] == plain[0] for one in identities) and identities[1] == identities[2] != identities[0]


def patch(scale: float, **more):
    """A patch as another pack's node makes it at every run."""
    kept = SimpleNamespace(scale=scale, **more)

    def attn2_patch(n, context, value, extra):
        return n, context * kept.scale, value

    return attn2_patch


class Callable:
    """A patch that is an object."""

    def __init__(self, scale: float, mask: torch.Tensor):
        self.scale, self.mask = scale, mask

    def __call__(self, n, context, value, extra):
        return n, context * self.scale * self.mask.mean(), value


def with_patch(model, function):
    clone = model.clone()
    clone.set_model_attn2_patch(function)
    return clone


def test_functions_and_objects_of_other_packs_are_compared_by_what_they_do(toybox, identity):
    mask, other = torch.ones(512, 512), torch.ones(512, 512)
    other[100, 200] = 0.99
    ways = [lambda: patch(1.0), lambda: patch(2.0), lambda: patch(1.0, more=[1, {"a": 2}]), lambda: Callable(1.0, mask.clone()),
            lambda: Callable(1.0, other), lambda: Callable(2.0, mask), lambda: Callable(1.0, mask).__call__]
    identities = [identity(with_patch(toybox[0], make()))[1] for make in ways]
    assert identities == [identity(with_patch(toybox[0], make()))[1] for make in ways] and len(set(identities)) == len(ways)


STRENGTH = 1.0


def reads_a_global(n, context, value, extra):
    return n, context * STRENGTH, value


def test_a_global_value_that_a_patch_reads_counts(toybox, identity, monkeypatch):
    before = identity(with_patch(toybox[0], reads_a_global))
    assert identity(with_patch(toybox[0], reads_a_global)) == before
    monkeypatch.setitem(globals(), "STRENGTH", 0.5)
    assert identity(with_patch(toybox[0], reads_a_global))[1] != before[1]


def test_what_cannot_be_looked_into_is_the_same_only_while_it_is_the_same_object(toybox, identity):
    numbers = itertools.count()
    files = [iter(()) for _ in range(2)]
    first, again, other = (identity(with_patch(toybox[0], patch(1.0, source=one)))[1] for one in (
        (value for value in ()), (value for value in ()), numbers))
    assert len({first, again, other}) == 3
    generator = (value for value in ())
    assert len({identity(with_patch(toybox[0], patch(1.0, source=generator)))[1] for _ in range(2)}) == 1
    assert len({identity(with_patch(toybox[0], patch(1.0, source=one)))[1] for one in files}) == 2


def test_a_patch_that_holds_itself_its_model_and_a_lock_can_be_told_from_another(toybox, fresh, identity):
    def make(model, scale):
        held = patch(scale, lock=threading.Lock(), model=model, base=model.model)
        held.itself = held
        return with_patch(model, held)

    first, again, other = identity(make(toybox[0], 1.0)), identity(make(toybox[0], 1.0)), identity(make(toybox[0], 2.0))
    assert first[0] == again[0] and first[1] != other[1]


def test_the_text_encoder_counts_by_weights_skipped_layers_and_learned_words(host, pack, toybox, fresh):
    of = pack.module("dreammatcher.host.model.identity").clip_identity
    knows = pack.module("dreammatcher.host.text.new_words").with_new_words
    plain = of(toybox[1])
    skipping = host.nodes["CLIPSetLastLayer"]().set_last_layer
    width = pack.module("dreammatcher.host.text.towers")
    rows = torch.ones(1, width.width_of(width.towers_of(toybox[1])))
    ways = [lambda clip: skipping(clip, -2)[0], lambda clip: knows(clip, {"sks": rows}),
            lambda clip: knows(clip, {"sks": 2 * rows})]
    identities = [of(make(toybox[1])) for make in ways]
    assert identities == [of(make(fresh[1])) for make in ways] and len({plain, *identities}) == 4 and of(fresh[1]) == plain
