"""Several references of one subject, and several subjects in one picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import RUN, close
from world import Bench, picture, prompt, random_unet, sample


@pytest.fixture(scope="module")
def bench(pack) -> Bench:
    return Bench(pack, random_unet())


@pytest.fixture(scope="module")
def second(pack, bench):
    """Another picture of another size, inverted with the same model."""
    invert = pack.module("dreammatcher.host.matching.invert").invert_reference
    with torch.inference_mode():
        return invert(bench.model, {"samples": picture(8, 12, 20)}, bench.positive, bench.negative, 10, "ddim_uniform")[0]


@pytest.fixture(scope="module")
def combined(pack):
    return pack.module("dreammatcher.matching.reference").combined


def test_two_references_differ_from_either_and_both_are_used(bench, second, combined):
    one, other = bench.sample(bench.apply()[0]), bench.sample(bench.apply(reference=second)[0])
    matched, trace = bench.apply(reference=combined(bench.reference, second))
    both = bench.sample(matched)
    assert not torch.equal(both, one) and not torch.equal(both, other)
    assert set(trace.last().best.unique().tolist()) == {0, 1}
    assert trace.last().others[0][1] == (12, 20)


def test_a_second_reference_of_weight_zero_changes_nothing(bench, second, combined):
    alone = bench.sample(bench.apply()[0])
    assert torch.equal(bench.sample(bench.apply(reference=combined(bench.reference, second, second_weight=0))[0]), alone)


def test_weights_multiply_along_a_chain(bench, second, combined):
    pair = combined(bench.reference, second, first_weight=0.5, second_weight=0.8)
    three = combined(pair, bench.reference, first_weight=0.5)
    assert [member.weight for member in three.members] == [0.25, 0.4, 1.0]


def test_the_same_reference_twice_gives_the_picture_of_one(bench, combined):
    alone = bench.sample(bench.apply()[0])
    twice = bench.sample(bench.apply(reference=combined(bench.reference, bench.reference))[0])
    # Not equal: the joint mean and the principal directions weigh the reference twice.
    assert (twice - alone).norm() < 0.5 * (alone - bench.sample()).norm()


def test_features_of_a_set_are_prepared_once_for_all(bench, second, combined, pack):
    from test_sampling import count_calls

    prepare = pack.module("dreammatcher.host.matching.invert").prepare_features
    pair = combined(bench.reference, second)
    with torch.inference_mode():
        prepared = prepare(bench.model, pair, bench.mask(), pack.module("dreammatcher.matching.features").FeatureOptions())
    run = dict(sampler="ddim", scheduler="ddim_uniform", steps=10)
    expected = bench.sample(bench.apply(reference=pair)[0], **run)
    calls = count_calls(bench.model)
    with calls:
        assert torch.equal(bench.sample(bench.apply(reference=prepared)[0], **run), expected)
    assert calls.count == 10


def test_a_mask_of_one_member_limits_matches_into_it(bench, second, combined):
    left = torch.zeros(1, 1, 12, 20)
    left[..., :6] = 1
    matched, trace = bench.apply(reference=combined(bench.reference, second, second_mask=left))
    bench.sample(matched)
    snapshot = trace.last()
    flow, _ = snapshot.others[0]
    columns = flow[0, 0] + torch.arange(flow.shape[-1])
    assert columns.max() < 6


@pytest.mark.parametrize("wrong, said", [
    (dict(first_weight=1.5), "reference_1: weight 1.5"), (dict(second_mask=torch.zeros(1, 1, 4, 4)), "mask_2: it is empty")])
def test_wrong_combinations_are_named(bench, second, combined, wrong, said):
    with pytest.raises(ValueError, match=said):
        combined(bench.reference, second, **wrong)


def test_a_mask_that_could_belong_to_any_of_several_is_refused(bench, second, combined):
    with pytest.raises(ValueError, match="reference_mask: 2 references are combined"):
        bench.apply(mask=bench.mask(reference_mask=torch.ones(1, 1, 16, 16)), reference=combined(bench.reference, second))


def test_references_of_two_families_do_not_combine(bench, second, combined):
    with pytest.raises(ValueError, match="different model families"):
        combined(bench.reference, replace(second, fingerprint="another"))


def test_a_set_can_not_be_saved_as_one_file(bench, second, combined, pack, tmp_path):
    with pytest.raises(ValueError, match="combination of 2; save each"):
        pack.module("dreammatcher.matching.reference").save(combined(bench.reference, second), tmp_path / "x.safetensors")


def test_two_subjects_share_the_picture_without_overlap(pack, bench, second):
    Subject = pack.module("dreammatcher.matching.reference").Subject
    other = Subject("cat", "the dog and cat", (9,), 77)
    first_model, first_trace = bench.apply()
    both, second_trace = bench.apply(first_model, bench.mask(target_subject=other), reference=second)
    bench.sample(both)
    masks = [trace.last().target_mask for trace in (first_trace, second_trace)]
    assert all(mask.max() == 1 for mask in masks)
    ties = (masks[0] == masks[1])
    assert ((masks[0] * masks[1] == 0) | ties).all(), "a place must belong to one subject"


def test_two_applies_for_one_subject_do_not_compete(bench):
    soft = bench.mask(otsu=False)
    model, trace = bench.apply(layers="2", mask=soft)
    both, _ = bench.apply(model, layers="3", mask=soft)
    bench.sample(both)
    alone, alone_trace = bench.apply(layers="2", mask=soft)
    bench.sample(alone)
    assert (trace.last().target_mask > 0).float().mean() == (alone_trace.last().target_mask > 0).float().mean()


def marked(conditioning, subject, **options):
    return [[conditioning[0][0], {"dreammatcher_subject": subject, **options}]]


@pytest.fixture(scope="module")
def regions(bench):
    """Two prompts, of which only the first names the subject, each for one half of a 16 x 32 latent."""
    left = marked(bench.target, bench.subjects[1], area=(16, 16, 0, 0), strength=1.0)
    right = [[prompt(21)[0][0], {"area": (16, 16, 0, 16), "strength": 1.0}]]
    return left, right


def test_a_subject_of_one_region_changes_only_that_region(bench, regions):
    left, right = regions
    # Two steps: the first has no features to match yet, so all that differs is the injection of the second.
    options = dict(width=32, sampler="euler", steps=2)
    plain = sample(bench.model, left + right, bench.negative, **options)
    matched, trace = bench.apply()
    out = sample(matched, left + right, bench.negative, **options)
    changed = (out - plain).abs().amax((0, 1, 2))
    assert changed[:16].max() > 0 and changed[16:].max() == 0
    assert trace.last().flow.shape[-2:] == (16, 16) and not trace.skipped


def test_the_order_of_regions_makes_no_difference(bench, regions):
    left, right = regions
    first, second = (sample(bench.apply()[0], prompts, bench.negative, width=32) for prompts in (left + right, right + left))
    assert close(first, second, RUN)


def test_two_subjects_in_two_regions_are_each_matched_in_their_own(pack, bench, second, regions):
    Subject = pack.module("dreammatcher.matching.reference").Subject
    cat = Subject("cat", "a cat", (4,), 77)
    left, right = regions
    right = marked(prompt(21), cat, area=(16, 16, 0, 16), strength=1.0)
    dog_model, dog_trace = bench.apply()
    both, cat_trace = bench.apply(dog_model, bench.mask(target_subject=cat), reference=second)
    options = dict(width=32)
    plain = sample(bench.model, left + right, bench.negative, **options)
    only_dog = sample(dog_model, left + right, bench.negative, **options)
    out = sample(both, left + right, bench.negative, **options)
    dogs_half, cats_half = ((out - only_dog)[..., half].pow(2).mean().sqrt() for half in (slice(16), slice(16, 32)))
    assert dogs_half < 0.1 * cats_half, "the cat must not reach the dog's half"
    assert not torch.allclose(out, plain) and dog_trace.last() and cat_trace.last()


def test_several_prompts_without_a_named_subject_are_left_alone_with_one_message(bench, regions):
    left, right = regions
    bare = [[left[0][0], {k: v for k, v in left[0][1].items() if k != "dreammatcher_subject"}]]
    matched, trace = bench.apply()
    out = sample(matched, bare + right, bench.negative, width=32)
    assert torch.equal(out, sample(bench.model, bare + right, bench.negative, width=32))
    assert len(trace.skipped) == 1 and "Subject (DreamMatcher)" in trace.skipped[0]


def test_a_prompt_schedule_uses_each_prompts_own_columns(pack, bench):
    Subject = pack.module("dreammatcher.matching.reference").Subject
    later = Subject("dog", "a red dog", (9,), 77)
    early = marked(bench.target, bench.subjects[1], start_percent=0.0, end_percent=0.5)
    late = marked(prompt(33), later, start_percent=0.5, end_percent=1.0)
    matched, trace = bench.apply()
    out = sample(matched, early + late, bench.negative, steps=8)
    assert torch.isfinite(out).all() and not trace.skipped
    assert len(trace.snapshots) >= 5


def test_one_prompt_that_is_encoded_anew_for_each_half_of_the_schedule_is_matched_across_the_border(bench):
    early, late = (marked(text, bench.subjects[1], start_percent=start, end_percent=start + 0.5)
                   for text, start in ((bench.target, 0.0), (prompt(33), 0.5)))
    matched, trace = bench.apply()
    bench.sample(matched, steps=8)
    every = len(trace.snapshots)
    assert torch.isfinite(sample(matched, early + late, bench.negative, steps=8)).all()
    assert len(trace.snapshots) == every and not trace.skipped


def test_a_prompt_in_an_area_leaves_the_negative_of_the_whole_picture_alone(bench):
    area = [[bench.target[0][0], {"area": (16, 16, 0, 0), "strength": 1.0}]]
    matched, trace = bench.apply()
    plain, out = (sample(model, area, bench.negative, width=32, steps=2) for model in (bench.model, matched))
    changed = (out - plain).abs().amax((0, 1, 2))
    assert changed[:16].max() > 0 and changed[16:].max() == 0
    assert trace.last().flow.shape[-2:] == (16, 16) and not trace.skipped


def test_one_prompt_in_two_areas_is_matched_in_both_with_features_of_their_own(bench):
    left, right = (marked(bench.target, bench.subjects[1], area=(16, 16, 0, x), strength=1.0) for x in (0, 16))
    matched, trace = bench.apply()
    holder = matched.model_options["transformer_options"]["dreammatcher"][0].holder
    runs, original = [], holder.session
    holder.session = lambda: runs.append(original()) or runs[-1]
    plain, out = (sample(model, left + right, bench.negative, width=32, steps=2) for model in (bench.model, matched))
    changed = (out - plain).abs().amax((0, 1, 2))
    assert changed[:16].max() > 0 and changed[16:].max() > 0 and not trace.skipped
    assert runs[-1].seen.served == {(kind, number) for kind in ("cond", "uncond") for number in (0, 1)}
    features = runs[-1].seen.features
    assert set(features) == {("cond", 0), ("cond", 1)}
    assert not torch.equal(features["cond", 0][-1], features["cond", 1][-1])


def test_a_painted_mask_is_not_squeezed_into_an_area(bench):
    area = [[bench.target[0][0], {"area": (16, 16, 0, 0), "strength": 1.0}]]
    matched, trace = bench.apply(mask=bench.mask(target_mask=torch.ones(1, 1, 16, 32)))
    plain, out = (sample(model, area, bench.negative, width=32) for model in (bench.model, matched))
    assert torch.equal(out, plain) and "painted target MASK" in trace.skipped[0]


def test_conditioning_masks_keep_each_subject_to_the_rows_of_its_prompt(bench):
    """Two prompts for the whole picture, blended by masks: only the rows of the one that names the subject are matched."""
    west = torch.zeros(1, 16, 16)
    west[..., :8] = 1
    dog = marked(bench.target, bench.subjects[1], mask=west, mask_strength=1.0, strength=1.0)
    grass = [[prompt(21)[0][0], {"mask": 1 - west, "mask_strength": 1.0, "strength": 1.0}]]
    matched, trace = bench.apply()
    plain, out = (sample(model, dog + grass, bench.negative, steps=2) for model in (bench.model, matched))
    assert not torch.equal(out, plain) and not trace.skipped and trace.last() is not None


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_guidance_leads_the_rows_of_the_subjects_prompt_only(pack, bench, mode):
    guide = pack.module("dreammatcher.host.matching.guide")
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(0.01, 0.0, 1.0, mode)
    dog, grass = marked(bench.target, bench.subjects[1]), prompt(21)
    matched, trace = bench.apply()
    seen = []
    original = guide._corrected

    def watch(clean, change, goals):
        seen.append([goal.session.rows.last[goal.rows.start][0] for goal in goals])
        return original(clean, change, goals)

    guide._corrected = watch
    try:
        out = sample(guide.guide(matched, settings), dog + grass, bench.negative, steps=3)
    finally:
        guide._corrected = original
    assert torch.isfinite(out).all() and not torch.equal(out, sample(matched, dog + grass, bench.negative, steps=3))
    if mode == "paper":
        assert seen and all(sorted(call) in (["cond"], ["cond", "uncond"], ["uncond"]) for call in seen), seen
