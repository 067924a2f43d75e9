"""Preset best on transformers: the subject's cells see the reference's values, and all others the picture's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import RUN, close
from transformers_world import SIGMA, SIZE, TRANSFORMERS, applied, bench_of, drawn, evaluated, made, other_reference


@pytest.fixture(params=list(TRANSFORMERS))
def family(request, pack):
    return bench_of(pack, request.param)


@pytest.fixture
def preset(pack):
    return pack.module("dreammatcher.matching.settings").PRESETS


def left_half(family) -> torch.Tensor:
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., : SIZE[1] // 2] = 1
    return mask


def by_token(changed: torch.Tensor) -> torch.Tensor:
    """Whether anything differs at each token, [B, L], of tensors with or without heads."""
    return changed.any(-1).any(1) if changed.ndim == 4 else changed.any(-1)


def attentions(pack, family, monkeypatch, match, mask) -> list[tuple]:
    """(values and output of each attention, what the network is given) of every matched block's attention in one run."""
    points = pack.module("dreammatcher.host.model.attention_points")
    attend, calls, seen = points._attend, [], []

    def hold(func, q, k, v, *rest, **named):
        result = func(q, k, v, *rest, **named)
        calls.append((v.clone(), result.clone()))
        return result

    def watched(func, arguments, named):
        calls.clear()
        result = attend(func, arguments, named)
        if calls:
            seen.append((list(calls), result.clone()))
        return result

    monkeypatch.setattr(points, "_attend", watched)
    held = family.model.clone()
    held.model_options["transformer_options"]["optimized_attention_override"] = hold
    matched, trace = applied(family, other_reference(family), mask, held, str(family.backbone.matched[-1][1]), match=match)
    evaluated(matched, family.positive, family.negative, [(made(family)[2], SIGMA)] * 2)
    assert trace.layers and not trace.skipped
    return seen


def test_the_subjects_cells_see_the_references_values_and_all_others_the_pictures_own(pack, family, preset, monkeypatch):
    mask = {"target_mask": left_half(family), "reference_mask": torch.ones(1, 1, *SIZE), "threshold": 10.0}
    seen = attentions(pack, family, monkeypatch, preset["best"], mask)
    twice = [(calls, result) for calls, result in seen if len(calls) == 2]
    assert twice and len(seen) > len(twice), "the matched block attends twice, the blocks in front of it once"
    height, width = family.backbone.grid(family.backbone.matched[-1], SIZE)
    for ((values, output), (own, other)), result in twice:
        led = by_token(values != own)
        assert led.sum() == height * width // 2, "the left half of the picture, and nothing of the prompt"
        cells = led.unsqueeze(-1) if result.ndim == 3 else led[:, None, :, None]
        assert torch.equal(result, torch.where(cells, output, other))
        assert not close(output, other, RUN)


def test_other_presets_attend_once(pack, family, preset, monkeypatch):
    seen = attentions(pack, family, monkeypatch, preset["balanced"], None)
    assert all(len(calls) == 1 for calls, _ in seen)


def test_it_changes_the_picture(family, preset):
    mask = {"target_mask": left_half(family), "reference_mask": torch.ones(1, 1, *SIZE)}
    pictures = [drawn(applied(family, other_reference(family), mask, match=replace(preset["best"], apart=apart))[0],
                      family.longer, family.negative, cfg=3.0) for apart in (True, False)]
    assert not close(*pictures, RUN)


def test_a_subject_of_another_preset_is_seen_by_every_cell(pack, family, preset, monkeypatch):
    """Two subjects: what balanced changes is there for all queries, as it is alone."""
    points = pack.module("dreammatcher.host.model.attention_points")
    halves = left_half(family), 1 - left_half(family)
    whole = {"reference_mask": torch.ones(1, 1, *SIZE), "threshold": 10.0}
    block = str(family.backbone.matched[-1][1])
    first, _ = applied(family, other_reference(family), {"target_mask": halves[0], **whole}, layers=block, match=preset["best"])
    both, _ = applied(family, other_reference(family), {"target_mask": halves[1], **whole}, first, block,
                      match=preset["balanced"])
    alone, _ = applied(family, other_reference(family), {"target_mask": halves[1], **whole}, layers=block,
                       match=preset["balanced"])
    found: dict[str, list] = {"both": [], "alone": []}
    for name, model in (("both", both), ("alone", alone)):
        attend = points._attend

        def watched(func, arguments, named, name=name, attend=attend):
            def kept(q, k, v, *rest, **more):
                found[name].append(v.clone())
                return func(q, k, v, *rest, **more)
            return attend(kept, arguments, named)

        with monkeypatch.context() as patched:
            patched.setattr(points, "_attend", watched)
            evaluated(model, family.positive, family.negative, [(made(family)[2], SIGMA)])
    assert any(torch.equal(own, each) for own in found["both"] for each in found["alone"][-1:])
