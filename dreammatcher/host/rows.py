"""Whose rows a call's batch holds.

The host numbers the rows of a batch by the prompt list they come from, 0 being the first. That is not enough: one list may
hold several prompts, packs number what they like, and one noise level may see several pictures (areas, tiles, packs that
call again with a changed one).
"""

from __future__ import annotations

import torch

from ..matching.features import COND, UNCOND
from ..matching.matcher import Row
from .prompts import Look
from .session import Session

#: cosine of the looks of two rows above which they see the same picture, and a changed version of it
SAME, RELATED = 0.99, 0.5


def assign(session: Session, numbers: tuple[int, ...], looks: list[Look], texts: list[torch.Tensor]) -> list[Row | None]:
    """The row of each chunk, or None where it is not the plan's.

    ``looks`` and ``texts`` (contexts [T, C]) are those of each chunk's first picture.
    """
    kinds = _kinds(session, numbers, texts)
    if session.rows.size is not None and looks[0].size != session.rows.size and not session.rows.areas:
        session.skip("calls that see a part of the picture (tiles, windows) are left as they are")
        return [None] * len(numbers)
    if len(session.rows.prompts) > 1 or session.rows.areas:
        rows = _assign_parts(session, kinds, looks, texts)
    else:
        rows = [_assign_whole(session, kind, look, text) for kind, look, text in zip(kinds, looks, texts)]
    sigma = looks[0].sigma
    return [None] * len(rows) if session.rows.torn == sigma else rows


def _kinds(session: Session, numbers: tuple[int, ...], texts: list[torch.Tensor]) -> list[str]:
    """By content, looked at once per run and number: guiders with three lists do not begin with the positive prompt."""
    if not session.rows.kinds.keys() >= set(numbers):
        positive = [any(prompt.is_in(text) for prompt in session.rows.prompts) for text in texts]
        for number, found in zip(numbers, positive):
            session.rows.kinds.setdefault(number, COND if (found if any(positive) else number == 0) else UNCOND)
    return [session.rows.kinds[number] for number in numbers]


def _assign_whole(session: Session, kind: str, look: Look, text: torch.Tensor) -> Row | None:
    """One positive prompt for the whole picture. Only a second call at one sigma needs a closer look."""
    row = (kind, 0)
    seen = session.rows.looks.get(row)
    if seen is None or seen.sigma != look.sigma:
        session.rows.looks[row] = look
        return row
    if kind == COND and session.rows.prompts and not session.rows.prompts[0].is_in(text):  # SAG and PerpNeg call anything "cond"
        row = (UNCOND, 0)
        seen = session.rows.looks.get(row, seen)
        return row if seen.likeness(look) > RELATED else None
    if seen.likeness(look) > RELATED:
        return row
    session.tear(look.sigma)
    return None


def _assign_parts(session: Session, kinds: list[str], looks: list[Look], texts: list[torch.Tensor]) -> list[Row | None]:
    """Several prompts or areas: cond chunks are known by their prompt, uncond chunks by what they see."""
    subject = session.plan.mask.target_subject
    prompts = session.rows.prompts
    serving = [number for number, prompt in enumerate(prompts) if len(prompts) == 1 or prompt.names(subject)]
    if not serving:
        words = f"with the words {subject.words!r}" if subject else "(DreamMatcher Mask has no target subject to look for)"
        session.skip(f"this run has several positive prompts and none comes from DreamMatcher Subject {words}, so nothing is "
                     "matched")
        return [None] * len(kinds)
    rows: list[Row | None] = [None] * len(kinds)
    for number, kind in enumerate(kinds):
        if kind == COND:
            rows[number] = _cond_part(session, serving, looks[number], texts[number])
    for number, kind in enumerate(kinds):
        if kind == UNCOND:
            prompt = next((p for p in serving if _saw(session, p, looks[number])), None)
            rows[number] = None if prompt is None else (UNCOND, prompt)
    return rows


def _cond_part(session: Session, serving: list[int], look: Look, text: torch.Tensor) -> Row | None:
    """One text may stand in several areas: each is a prompt of its own, told apart by what it sees."""
    candidates = [number for number in serving if session.rows.prompts[number].is_in(text)]
    known = next((number for number in candidates if _saw(session, number, look)), None)
    if known is not None:
        return COND, known
    fresh = next((number for number in candidates if session.rows.looks.get((COND, number), look).sigma != look.sigma
                  or (COND, number) not in session.rows.looks), None)
    if fresh is not None:
        session.rows.looks[COND, fresh] = look
        return COND, fresh
    if any(session.rows.looks[COND, number].size == look.size for number in candidates):
        session.tear(look.sigma)
    return None


def _saw(session: Session, prompt: int, look: Look) -> bool:
    seen = session.rows.looks.get((COND, prompt))
    return seen is not None and seen.sigma == look.sigma and seen.likeness(look) > SAME
