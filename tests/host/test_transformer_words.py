"""Subjects of diffusion transformers by their words alone: the picture's attention to words, planted and found."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from closeness import RUN, close
from transformers_world import SIGMA, SIZE, TRANSFORMERS, applied, bench_of, block_of, drawn, evaluated, made, reference_of


def single(x: torch.Tensor) -> torch.Tensor:
    """Without the frame of a family's latents."""
    return x[:, :, 0] if x.ndim == 5 else x


#: where each class of the host calls attention
ATTENTION = {"NextDiT": ("lumina.model", "optimized_attention_masked"), "Flux": ("flux.math", "optimized_attention"),
             "Chroma": ("flux.math", "optimized_attention"),
             "QwenImageTransformer2DModel": ("qwen_image.model", "optimized_attention_masked"),
             "SingleStreamDiT": ("krea2.model", "optimized_attention_masked"),
             "OpenAISignatureMMDITWrapper": ("modules.diffusionmodules.mmdit", "optimized_attention"),
             "HiDreamImageTransformer2DModel": ("hidream.model", "optimized_attention")}
DOG, CAT, GRASS, TOKENS = 3, 5, 7, 20
CROSS = ("Cosmos-Predict2", "Wan")
JOINT = [name for name in TRANSFORMERS if name not in CROSS]


@pytest.fixture(params=JOINT)
def family(request, pack):
    return bench_of(pack, request.param)


