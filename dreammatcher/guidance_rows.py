"""Rows of the guidance pair, as every method names them."""

from __future__ import annotations

#: kinds of rows
COND, UNCOND = "cond", "uncond"
#: a row of the guidance pair: its kind, and the number of the positive prompt it belongs to
Row = tuple[str, int]
