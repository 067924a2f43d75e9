"""Means of scores, how sure they are, and arms side by side."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: case -> metric -> value
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Estimate:
    """A mean with the interval in which it lies with a given confidence."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{figure(self.mean)} [{figure(self.low)}, {figure(self.high)}]"

    def signed(self) -> str:
        """The estimate as a difference: every number has its sign."""
        return f"{figure(self.mean, '+')} [{figure(self.low, '+')}, {figure(self.high, '+')}]"


def figure(value: float, sign: str = "") -> str:
    """A number with about three digits: three decimals below 1, two below 10, else one."""
    return f"{value:{sign}.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def estimate(values: list[float], groups: list[str] | None = None, draws: int = 2000, level: float = 0.95) -> Estimate:
    """Mean and bootstrap interval (Efron 1979).

    With ``groups``, as the subject of each value, whole groups are drawn: pictures of one subject are alike, and more of them
    make the figure no surer. Raises ValueError when there is no value.
    """
    if not values:
        raise ValueError("values: there is none to take a mean of")
    numbers, generator = np.asarray(values, float), np.random.default_rng(0)
    if groups is None:
        drawn = numbers[generator.integers(len(numbers), size=(draws, len(numbers)))].mean(1)
    else:
        names = sorted(set(groups))
        sums = np.array([numbers[[group == name for group in groups]].sum() for name in names])
        counts = np.array([groups.count(name) for name in names])
        chosen = generator.integers(len(names), size=(draws, len(names)))
        drawn = sums[chosen].sum(1) / counts[chosen].sum(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


def difference(one: dict[str, float], other: dict[str, float], groups: dict[str, str] | None = None) -> Estimate:
    """Mean of ``other`` less ``one`` over the cases that both have, with its interval: paired, since the cases are the same.

    Raises ValueError when they share no case.
    """
    shared = [key for key in one if key in other]
    if not shared:
        raise ValueError("arms: they share no case, so they cannot be compared")
    return estimate([other[key] - one[key] for key in shared], [groups[key] for key in shared] if groups else None)


@dataclass(frozen=True, eq=False)
class Measured:
    """One arm."""

    name: str
    scores: Scores
    subjects: dict[str, str]  # case -> subject
    pictures: dict[str, Path]  # case -> file
    encoders: dict[str, str]  # metric -> what it is of

    def metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for row in self.scores.values() for metric in row))

    def column(self, metric: str) -> dict[str, float]:
        return {key: row[metric] for key, row in self.scores.items() if metric in row}

    def estimate(self, metric: str) -> Estimate:
        """Mean over the cases; its interval draws subjects."""
        column = self.column(metric)
        return estimate(list(column.values()), [self.subjects[key] for key in column])


@dataclass(frozen=True, eq=False)
class Summary:
    """Arms side by side, with every mean that their reports tell."""

    arms: list[Measured]
    metrics: list[str]  # of all arms, in the order in which they come first
    means: dict[str, dict[str, Estimate]]  # arm -> metric -> mean
    rows: list[list[str]]  # a head, and a row for each arm

    def markdown(self) -> str:
        return markdown(self.rows)


def summary(arms: list[Measured], compared: Collection[str] | None = None) -> Summary:
    """The mean of every metric of each arm, with its interval and the difference from the first arm for those that are
    ``compared``, or for all.

    Raises ValueError for two arms of one name: reports tell them apart by nothing else.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"arms: two are called {max(names, key=names.count)!r}; give each a name of its own")
    metrics = list(dict.fromkeys(metric for arm in arms for metric in arm.metrics()))
    means = {arm.name: {metric: arm.estimate(metric) for metric in arm.metrics()} for arm in arms}
    return Summary(arms, metrics, means, _rows(arms, metrics, means, compared))


def _rows(arms: list[Measured], metrics: list[str], means: dict[str, dict[str, Estimate]],
          compared: Collection[str] | None) -> list[list[str]]:
    chosen = [metric for metric in metrics if len(arms) > 1 and (compared is None or metric in compared)]
    rows = [["arm", "pictures", *metrics, *(f"{metric} against {arms[0].name}" for metric in chosen)]]
    for arm in arms:
        cells = [_mean(means[arm.name].get(metric), compared is None or metric in compared) for metric in metrics]
        against = [_against(arms[0], arm, metric) for metric in chosen]
        rows.append([arm.name, str(len(arm.scores)), *cells, *against])
    return rows


def _mean(mean: Estimate | None, interval: bool) -> str:
    if mean is None:
        return ""
    return str(mean) if interval else figure(mean.mean)


def _against(first: Measured, arm: Measured, metric: str) -> str:
    if arm is first or not set(first.column(metric)) & set(arm.column(metric)):
        return ""
    return difference(first.column(metric), arm.column(metric), arm.subjects).signed()


def markdown(rows: list[list[str]]) -> str:
    return "\n".join([f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0]), *(f"| {' | '.join(row)} |" for row in rows[1:])])