def planted(bench, monkeypatch, places: dict[int, torch.Tensor]) -> None:
    """Queries of each column's cells [h, w] of the picture that look at the column's token."""
    module, name = ATTENTION[type(bench.model.model.diffusion_model).__name__]
    module = import_module(f"comfy.ldm.{module}")
    real = getattr(module, name)
    backbone, site = bench.backbone, bench.backbone.matched[0]
    grid = backbone.grid(site, SIZE)
    dit = bench.pack.module("dreammatcher.backbones.dit")

    def looking(q, k, v, heads, *rest, **named):
        text = 512 if bench.name == "Flux.2" else TOKENS
        picture = backbone.picture_tokens(site, SIZE, q.shape[-2], dit.Beside(text))
        if picture is None:
            return real(q, k, v, heads, *rest, **named)
        q, k = q.clone(), k.clone()
        depth = q.shape[-1] // (1 if q.ndim == 4 else heads)
        kinds = torch.linalg.qr(torch.randn(depth, len(places), generator=torch.Generator().manual_seed(4)))[0].T
        front = picture.start - TOKENS if bench.name == "Flux.2" else 0  # where the host makes short prompts longer
        front = picture.stop if bench.name == "HiDream" else front
        for kind, (column, place) in zip(6 * depth ** 0.5 * kinds.to(q), places.items()):
            k[..., front + column, :] += kind.repeat(k.shape[-1] // depth)
            q[..., picture, :][..., place.flatten(), :] += kind.repeat(q.shape[-1] // depth)
        return real(q, k, v, heads, *rest, **named)

    assert grid == next(iter(places.values())).shape
    monkeypatch.setattr(module, name, looking)


def cells(bench, left: int, right: int, of: int = 8) -> torch.Tensor:
    height, width = bench.backbone.grid(bench.backbone.matched[0], SIZE)
    place = torch.zeros(height, width, dtype=torch.bool)
    place[:, left * width // of:right * width // of] = True
    return place


def word(bench, column: int, words: str = "dog"):
    return bench.pack.module("dreammatcher.subject").Subject(words, "a dog, a cat, grass", (column,), TOKENS)


def own_foreground(bench, subject):
    """Of a reference by its words alone."""
    clean, noise, _ = made(bench)
    reference, find = reference_of(bench, clean, noise, bench.positive), bench.pack.module(
        "dreammatcher.host.matching.reference_foreground").find_foreground
    with torch.inference_mode():
        return find(bench.model.model, bench.backbone, reference, subject, torch.device("cpu"))[0, 0] > 0.5


def test_the_references_own_foreground_is_the_cells_of_its_word(family, monkeypatch):
    dog, grass = cells(family, 0, 3), cells(family, 3, 8)
    planted(family, monkeypatch, {DOG: dog, GRASS: grass})
    assert torch.equal(own_foreground(family, word(family, DOG)), dog)
    assert torch.equal(own_foreground(family, word(family, GRASS, "grass")), grass)


@pytest.mark.parametrize("carried", [True, False])
def test_with_a_word_alone_its_cells_are_matched(family, monkeypatch, carried):
    """Carried over from the reference's own foreground, or where the target's words are looked at."""
    dog = cells(family, 2, 5)
    planted(family, monkeypatch, {DOG: dog, GRASS: ~dog})
    clean, noise, x = made(family)
    matched, trace = applied(family, reference_of(family, clean, noise, family.positive), {
        "reference_subject": word(family, DOG), "target_subject": word(family, DOG), "carried": carried})
    evaluated(matched, family.positive, family.negative, [(x, SIGMA)] * 3)
    assert torch.equal(trace.last().target_mask[0, 0] > 0.5, dog) and trace.layers and not trace.skipped


@pytest.mark.parametrize("name", list(TRANSFORMERS))
def test_the_map_is_the_pictures_attention_to_the_word(pack, name):
    """As softmax of the queries and keys that the host hands to attention: over the whole sequence where prompt and picture share
    one; else that to the prompt, which comes second in a block."""
    bench = bench_of(pack, name)
    clean, noise, x = made(bench)
    calls: dict[tuple, list[tuple]] = {}
    met: list = []

    def hold(func, q, k, v, heads, *rest, **named):
        parts = [each if each.ndim == 4 else each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k)]
        site = block_of(bench, met, q, k, named["transformer_options"])
        if site is not None or q.shape[-2] != k.shape[-2]:
            met_in = site or next(reversed(calls))  # attention to the prompt comes second in its block
            calls.setdefault(met_in, []).append(parts)
        return func(q, k, v, heads, *rest, **named)

    watched = bench.model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = hold
    evaluated(watched, bench.positive, bench.negative, [(x, SIGMA)])
    cross = name in CROSS
    assert all(len(each) == 1 + cross for each in calls.values()) and len(calls) == bench.backbone.blocks
    seen, subject = {}, word(bench, DOG)
    module, points = (pack.module(f"dreammatcher.host.model.{each}") for each in ("capture", "patch_points"))
    reader = module.SubjectMaps(bench.backbone.prompt_attention(None, bench.backbone.readers), bench.backbone, subject)
    text = 512 if name == "Flux.2" else TOKENS  # where the host makes short prompts longer

    def keep(site, query, prompt, keys, options):
        seen[site] = reader.read(site, query, prompt, keys, SIZE)
        return query, prompt, keys

    conditioning = pack.module("dreammatcher.host.text.conditioning").from_host(bench.positive, "positive")[0]
    with torch.inference_mode():
        module.ode_derivative(bench.model.model, conditioning, single(x), SIGMA, points.Points(prompt=keep))
    assert list(seen) == list(bench.backbone.readers) and len(seen) == bench.backbone.blocks
    beside = pack.module("dreammatcher.backbones.dit").Beside(text)
    for site, found in seen.items():
        query, key = calls[site][-1]
        picture = bench.backbone.picture_tokens(site, SIZE, query.shape[2], None if cross else beside)
        place = text - TOKENS + DOG + (picture.stop if name == "HiDream" else 0)
        probability = (query[:, :, picture] @ key.mT / query.shape[-1] ** 0.5).softmax(-1)[..., place].mean(1)
        assert close(found.flatten(), probability.flatten(), RUN) and probability.std() > 0


def test_subjects_share_the_picture_out_by_their_words(z, monkeypatch):
    """The foreground of both is all of the picture, so that only words tell whose a cell is."""
    dog = cells(z, 0, 3)
    planted(z, monkeypatch, {DOG: dog, CAT: ~dog})
    clean, noise, x = made(z)
    reference, model, traces = reference_of(z, clean, noise, z.positive), z.model, []
    for subject in (word(z, DOG), word(z, CAT, "cat")):
        model, trace = applied(z, reference, {"reference_mask": torch.ones(1, 1, *SIZE), "target_subject": subject,
                                              "carried": True}, model=model)
        traces.append(trace)
    evaluated(model, z.positive, z.negative, [(x, SIGMA)] * 3)
    mine, theirs = (trace.last().target_mask[0, 0] > 0.5 for trace in traces)
    assert torch.equal(mine, dog) and torch.equal(theirs, ~dog)


def test_a_word_of_a_repeated_or_longer_prompt_is_still_found(z, monkeypatch):
    """Of the longer prompt the front alone is known; what stands behind are no words of the subject's prompt."""
    dog = cells(z, 0, 4)
    planted(z, monkeypatch, {DOG: dog, GRASS: ~dog})
    clean, noise, x = made(z)
    module = z.pack.module("dreammatcher.host.model.capture")
    seen = []
    points = z.pack.module("dreammatcher.host.model.patch_points").Points(
        prompt=lambda site, *given: seen.append((site, *(each.clone() for each in given[:3]))))
    conditioning = z.pack.module("dreammatcher.host.text.conditioning").from_host(z.positive, "positive")[0]
    with torch.inference_mode():
        module.ode_derivative(z.model.model, conditioning, x, SIGMA, points)
    assert all(prompt.shape[2] == TOKENS for _, _, prompt, _ in seen)
    site, query, prompt, keys = seen[0]
    reader = module.SubjectMaps.of(z.model.model, z.backbone, word(z, DOG), SIZE)
    reader.modules[site] = None

    def read(text):
        return reader.read(site, query, text, torch.cat((text, keys[:, :, TOKENS:]), 2), SIZE)

    once, twice, longer = (read(text) for text in (prompt, torch.cat((prompt, prompt), 2),
                                                   torch.cat((prompt, prompt[:, :, 10:13]), 2)))
    assert close(once, reader.read(site, query, prompt, keys, SIZE), RUN)
    assert all(torch.equal(found[0, 0] > 0.5, dog) for found in (once, twice, longer))
    assert twice[0, 0][dog].min() > 0.9, "both of its places count"


def test_words_that_look_nowhere_match_nothing(z):
    """Queries that are all alike look at every word alike."""
    keys = torch.randn(1, 2, TOKENS + 48, 8, generator=torch.Generator().manual_seed(1))
    reader = z.pack.module("dreammatcher.host.model.capture").SubjectMaps.of(z.model.model, z.backbone, word(z, DOG), SIZE)
    site = next(iter(reader.modules))
    found = reader.read(site, torch.ones(1, 4, 48, 8), keys[:, :, :TOKENS], keys, SIZE)
    assert not z.pack.module("dreammatcher.attention").foreground([found], (6, 8)).any()


@pytest.mark.parametrize("name", list(TRANSFORMERS))
def test_words_and_a_soft_or_hard_map_are_drawn_with(pack, name, monkeypatch):
    """Random weights, whole runs, with guidance and a batch."""
    family = bench_of(pack, name)
    if name in JOINT:
        dog = cells(family, 2, 5)
        planted(family, monkeypatch, {DOG: dog, GRASS: ~dog})
    clean, noise, _ = made(family, 9)
    reference = reference_of(family, clean, noise, family.positive)
    subject = word(family, DOG)
    plain = drawn(family.model, family.positive, family.negative, cfg=3.0, batch=2)
    for mask in ({"carried": True}, {"otsu": True}, {"otsu": False}):
        matched, trace = applied(family, reference, {"reference_subject": subject, "target_subject": subject, **mask})
        result = drawn(matched, family.positive, family.negative, cfg=3.0, batch=2)
        assert torch.isfinite(result).all() and not close(result, plain, RUN) and trace.layers and not trace.skipped, mask


def test_easy_takes_a_mask_alone_where_the_text_encoders_do_not_tell_where_words_stand(host, pack, toybox):
    """As those of HunyuanVideo, of which two make the prompt together."""
    clip, picture = toybox[1].clone(), host.nodes["ToyboxReference"]().draw(3, "robot", 1, "grass")[0]
    cut = clip.tokenize
    clip.tokenize = lambda text, **options: {**cut(text, **options), "llama": cut(text, **options)["l"]}
    easy = pack.module("dreammatcher.host.matching.easy")

    def matched(mask, strength):
        with torch.inference_mode():
            return easy.match_subject(toybox[0], clip, toybox[2], picture, "a photo of a robot", "a robot in the snow", "",
                                      "robot", easy.Kept(), mask, strength)[0]

    with pytest.raises(ValueError, match="do not tell where a word stands.*reference_mask"):
        matched(None, 1.0)
    assert matched(None, 0.0)[0] is toybox[0]
    model, positive, negative, trace = matched(torch.ones(1, 128, 128), 1.0)
    with torch.inference_mode():
        host.nodes["KSampler"]().sample(model, 1, 4, 4.0, "euler", "simple", positive, negative,
                                        {"samples": torch.zeros(1, 4, 16, 16)})
    assert trace.layers and not trace.why_nothing_matched()
