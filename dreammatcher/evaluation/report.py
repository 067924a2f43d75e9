"""Reports of scores: tables to read, to compute with and to send, and the pictures they are of."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .metrics import Estimate, difference, estimate, figure
from .scoring import Scores

MARGIN = 4


@dataclass(frozen=True, eq=False)
class Measured:
    """Scores of one arm, with their pictures and encoders."""

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
        """Mean over the cases. Its bootstrap interval draws subjects."""
        column = self.column(metric)
        return estimate(list(column.values()), [self.subjects[key] for key in column])


def table(arms: list[Measured], compared: Collection[str] | None = None) -> list[list[str]]:
    """A header and a row for each arm: the mean of every metric.

    Metrics that are ``compared``, or all of them, also have their interval and the difference from the first arm.
    """
    metrics = list(dict.fromkeys(metric for arm in arms for metric in arm.metrics()))
    chosen = [metric for metric in metrics if len(arms) > 1 and (compared is None or metric in compared)]
    rows = [["arm", "pictures", *metrics, *(f"{metric} against {arms[0].name}" for metric in chosen)]]
    for arm in arms:
        means = [_mean(arm, metric, compared is None or metric in compared) for metric in metrics]
        against = [_against(arms[0], arm, metric) for metric in chosen]
        rows.append([arm.name, str(len(arm.scores)), *means, *against])
    return rows


def _mean(arm: Measured, metric: str, interval: bool) -> str:
    if not arm.column(metric):
        return ""
    estimate = arm.estimate(metric)
    return str(estimate) if interval else figure(estimate.mean)


def _against(first: Measured, arm: Measured, metric: str) -> str:
    if arm is first or not set(first.column(metric)) & set(arm.column(metric)):
        return ""
    return difference(first.column(metric), arm.column(metric), arm.subjects).signed()


def markdown(rows: list[list[str]]) -> str:
    return "\n".join([f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0]), *(f"| {' | '.join(row)} |" for row in rows[1:])])


def write(arms: list[Measured], folder: Path, compared: Collection[str] | None = None) -> list[Path]:
    """Writes scores.csv, scores.json, table.md, sheet.png and report.html; returns their paths.

    Raises ValueError for two arms of one name: files tell them apart by nothing else.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"arms: two are called {max(names, key=names.count)!r}; give each a name of its own")
    folder.mkdir(parents=True, exist_ok=True)
    rows, page = table(arms, compared), sheet(arms)
    files = {name: folder / name for name in ("scores.csv", "scores.json", "table.md", "sheet.png", "report.html")}
    with files["scores.csv"].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        metrics = list(dict.fromkeys(metric for arm in arms for metric in arm.metrics()))
        writer.writerow(["arm", "case", "subject", *metrics])
        for arm in arms:
            writer.writerows([arm.name, key, arm.subjects[key], *(row.get(metric, "") for metric in metrics)]
                             for key, row in arm.scores.items())
    said = {arm.name: {"encoders": arm.encoders, "means": {metric: asdict(arm.estimate(metric)) for metric in arm.metrics()},
                       "cases": arm.scores} for arm in arms}
    files["scores.json"].write_text(json.dumps(said, indent=1), encoding="utf-8")
    files["table.md"].write_text(markdown(rows) + "\n", encoding="utf-8")
    page.save(files["sheet.png"])
    files["report.html"].write_text(_page(arms, rows), encoding="utf-8")
    return list(files.values())


def sheet(arms: list[Measured], side: int = 160, most: int = 12) -> Image.Image:
    """A row of pictures for each arm, of the same cases, one of each subject first."""
    keys = _shown(arms, most)
    font, label = ImageFont.load_default(12), 20
    page = Image.new("RGB", (max(1, len(keys)) * (side + MARGIN), len(arms) * (side + label)), "white")
    for row, arm in enumerate(arms):
        ImageDraw.Draw(page).text((MARGIN, row * (side + label) + 3), arm.name, "black", font)
        for column, key in enumerate(keys):
            with Image.open(arm.pictures[key]) as image:
                small = image.convert("RGB")
                small.thumbnail((side, side))
            page.paste(small, (column * (side + MARGIN), row * (side + label) + label))
    return page


def _shown(arms: list[Measured], most: int) -> list[str]:
    """Cases that every arm has, in turns of the subjects."""
    shared = [key for key in arms[0].pictures if all(key in arm.pictures for arm in arms)]
    turns: dict[str, int] = {}
    order = []
    for key in shared:
        subject = arms[0].subjects[key]
        turns[subject] = turns.get(subject, -1) + 1
        order.append((turns[subject], key))
    return [key for _, key in sorted(order, key=lambda pair: pair[0])[:most]]


def _page(arms: list[Measured], rows: list[list[str]]) -> str:
    """The report as one HTML file that opens without a server: pictures are inside."""
    def cells(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    parts = [cells(rows[0], "th"), *(cells(row, "td") for row in rows[1:])]
    encoders = "; ".join(f"{metric}: {name}" for metric, name in arms[0].encoders.items())
    figures = []
    for key in _shown(arms, 60):
        figures.append(f"<h3>{html.escape(key)}</h3><div>")
        for arm in arms:
            values = ", ".join(f"{metric} {value:.3f}" for metric, value in arm.scores.get(key, {}).items())
            figures.append(f'<figure><img src="data:image/jpeg;base64,{_inside(arm.pictures[key])}" alt="{html.escape(key)}">'
                           f"<figcaption>{html.escape(arm.name)}<br>{html.escape(values)}</figcaption></figure>")
        figures.append("</div>")
    return ("<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>"
            "body{font:14px sans-serif;margin:2em}"
            "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:4px 8px;text-align:left}"
            "figure{display:inline-block;margin:0 8px 8px 0}img{max-width:256px}</style>"
            f"<h1>Evaluation</h1><table>{''.join(parts)}</table><p>Mean with the 95% interval over subjects. "
            f"{html.escape(encoders)}.</p>{''.join(figures)}</html>")


def _inside(path: Path) -> str:
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((320, 320))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
