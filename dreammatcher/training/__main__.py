"""``python -m dreammatcher.training``: see :mod:`dreammatcher.cli.train`."""

from __future__ import annotations

from ..cli.train import command

if __name__ == "__main__":
    command()
