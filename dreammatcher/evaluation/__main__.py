"""``python -m dreammatcher.evaluation``: see :mod:`dreammatcher.cli.evaluate`."""

from __future__ import annotations

from ..cli.evaluate import command

if __name__ == "__main__":
    command()
