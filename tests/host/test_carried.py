"""The foreground that the match carries over from the reference, sharper attention, and guidance inside of the subject."""

from __future__ import annotations

import pytest
import torch
from world import Bench, picture, prompt, random_unet

SIDE = 16


@pytest.fixture(scope="module")
def bench(pack) -> Bench:
    return Bench(pack, random_unet())


@pytest.fixture(scope="module")
def toybox(host):
    """Model, CLIP, reference IMAGE with its MASK, the inverted reference, and a prompt with its subject."""
    return Toybox(host)


class Toybox:
    def __init__(self, host):
        self.host, node = host, lambda name: host.nodes[name]()
        self.model, self.clip, self.vae = node("ToyboxLoader").load()
        self.picture, self.mask = node("ToyboxReference").draw(3, "robot", 1, "grass")[:2]
        said = node("DreamMatcherSubject").encode(self.clip, "a photo of a robot on grass", "robot")
        self.positive, self.subject = said["result"] if isinstance(said, dict) else said
        self.negative = node("CLIPTextEncode").encode(self.clip, "")[0]
        latent = {"samples": self.vae.encode(self.picture)}
        with torch.inference_mode():
            self.reference = node("DreamMatcherInvert").invert(self.model, self.positive, self.negative, 10,
                                                               "ddim_uniform", latent)[0]

    def apply(self, **mask):
        settings = dict(reference_subject=self.subject, target_subject=self.subject, cycle_threshold=0.4, binarise="carried over")
        made = self.host.nodes["DreamMatcherMask"]().make(**{**settings, **mask})
        mask = (made["result"] if isinstance(made, dict) else made)[0]
        return self.host.nodes["DreamMatcherApply"]().apply(self.model, self.reference, mask, start=0.0)

    def sample(self, model) -> torch.Tensor:
        with torch.inference_mode():
            return self.host.nodes["KSampler"]().sample(model, 5, 6, 5.0, "euler", "normal", self.positive, self.negative,
                                                        {"samples": torch.zeros(1, 4, 16, 16)}, 1.0)[0]["samples"]


def carried(bench, **changes):
    return bench.mask(carried=True, **changes)


def painted(rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., rows, columns] = 1
    return mask


def test_the_found_foreground_of_a_trained_model_covers_its_subject(host, pack, toybox):
    module = pack.module("dreammatcher.host.matching.reference_foreground")
    backbone = pack.module("dreammatcher.host.model.backbone").backbone_of(toybox.model.model)
    with torch.inference_mode():
        found = module.find_foreground(toybox.model.model, backbone, toybox.reference, toybox.subject, torch.device("cpu"))
    truth = torch.nn.functional.interpolate(toybox.mask[:, None].float(), size=(16, 16), mode="area")
    here = found > 0.5
    assert here[truth > 0.5].float().mean() > 0.9, "of the subject's cells"
    assert (truth[here] > 0.05).float().mean() > 0.85, "of the cells that were found"


def test_it_is_made_once_for_a_reference_and_anew_for_another_network(pack, bench, monkeypatch):
    module = pack.module("dreammatcher.host.matching.reference_foreground")
    made = []
    find = module.find_foreground
    monkeypatch.setattr(module, "find_foreground", lambda *given: made.append(1) or find(*given))
    for seed in (1, 2):
        bench.sample(bench.apply(mask=carried(bench))[0], seed=seed)
    assert len(made) == 1
    bench.sample(bench.apply(mask=bench.mask())[0])
    assert len(made) == 1, "attention needs none"
    other = bench.model.clone()
    name = next(name for name in bench.model.model.state_dict() if name.endswith("attn1.to_v.weight"))
    weight = bench.model.model.state_dict()[name]
    other.add_patches({name: ("diff", (torch.randn_like(weight),))}, 1.0)
    bench.sample(bench.apply(model=other, mask=carried(bench))[0])
    assert len(made) == 2


