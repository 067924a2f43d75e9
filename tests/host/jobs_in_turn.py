"""``python jobs_in_turn.py A.json B.json ... -- OPTIONS``: runs jobs as the command does, and ComfyUI starts once."""

from __future__ import annotations

import sys

from dreammatcher.cli.train import command


def main() -> None:
    end = sys.argv.index("--")
    jobs, options = sys.argv[1:end], sys.argv[end + 1:]
    for job in jobs:
        sys.argv = ["dreammatcher.training", job, *options]
        command()


if __name__ == "__main__":
    main()
