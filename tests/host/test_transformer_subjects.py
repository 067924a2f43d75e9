"""Several subjects on one diffusion transformer, and blocks that the pass over a reference does not run."""

from __future__ import annotations

import torch
from closeness import RUN, close
from transformers_world import (
    SIGMA,
    SIZE,
    TRANSFORMERS,
    applied,
    bench_of,
    drawn,
    evaluated,
    last_block,
    made,
    other_reference,
    reference_of,
)


def test_a_block_that_the_references_pass_skips_is_one_message_and_the_others_are_matched(family):
    """Another pack runs the last block without ComfyUI's options in the pass over a reference alone."""
    place = last_block(family.model)
    model = family.model.clone()
    forward = model.get_model_object(place)

    def skipping(*given, transformer_options=None, **named):
        alone = "sample_sigmas" not in transformer_options
        return forward(*given, **named) if alone else forward(*given, transformer_options=transformer_options, **named)

    model.add_object_patch(place, skipping)
    matched, trace = applied(family, other_reference(family), model=model)
    plain = drawn(model, family.longer, family.negative, cfg=3.0)
    result = drawn(matched, family.longer, family.negative, cfg=3.0)
    assert torch.isfinite(result).all() and not close(result, plain, RUN) and trace.layers
    assert len(trace.skipped) == 1 and "block 4 does not run" in trace.skipped[0]


def painted(left: int, right: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., left:right] = 1
    return mask


def test_overlapping_cells_go_to_the_subject_whose_match_is_closer(z):
    """One reference is the picture itself, so that its match of every cell is exact; the other is another picture."""
    clean, noise, x = made(z)
    exact = reference_of(z, clean, noise, z.positive)
    mask = {"reference_mask": painted(0, SIZE[1]), "carried": True}
    for order in (0, 1):
        plans = [(exact, mask), (other_reference(z), mask)][::1 if order == 0 else -1]
        model, traces = z.model, []
        for reference, place in plans:
            model, trace = applied(z, reference, place, model=model)
            traces.append(trace)
        evaluated(model, z.positive, z.negative, [(x, SIGMA)] * 2)
        near, far = traces[::1 if order == 0 else -1]
        assert bool((near.last().target_mask == 1).all()), "every cell is the exact one's"
        assert far.layers and not far.last().target_mask.any(), "nothing is left to the other one"


def test_subjects_at_different_places_keep_theirs(z):
    """The left half is the one's, the right half the other's: what is shared out is only where both are."""
    clean, noise, x = made(z)
    reference = reference_of(z, clean, noise, z.positive)
    model, left = applied(z, reference, {"reference_mask": painted(0, 8), "carried": True})
    model, right = applied(z, reference, {"reference_mask": painted(8, 16), "carried": True}, model=model)
    evaluated(model, z.positive, z.negative, [(x, SIGMA)] * 2)
    mine, theirs = (trace.last().target_mask[0, 0] for trace in (left, right))
    assert bool((mine[:, :4] == 1).all()) and not mine[:, 4:].any()
    assert bool((theirs[:, 4:] == 1).all()) and not theirs[:, :4].any()


def test_a_painted_target_keeps_its_place_from_a_subject_that_is_carried_over(z):
    clean, noise, x = made(z)
    exact = reference_of(z, clean, noise, z.positive)
    model, carried = applied(z, exact, {"reference_mask": painted(0, SIZE[1]), "carried": True})
    model, fixed = applied(z, other_reference(z), {"target_mask": painted(0, 8)}, model=model)
    evaluated(model, z.positive, z.negative, [(x, SIGMA)] * 2)
    mine, theirs = (trace.last().target_mask[0, 0] for trace in (fixed, carried))
    assert bool((mine[:, :4] == 1).all()) and not theirs[:, :4].any() and bool((theirs[:, 4:] == 1).all())


def test_anima_is_matched_as_cosmos_predict2_is(pack, monkeypatch):
    """Its text encoders are joined by a part of the network, whose own attention is none of the blocks'."""
    kind, config, _ = TRANSFORMERS["Cosmos-Predict2"]
    monkeypatch.setitem(TRANSFORMERS, "Anima", ("Anima", {**config, "image_model": "anima"}, None))
    anima = bench_of(pack, "Anima")
    clean, noise, x = made(anima)
    assert type(anima.model.model.diffusion_model).__name__ == "Anima"
    matched, trace = applied(anima, reference_of(anima, clean, noise, anima.positive))
    plain, result = (evaluated(model, anima.positive, anima.negative, [(x, SIGMA)] * 2)[-1] for model in (anima.model, matched))
    assert trace.layers and not trace.skipped and close(result, plain, RUN) and trace.last().flow.abs().max() == 0
    off, _ = applied(anima, other_reference(anima), strength=0.0)
    assert torch.equal(*(drawn(model, anima.longer, anima.negative, cfg=3.0) for model in (anima.model, off)))
