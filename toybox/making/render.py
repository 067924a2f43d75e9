"""``python -m toybox.making.render [--count N]``: draws the training pictures into build/toybox."""

from __future__ import annotations

import argparse

from .dataset import render_dataset

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=96_000)
    render_dataset(parser.parse_args().count)
