"""Training data: captions, buckets, crops, flips, masks, batches, and Custom Diffusion's sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import close
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import seeded

from dreammatcher.training.captions import OBJECT_TEMPLATES, STYLE_TEMPLATES, Naming
from dreammatcher.training.custom_diffusion import at_sizes, first_token_constant, keys_and_values_of
from dreammatcher.training.data import Example, LatentSet, Preparation, Prepared, fitted, prepare
from dreammatcher.training.sets import TrainingSet

pytestmark = pytest.mark.usefixtures("gradients")


def test_captions_are_made_of_templates_identifier_and_class():
    assert (len(OBJECT_TEMPLATES), len(STYLE_TEMPLATES)) == (27, 19) and len(set(OBJECT_TEMPLATES)) == 27
    named = Naming("sks", "dog")
    assert named.captions() == ("a photo of a sks dog",) and named.prior_captions() == ("a photo of a dog",)
    with pytest.raises(ValueError, match="class_word: it is empty"):
        Naming("sks").prior_captions()
    with pytest.raises(ValueError, match="exactly one"):
        replace(named, templates=("a photo",))
    with pytest.raises(ValueError, match="both are empty"):
        Naming("", " ")


def picture(height: int, width: int) -> torch.Tensor:
    """Red on its left half, blue on its right."""
    image = torch.zeros(3, height, width)
    image[0, :, :width // 2], image[2, :, width // 2:] = 1, 1
    return image


def encode(pictures: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(pictures, 8)


@pytest.mark.parametrize("height, width, size", [(512, 512, (512, 512)), (3000, 2000, (576, 384)), (100, 1000, (256, 1024)),
                                                 (768, 1024, (384, 512))])
def test_a_picture_goes_into_the_bucket_of_its_shape(height, width, size):
    assert Preparation().size(height, width) == size
    assert Preparation(buckets=False).size(height, width) == (512, 512)


@settings(max_examples=100, deadline=None)
@given(st.integers(64, 4000), st.integers(64, 4000), st.sampled_from([64, 128, 512, 1024]))
def test_no_bucket_is_larger_than_the_resolution_allows(height, width, resolution):
    size = Preparation(resolution).size(height, width)
    assert size[0] * size[1] <= resolution**2 and all(side % 64 == 0 and side > 0 for side in size)


def test_a_picture_is_cut_around_its_middle_and_its_mask_and_its_flip_with_it():
    mask = torch.zeros(1, 128, 256)
    mask[..., :128] = 1
    ready = prepare(Example(picture(128, 256), ("a dog",), mask), Preparation(128, 64, buckets=False, flip=True), encode)
    assert ready.latents.shape == (2, 3, 16, 16) and ready.masks.shape == (2, 1, 16, 16)
    red, flipped = ready.latents[:, 0]
    assert red[:, :7].min() > 0.9 and red[:, 9:].max() < 0.1 and close(red.flip(-1), flipped)
    assert (ready.masks[0, 0] - red).abs().max() < 0.2 and close(ready.masks[0].flip(-1), ready.masks[1])


def test_an_odd_rest_is_cut_in_whole_pixels():
    image = torch.rand(3, 64, 97, generator=seeded())
    assert close(fitted(image, (64, 64)), image[:, :, 16:80])


def test_scaling_down_averages_what_it_leaves_out():
    checks = (torch.arange(256)[:, None] + torch.arange(256)).remainder(2).float().expand(1, 256, 256)
    assert (fitted(checks, (64, 64)) - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("wrong, said", [
    (dict(picture=torch.zeros(3, 63, 100)), "100x63 pixels, under 64"), (dict(captions=()), "captions: a picture has none"),
    (dict(mask=torch.zeros(1, 64, 65)), "paint it on the picture itself")])
def test_examples_that_cannot_be_learned_from_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        Example(**{"picture": torch.zeros(3, 64, 100), "captions": ("a dog",), **wrong})


def test_a_batch_is_of_one_size_and_every_picture_comes_as_often_as_the_others():
    mixed = LatentSet(tuple(Prepared(torch.full((1, 4, 4, width), value), None, ("a dog",))
                            for value, width in ((1.0, 4), (2.0, 4), (3.0, 6))))
    generator, seen = seeded(), {1.0: 0, 2.0: 0, 3.0: 0}
    for _ in range(600):
        batch = mixed.draw(2, generator)
        assert len(batch.latents) == 2 and batch.masks is None
        seen[float(batch.latents[0].max())] += 1
    assert min(seen.values()) > 150


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_version_of_another_size_counts_only_where_the_picture_is_and_its_caption_says_so(seed):
    example = Example(torch.ones(3, 100, 100), ("a photo of a <new1> dog",))
    (version,) = at_sizes(example, 128, 1, seeded(seed))
    assert version.picture.shape == (3, 128, 128) and version.mask.max() > 0.999
    assert version.picture.amin(0)[version.mask[0] > 0].min() > 0.99, "black borders must not be learned"
    (caption,) = version.captions
    shown = version.picture.amin(0).mean() ** 0.5
    if shown < 0.55:
        assert caption in ("a far away photo of a <new1> dog", "very small photo of a <new1> dog")
    elif caption != example.captions[0]:
        assert caption in ("zoomed in photo of a <new1> dog", "close up photo of a <new1> dog") or shown < 0.65


def test_the_start_tokens_keys_and_values_learn_nothing_and_stay_what_they_are():
    projected = torch.randn(2, 5, 3, generator=seeded()).requires_grad_()
    constant = first_token_constant(projected)
    assert torch.equal(constant, projected)
    constant.square().sum().backward()
    assert not projected.grad[:, :1].any() and close(projected.grad[:, 1:], 2 * projected[:, 1:].detach())


def test_custom_diffusion_trains_the_keys_and_values_of_cross_attention_alone():
    weights = {f"{where}.{name}.weight": torch.zeros(4, 4) for where in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v")}
    assert list(keys_and_values_of(weights, 1e-3).differences()) == ["attn2.to_k.weight", "attn2.to_v.weight"]
    with pytest.raises(ValueError, match="no cross-attention"):
        keys_and_values_of({"out.weight": torch.zeros(1)}, 1e-3)


def test_sets_are_joined_each_as_often_as_it_says_and_encoded_once():
    first, second = (Example(picture(128, 128) * share, ("sks",)) for share in (1.0, 0.5))
    naming, calls = Naming("sks", "dog"), []
    others = TrainingSet((second,), naming, Preparation(128))
    both = TrainingSet((first,), naming, Preparation(128)).joined(others, 3)
    assert both.examples == (first, first, first, second)
    assert "3 times as often" in both.described() and both.described().startswith("2 pictures")
    latents = both.prepared(lambda pictures: calls.append(1) or encode(pictures))
    assert len(calls) == 2 and len(latents.examples) == 4
    with pytest.raises(ValueError, match="their identifier is 'zwx' and this set's 'sks'"):
        both.joined(TrainingSet((second,), Naming("zwx"), Preparation(128)))
