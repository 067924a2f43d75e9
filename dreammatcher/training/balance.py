"""Draws pictures of several subjects so that each comes equally often, whatever its number of pictures."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import accumulate

import torch


def balanced(sizes: Sequence[Hashable], owners: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """Numbers of ``count`` pictures of one size, given the size and the subject, its owner, of each.

    A picture counts by one over the number of its subject's pictures, so on average each subject fills as many rows as another,
    and each picture of a subject as many as its others. A size comes by what its pictures count. Within it, subjects are spread
    over the rows as evenly as they can (systematic sampling, Madow and Madow 1944): of N subjects of one size, a batch of N
    rows holds each once.
    """
    pictures = Counter(owners)
    weights = [1 / pictures[owner] for owner in owners]
    size = sizes[int(torch.multinomial(torch.tensor(weights), 1, generator=generator))]
    alike: dict[int, list[int]] = {}
    for number, owner in enumerate(owners):
        if sizes[number] == size:
            alike.setdefault(owner, []).append(number)
    ends = list(accumulate(len(numbers) / pictures[owner] for owner, numbers in alike.items()))
    start = float(torch.rand(1, generator=generator))
    places = [(row + start) / count * ends[-1] for row in range(count)]
    chosen = [list(alike.values())[min(bisect_right(ends, place), len(ends) - 1)] for place in places]
    return [numbers[int(torch.randint(len(numbers), (1,), generator=generator))] for numbers in chosen]
