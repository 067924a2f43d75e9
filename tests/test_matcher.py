"""The matcher by itself, with plain values: no ComfyUI, no sampling."""

from __future__ import annotations

import torch

from dreammatcher.backbones.unet import UNetBackbone
from dreammatcher.matching.features import RowFeatures
from dreammatcher.matching.inversion import Trajectory
from dreammatcher.matching.matcher import Matcher
from dreammatcher.matching.plan import View
from dreammatcher.matching.reference import Reference
from dreammatcher.matching.settings import ApplySettings, MaskSettings, MatchSettings
from dreammatcher.subject import Conditioning, Subject

SIDE, ROW = 16, ("cond", 0)
SUBJECT = Subject("dog", "a dog", (2,), 77)


def features(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Decoder features of two scales, coarse to fine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 12, SIDE // 2, SIDE // 2, generator=generator), torch.randn(1, 8, SIDE, SIDE, generator=generator)


def reference() -> Reference:
    latent = torch.arange(4 * SIDE * SIDE).view(1, 4, SIDE, SIDE).float()
    text = Conditioning(torch.zeros(1, 77, 8))
    path = Trajectory((0.1, 1.0), latent.repeat(2, 1, 1, 1), torch.zeros(2, 4, SIDE, SIDE))
    return Reference(path, latent, text, text, "family")


def matcher(shown: tuple[torch.Tensor, ...], mask: torch.Tensor | None = None, weight: float = 1.0, target_mask=None,
            otsu: bool = True, **match_settings) -> Matcher:
    known = reference()
    view = View(known, known.store, None, mask, weight)
    settings = MaskSettings(None, SUBJECT, target_mask=target_mask, otsu=otsu)
    return Matcher((view,), settings, ApplySettings(match=MatchSettings(**match_settings)),
                   lambda kind, sigma, like: [RowFeatures(shown, {}, None)], UNetBackbone({}, (), {}, ""),
                   lambda number, device: torch.ones(1, 1, SIDE, SIDE))


def matched(made: Matcher, target: tuple[torch.Tensor, ...]):
    return made.match(made.describe("cond", 1.0, target), (SIDE, SIDE), None)


def test_the_reference_itself_is_matched_place_by_place_and_trusted_everywhere():
    begun = matcher(features())
    match = matched(begun, features())
    assert torch.equal(match.matches[0].indices[0], torch.arange(SIDE * SIDE)) and not match.matches[0].flow.any()
    trust, confidence = begun.trust(ROW, match, torch.ones(1, 1, SIDE, SIDE))
    assert trust.min() == confidence.min() == 1
    assert torch.allclose(begun.warped_references(match, torch.device("cpu")), reference().latent, atol=0.01), "of up to 1023"


def test_a_mirrored_reference_is_matched_mirrored():
    flipped = tuple(level.flip(-1) for level in features())
    match = matched(matcher(features()), flipped)
    expected = torch.arange(SIDE * SIDE).view(SIDE, SIDE).flip(-1).flatten()
    assert (match.matches[0].indices[0] == expected).float().mean() > 0.95


def test_a_reference_mask_limits_the_match_to_what_is_white():
    left = torch.zeros(1, 1, 64, 64)
    left[..., :32] = 1
    match = matched(matcher(features(), mask=left), features(1))
    assert (match.matches[0].indices % SIDE < SIDE // 2).all()


def test_weight_and_foreground_scale_the_trust():
    begun = matcher(features(), weight=0.5)
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., :4] = 1
    trust, _ = begun.trust(ROW, matched(begun, features()), mask)
    assert trust[..., :4].max() == 0.5 and not trust[..., 4:].any()


def test_a_correspondence_is_kept_for_as_many_evaluations_as_the_settings_say():
    begun = matcher(features(), every=2)
    match = begun.keep(ROW, (SIDE, SIDE), 5, matched(begun, features()))
    assert begun.kept(ROW, (SIDE, SIDE), 1, 5) is begun.kept(ROW, (SIDE, SIDE), 1, 6) is match
    assert begun.kept(ROW, (SIDE, SIDE), 1, 7) is None
    assert begun.kept(ROW, (SIDE, SIDE), 2, 5) is None, "of another number of pictures"
    assert begun.kept(("uncond", 0), (SIDE, SIDE), 1, 5) is None
    begun.forget()
    assert begun.kept(ROW, (SIDE, SIDE), 1, 5) is None


def test_a_painted_foreground_is_repeated_for_a_batch_and_sharpened_unless_soft():
    painted = torch.full((1, 1, 32, 32), 0.75)
    hard, soft = (matcher(features(), target_mask=painted, otsu=otsu).painted_foreground((SIDE, SIDE), 3, torch.device("cpu"))
                  for otsu in (True, False))
    assert hard.shape == soft.shape == (3, 1, SIDE, SIDE) and (hard == 1).all() and (soft == 0.75).all()


def test_maps_become_a_foreground_once_and_rivals_take_what_is_more_theirs():
    begun = matcher(features())
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., :4] = 1
    mine = begun.mapped_foreground(0, [maps], (SIDE, SIDE))
    assert mine is begun.mapped_foreground(0, [maps], (SIDE, SIDE)) and mine[..., :8].all() and not mine[..., 8:].any()
    rival = torch.zeros_like(mine)
    rival[..., :4] = 2
    assert begun.contested(0, (SIDE, SIDE), mine, []) is mine
    left = begun.contested(0, (SIDE, SIDE), mine, [rival])
    assert not left[..., :4].any() and left[..., 4:8].all()
