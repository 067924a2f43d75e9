"""``make pareto``: likeness against time for everything that trades one for the other, on Toybox.

Writes build/pareto.json and the figure of docs/measured.md, docs/pareto.png.
"""

from __future__ import annotations

import argparse
import json

from dreammatcher.evaluation.statistics import summary
from harness.boot import Host
from harness.library import ROOT
from toybox.evaluation import ERROR

from . import quality
from .arms import PLAIN

FILE, FIGURE = ROOT / "build" / "pareto.json", ROOT / "docs" / "pareto.png"


def draw(table: dict[str, dict[str, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=110)
    column = max(row[quality.TIME] for row in table.values()) + 0.08
    gap = 0.062 * (max(row[ERROR] for row in table.values()) - min(row[ERROR] for row in table.values()))
    height = float("-inf")
    for name, row in sorted(table.items(), key=lambda item: item[1][ERROR]):
        named = name in (PLAIN, "balanced", "paper", "match every 2")
        place, height = (row[quality.TIME], row[ERROR]), max(row[ERROR], height + gap)
        axes.scatter(*place, s=60 if named else 30, color="#d55e00" if named else "#0072b2", zorder=3)
        axes.plot((place[0], column), (place[1], height), color="#999999", linewidth=0.6, zorder=1)
        shown = f"{name} (preset fast)" if name == "match every 2" else name
        axes.annotate(shown, (column, height), xytext=(4, 0), textcoords="offset points", fontsize=9, va="center",
                      weight="bold" if named else "normal")
    axes.set_xlim(0.95, column + 0.4)
    axes.set(xlabel="time of a picture, against the plain model (features cached)",
             ylabel="subject error (CIEDE2000), lower is better")
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--redraw", action="store_true", help="draw build/pareto.json again")
    options = parser.parse_args()
    if options.redraw:
        table = json.loads(FILE.read_text(encoding="utf-8"))
    else:
        runner = quality.ToyboxRunner(Host(ROOT / "build" / "host"))
        arms = quality.run(runner, "trades", options.cases, options.first, quality.FOLDER / "trades")
        print(summary(arms, (ERROR,)).markdown())
        table = {arm.name: {metric: arm.estimate(metric).mean for metric in (ERROR, quality.TIME)}
                 for arm in arms if arm.name != quality.RECOLOURED}
        FILE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    draw(table)
    print(f"wrote {FILE.relative_to(ROOT)} and {FIGURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
