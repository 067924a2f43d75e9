"""Whose rows a call's batch holds.

The host numbers the rows of a batch by the prompt list they come from, 0 being the first. That is not enough: one list may
hold several prompts, packs number what they like, and one noise level may see several pictures (areas, tiles, packs that
call again with a changed one).
"""

from __future__ import annotations

import torch

from ..matching.features import COND, UNCOND
from .prompts import Look
from .run import Row, Run

#: cosine of the looks of two rows above which they see the same picture, and a changed version of it
SAME, RELATED = 0.99, 0.5


def assign(run: Run, numbers: tuple[int, ...], looks: list[Look], texts: list[torch.Tensor]) -> list[Row | None]:
    """The row of each chunk, or None where it is not the plan's.

    ``looks`` and ``texts`` (contexts [T, C]) are those of each chunk's first picture.
    """
    kinds = _kinds(run, numbers, texts)
    if run.size is not None and looks[0].size != run.size and not run.areas:
        run.skip("calls that see a part of the picture (tiles, windows) are left as they are")
        return [None] * len(numbers)
    if len(run.prompts) > 1 or run.areas:
        rows = _assign_parts(run, kinds, looks, texts)
    else:
        rows = [_assign_whole(run, kind, look, text) for kind, look, text in zip(kinds, looks, texts)]
    sigma = looks[0].sigma
    return [None] * len(rows) if run.torn == sigma else rows


def _kinds(run: Run, numbers: tuple[int, ...], texts: list[torch.Tensor]) -> list[str]:
    """By content, looked at once per run and number: guiders with three lists do not begin with the positive prompt."""
    if not run.kinds.keys() >= set(numbers):
        positive = [any(prompt.is_in(text) for prompt in run.prompts) for text in texts]
        for number, found in zip(numbers, positive):
            run.kinds.setdefault(number, COND if (found if any(positive) else number == 0) else UNCOND)
    return [run.kinds[number] for number in numbers]


def _assign_whole(run: Run, kind: str, look: Look, text: torch.Tensor) -> Row | None:
    """One positive prompt for the whole picture. Only a second call at one sigma needs a closer look."""
    row = (kind, 0)
    seen = run.looks.get(row)
    if seen is None or seen.sigma != look.sigma:
        run.looks[row] = look
        return row
    if kind == COND and run.prompts and not run.prompts[0].is_in(text):  # SAG and PerpNeg call anything "cond"
        row = (UNCOND, 0)
        seen = run.looks.get(row, seen)
        return row if seen.likeness(look) > RELATED else None
    if seen.likeness(look) > RELATED:
        return row
    _tear(run, look.sigma)
    return None


def _assign_parts(run: Run, kinds: list[str], looks: list[Look], texts: list[torch.Tensor]) -> list[Row | None]:
    """Several prompts or areas: cond chunks are known by their prompt, uncond chunks by what they see."""
    subject = run.plan.mask.target_subject
    serving = [number for number, prompt in enumerate(run.prompts) if len(run.prompts) == 1 or prompt.names(subject)]
    if not serving:
        words = f"with the words {subject.words!r}" if subject else "(DreamMatcher Mask has no target subject to look for)"
        run.skip(f"this run has several positive prompts and none comes from DreamMatcher Subject {words}, so nothing is matched")
        return [None] * len(kinds)
    rows: list[Row | None] = [None] * len(kinds)
    for number, kind in enumerate(kinds):
        if kind == COND:
            rows[number] = _cond_part(run, serving, looks[number], texts[number])
    for number, kind in enumerate(kinds):
        if kind == UNCOND:
            prompt = next((p for p in serving if _saw(run, p, looks[number])), None)
            rows[number] = None if prompt is None else (UNCOND, prompt)
    return rows


def _cond_part(run: Run, serving: list[int], look: Look, text: torch.Tensor) -> Row | None:
    """One text may stand in several areas: each is a prompt of its own, told apart by what it sees."""
    candidates = [number for number in serving if run.prompts[number].is_in(text)]
    known = next((number for number in candidates if _saw(run, number, look)), None)
    if known is not None:
        return COND, known
    fresh = next((number for number in candidates if run.looks.get((COND, number), look).sigma != look.sigma
                  or (COND, number) not in run.looks), None)
    if fresh is not None:
        run.looks[COND, fresh] = look
        return COND, fresh
    if any(run.looks[COND, number].size == look.size for number in candidates):
        _tear(run, look.sigma)
    return None


def _saw(run: Run, prompt: int, look: Look) -> bool:
    seen = run.looks.get((COND, prompt))
    return seen is not None and seen.sigma == look.sigma and seen.likeness(look) > SAME


def _tear(run: Run, sigma: float) -> None:
    run.torn = sigma
    for known in (run.levels, run.before, run.found, run.done):  # they may be another picture's
        known.clear()
    run.skip("calls at one noise level see different pictures (tiles, restarts); such steps are left as they are")