def test_features_ahead_of_sampling_hold_the_foreground_too(pack, bench, monkeypatch):
    invert, features = (pack.module(f"dreammatcher.{name}") for name in ("host.matching.invert", "matching.features"))
    module = pack.module("dreammatcher.host.matching.reference_foreground")
    with torch.inference_mode():
        prepared = invert.prepare_features(bench.model, bench.reference, carried(bench), features.FeatureOptions())
    expected = bench.sample(bench.apply(mask=carried(bench), reference=prepared)[0])
    monkeypatch.setattr(module, "find_foreground", lambda *given: pytest.fail("it was made ahead"))
    assert torch.equal(bench.sample(bench.apply(mask=carried(bench), reference=prepared)[0]), expected)


def test_the_three_ways_give_three_pictures_and_strength_0_the_plain_one(bench):
    ways = [bench.sample(bench.apply(mask=mask)[0]) for mask in (carried(bench), bench.mask(), bench.mask(otsu=False))]
    assert not any(torch.equal(one, other) for number, one in enumerate(ways) for other in ways[:number])
    plain = bench.sample(bench.apply(mask=carried(bench), strength=0.0)[0])
    assert torch.equal(plain, bench.sample())


def test_a_painted_reference_is_the_foreground_and_does_not_limit_the_match(bench):
    left = carried(bench, reference_mask=painted(slice(None), slice(8)))
    matched, trace = bench.apply(mask=left)
    bench.sample(matched)
    shown = trace.last()
    columns = shown.flow[:, 0] + torch.arange(shown.flow.shape[-1])
    assert (columns >= 8).any(), "the right half is matched"
    taken = shown.target_mask[:, 0] * (columns >= 8)
    assert taken.mean() < shown.target_mask.mean() / 2, "and mostly not taken; holes close"
    limited, trace = bench.apply(mask=bench.mask(reference_mask=painted(slice(None), slice(8))))
    bench.sample(limited)
    assert ((trace.last().flow[:, 0] + torch.arange(shown.flow.shape[-1])) < 8).all()


def test_another_painted_half_gives_another_picture(bench):
    halves = [bench.sample(bench.apply(mask=carried(bench, reference_mask=painted(slice(None), columns)))[0])
              for columns in (slice(8), slice(8, None))]
    assert not torch.equal(*halves)


def test_a_painted_target_goes_before_what_is_carried_over(bench):
    there = painted(slice(4, 12), slice(4, 12))
    shown = [bench.apply(mask=bench.mask(carried=way, target_mask=there)) for way in (True, False)]
    for matched, _ in shown:
        bench.sample(matched)
    assert torch.equal(*(trace.last().target_mask for _, trace in shown))


def test_the_cycle_threshold_still_counts(bench):
    loose, strict = (bench.sample(bench.apply(mask=carried(bench, threshold=threshold))[0]) for threshold in (0.4, 0.01))
    assert not torch.equal(loose, strict)


def test_a_reference_without_words_and_mask_falls_back_on_attention_and_says_so(bench, caplog):
    bare = bench.mask(reference_subject=None, carried=True)
    matched, _ = bench.apply(mask=bare)
    assert "nothing says where its subject is" in caplog.text
    assert torch.equal(bench.sample(matched), bench.sample(bench.apply(mask=bench.mask(reference_subject=None))[0]))


def test_a_reference_in_which_nothing_is_found_says_so(pack, bench, monkeypatch, caplog):
    module = pack.module("dreammatcher.host.matching.reference_foreground")
    monkeypatch.setattr(module, "find_foreground", lambda *given: torch.zeros(1, 1, 16, 16))
    reference = bench.reference.with_store(pack.module("dreammatcher.matching.features").FeatureStore())
    matched, trace = bench.apply(mask=carried(bench), reference=reference)
    assert torch.equal(bench.sample(matched), bench.sample())
    assert "'dog' is not found in the reference" in caplog.text and trace.why_nothing_matched()


def test_a_prompt_without_the_subject_is_not_matched(pack, bench):
    from world import sample

    matched, trace = bench.apply(mask=carried(bench, reference_mask=painted(slice(None), slice(None))))
    regions = [[bench.target[0][0], {"area": (16, 16, 0, 0), "strength": 1.0, "dreammatcher_subject": bench.subjects[1]}],
               [prompt(21)[0][0], {"area": (16, 16, 0, 16), "strength": 1.0}]]
    plain, out = (sample(model, regions, bench.negative, width=32, steps=2) for model in (bench.model, matched))
    changed = (out - plain).abs().amax((0, 1, 2))
    assert changed[:16].max() > 0 and changed[16:].max() == 0 and not trace.skipped


