"""Means of measures as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from dreammatcher.evaluation.statistics import difference

#: measure -> its column's title and decimals
Columns = Mapping[str, tuple[str, int]]


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that could be measured; None when none could."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def means(rows: list[dict], columns: Columns) -> dict[str, dict[str, float | None]]:
    """Mean of every column over the rows of one ``name``."""
    return {name: {key: mean_of(row.get(key) for row in rows if row["name"] == name) for key in columns}
            for name in dict.fromkeys(row["name"] for row in rows)}


def markdown(table: Mapping[str, Mapping], columns: Columns, corner: str = "") -> str:
    lines = [f"| {corner} | {' | '.join(title for title, _ in columns.values())} |", "|" + "---|" * (len(columns) + 1)]
    return "\n".join(lines + [f"| {name} | {' | '.join(shown(row[key], digits) for key, (_, digits) in columns.items())} |"
                              for name, row in table.items()])


def compared(rows: list[dict], key: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A line for each pair of names: the second less the first, subject by subject, and for how many it is lower."""
    lines = []
    for names in pairs:
        one, other = ({row["subject"]: row[key] for row in rows if row["name"] == name} for name in names)
        lower = sum(other[subject] < one[subject] for subject in one)
        lines.append(f"{names[0]} -> {names[1]}: {difference(one, other).signed()}, lower for {lower} of {len(one)}")
    return "\n".join(lines)


def shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
