"""Means of measures as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

#: measure -> its column's title and decimals
Columns = Mapping[str, tuple[str, int]]


def mean_of(values: Iterable[float | None]) -> float | None:
    """Of those that could be measured; None when none could."""
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


def shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