def test_two_subjects_share_what_is_carried_over(pack, bench):
    Subject = pack.module("dreammatcher.matching.reference").Subject
    other = Subject("cat", "the dog and cat", (9,), 77)
    everywhere = painted(slice(None), slice(None))
    first, first_trace = bench.apply(mask=carried(bench, reference_mask=everywhere))
    both, second_trace = bench.apply(first, carried(bench, target_subject=other, reference_mask=everywhere))
    bench.sample(both)
    one, two = (trace.last().target_mask for trace in (first_trace, second_trace))
    assert one.any() and two.any() and ((one == 0) | (two == 0)).float().mean() > 0.95, "ties aside"
    alone, trace = bench.apply(mask=carried(bench, reference_mask=everywhere))
    bench.sample(alone)
    assert trace.last().target_mask.all()


def test_no_map_of_the_target_is_read_for_one_subject(pack, bench, monkeypatch):
    maps = pack.module("dreammatcher.host.model.capture").SubjectMaps
    read, reads = maps.read, []
    matched, _ = bench.apply(mask=carried(bench, reference_mask=painted(slice(4, 12), slice(4, 12))))
    monkeypatch.setattr(maps, "read", lambda self, *given: reads.append(1) or read(self, *given))
    bench.sample(matched, steps=3)
    prepared_by_reference = len(reads)  # of the reference's own passes
    bench.sample(matched, steps=3)
    assert len(reads) == prepared_by_reference


@pytest.mark.parametrize("batch, cfg", [(3, 5.0), (2, 1.0)])
def test_a_batch_equals_its_pictures_one_by_one(bench, batch, cfg):
    matched, _ = bench.apply(mask=carried(bench), match=bench.module("dreammatcher.matching.settings").PRESETS["best"])
    noise = torch.cat([picture(40 + number) for number in range(batch)])
    together = bench.sample(matched, noise=noise, cfg=cfg)
    for number in range(batch):
        single = bench.sample(matched, noise=noise[number:number + 1], cfg=cfg)
        assert (together[number] - single[0]).norm() < 1e-3 * single.norm()


def test_sharpness_changes_the_picture_only_where_something_is_matched(bench):
    settings = bench.module("dreammatcher.matching.settings").MatchSettings
    sharp, plain = (bench.sample(bench.apply(mask=carried(bench), match=settings(sharpness=value))[0]) for value in (0.5, 0.0))
    assert not torch.equal(sharp, plain)
    off = bench.apply(mask=carried(bench), match=settings(sharpness=0.5), strength=0.0)[0]
    assert torch.equal(bench.sample(off), bench.sample())


def test_guidance_inside_leads_the_inside_alone(pack, bench):
    guide = pack.module("dreammatcher.host.matching.guide").guide
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings
    there = painted(slice(4, 10), slice(4, 10))
    matched, _ = bench.apply(mask=bench.mask(target_mask=there, threshold=10.0), start=0.0)
    options = dict(steps=2, sampler="euler", scheduler="normal")
    alone = bench.sample(matched, **options)
    changed = {}
    for mode in ("inside", "fast"):
        led = bench.sample(guide(matched, settings(weight=5.0, start=0.0, mode=mode)), **options)
        changed[mode] = (led - alone).abs().amax((0, 1)) > 0
    assert changed["fast"].sum() == 36 and changed["inside"].sum() == 16
    assert changed["inside"][5:9, 5:9].all()


def test_easy_takes_the_best_way_or_the_way_it_was_and_guides_two_subjects_once(host, pack, toybox):
    easy, presets = host.nodes["DreamMatcherEasy"], {}
    given = (toybox.model, toybox.clip, toybox.vae, toybox.picture, "a photo of a robot on grass", "a photo of a robot on grass",
             "", "robot")
    for preset in ("best", "balanced"):
        result = easy().match(*given, preset=preset)
        presets[preset] = (result["result"] if isinstance(result, dict) else result)[0]
    before = easy().match(*given)
    before = (before["result"] if isinstance(before, dict) else before)[0]
    is_led = pack.module("dreammatcher.host.matching.guide").is_led
    assert is_led(presets["best"]) and not is_led(presets["balanced"]) and not is_led(before)
    pictures = {name: toybox.sample(model) for name, model in (*presets.items(), ("before", before))}
    assert torch.equal(pictures["balanced"], pictures["before"]), "a workflow that names no preset stays as it was"
    assert not torch.equal(pictures["best"], pictures["balanced"])
    twice = easy().match(presets["best"], *given[1:], preset="best")
    functions = (twice["result"] if isinstance(twice, dict) else twice)[0].model_options["sampler_post_cfg_function"]
    assert len([function for function in functions if "Leading" in type(function).__name__]) == 1


