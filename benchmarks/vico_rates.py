"""``python -m benchmarks.vico_rates``: which ``word_rate`` suits ViCo's batch of 4 on one device.

Toybox learns subjects that no other benchmark shows, with every rate, in the node's default batch and number of steps. Prints the
subject's error with the blocks and of the word alone, as soon as each is known, and then a table of the means.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from harness.boot import Host
from harness.library import ROOT

from .learn import Drawing
from .method_runner import MethodRunner, subject_cases
from .tables import markdown, means

#: as many of the deviations of a word's numbers (0.042 in Toybox, about 0.014 in SD1.4) as the authors' 0.005 of one GPU with one
#: picture a step, and as their 0.02 of four GPUs, whose batch together is 4
RATES = (1.5e-2, 6e-2)
BLOCK_RATE, STEPS = 1e-3, 400
COLUMNS = {"subject_error": ("subject error ↓", 1), "scene": ("scene ↑", 2), "class": ("class ↑", 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, nargs="+", default=[100, 104])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    options = parser.parse_args()
    runner, rows = MethodRunner(Host(ROOT / "build" / "host-vico-rates")), []
    with torch.inference_mode():
        for number in options.subjects:
            case, = subject_cases(1, options.prompts, number)
            for rate in options.rates:
                drawing = Drawing(runner, case)
                for name, looks in ((f"word_rate {rate:g}", True), (f"word_rate {rate:g}, its word alone", False)):
                    taught = runner.vico(case, STEPS, (rate, BLOCK_RATE), looks)
                    drawing.figures(name, partial(drawing.alone, taught))
                rows += [{**row, "subject": number} for row in drawing.rows]
                for row in drawing.rows:
                    print(f"subject {number}, {row['name']}: {row['subject_error']:.1f}", flush=True)
    print(markdown(means(rows, COLUMNS), COLUMNS, "method"))


if __name__ == "__main__":
    main()