def test_easys_best_way_is_that_of_new_apply_and_guidance_nodes(host, pack, toybox):
    given = (toybox.model, toybox.clip, toybox.vae, toybox.picture, "a photo of a robot on grass", "a photo of a robot on grass",
             "", "robot")

    def settings_of(**choice) -> tuple:
        model = host.nodes["DreamMatcherEasy"]().match(*given, **choice)
        model = (model["result"] if isinstance(model, dict) else model)[0]
        installed, = pack.module("dreammatcher.host.sampling.runs").installed_on(model.model_options["transformer_options"])
        leading = [each.settings for each in model.model_options.get("sampler_post_cfg_function", [])
                   if type(each).__name__ == "Leading"]  # the packaged host has functions of ours beside it
        return installed.plan.settings, *(leading or [None])

    def defaults(name: str) -> dict:
        required, optional = (host.nodes[name].INPUT_TYPES().get(kind, {}) for kind in ("required", "optional"))
        return {each: spec[1]["default"] for each, spec in {**required, **optional}.items() if "default" in spec[1]}

    matching, leading = settings_of(preset="best")
    new = defaults("DreamMatcherApply")
    assert (matching.strength, matching.start, matching.end) == (new["strength"], new["start"], new["end"])
    assert matching.match == pack.module("dreammatcher.matching.settings").PRESETS[new["preset"]]
    assert vars(leading) == defaults("DreamMatcherGuidance")
    before, nothing = settings_of()
    assert before == pack.module("dreammatcher.matching.settings").ApplySettings() and nothing is None


def test_the_mask_node_carries_over_by_default(toybox):
    matched = toybox.apply()
    assert not torch.equal(toybox.sample(matched[0]), toybox.sample(toybox.apply(binarise="otsu")[0]))


@pytest.mark.parametrize("carry", [True, False])
def test_the_reference_pass_reads_words_only_where_the_foreground_is_not_carried_over(pack, bench, monkeypatch, carry):
    references = pack.module("dreammatcher.host.matching.references")
    store, asked = pack.module("dreammatcher.matching.features").FeatureStore(), []
    original = references.reference_pass

    def noted(base, backbone, reference, kind, subject, *rest):
        asked.append(subject)
        return original(base, backbone, reference, kind, subject, *rest)

    monkeypatch.setattr(references, "reference_pass", noted)
    matched, trace = bench.apply(reference=bench.reference.with_store(store), mask=bench.mask(carried=carry))
    bench.sample(matched, steps=4)
    assert trace.layers and asked and all((subject is None) == carry for subject in asked)


def test_features_made_ahead_with_words_serve_a_foreground_that_is_carried_over(pack, bench):
    features, invert = (pack.module(f"dreammatcher.{name}") for name in ("matching.features", "host.matching.invert"))
    fresh = bench.reference.with_store(features.FeatureStore())
    ahead = invert.prepare_features(bench.model, fresh, bench.mask(), features.FeatureOptions())
    kept = len(ahead.store.rows)
    matched, trace = bench.apply(reference=ahead, mask=bench.mask(carried=True))
    bench.sample(matched, steps=4)
    assert trace.layers and kept and sum(isinstance(key, features.FeatureKey) for key in ahead.store.rows) == kept


def test_the_preview_shows_the_foreground_that_is_carried_over(pack, bench, monkeypatch):
    references = pack.module("dreammatcher.host.matching.references").References
    shown, original = [], references.foreground
    monkeypatch.setattr(references, "foreground", lambda *given: shown.append(original(*given)) or shown[-1])
    matched, trace = bench.apply(mask=bench.mask(carried=True))
    bench.sample(matched, steps=4)
    assert torch.equal(trace.last().reference_mask, shown[-1].cpu())
