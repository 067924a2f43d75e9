"""``make demo``: runs the example workflow in a real ComfyUI and writes build/demo/*.png with one sheet of all."""

from __future__ import annotations

import json
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from harness.boot import Host
from harness.library import ROOT
from harness.workflow import to_prompt

FOLDER = ROOT / "build" / "demo"
WORKFLOW = ROOT / "example_workflows" / "dreammatcher_04_toybox.json"
TITLES = ("reference", "plain model", "DreamMatcher", "warped reference", "subject")
WARPED, SUBJECT = 4, 1  # among the preview's panels

#: kind, subject, pose, background, target prompt, seed: the first row is the workflow as it is shipped
ROWS = (
    None,
    ("bird", 4, 3, "sky", "a photo of a bird on grass", 5),
    ("fish", 2, 5, "desert", "a photo of a fish facing left in the sky", 2),
    ("car", 5, 2, "snow", "a photo of a car in the desert", 3),
    ("cat", 3, 4, "grass", "a photo of a cat at night", 4),
)


def by_type(prompt: dict, kind: str) -> list[dict]:
    return [entry["inputs"] for _, entry in sorted(prompt.items(), key=lambda item: int(item[0])) if entry["class_type"] == kind]


def change(prompt: dict, kind: str, subject: int, pose: int, background: str, wanted: str, seed: int) -> None:
    """Another subject and scene in the same graph."""
    by_type(prompt, "ToyboxReference")[0].update(subject=subject, kind=kind, pose=pose, background=background)
    texts = by_type(prompt, "DreamMatcherSubject")
    texts[0].update(prompt=f"a photo of a {kind}", subject_words=kind)
    texts[1].update(prompt=wanted, subject_words=kind)
    for sampler in by_type(prompt, "KSampler"):
        sampler["seed"] = seed


def number_of(prompt: dict, kind: str, index: int = 0) -> str:
    ordered = sorted(prompt.items(), key=lambda item: int(item[0]))
    return [number for number, entry in ordered if entry["class_type"] == kind][index]


def run_row(host: Host, executor, workflow: dict, row: tuple | None) -> list[Image.Image]:
    """The five pictures of one row."""
    prompt = to_prompt(workflow, host.nodes)
    if row:
        change(prompt, *row)
    prompt["900"] = {"class_type": "SaveImage", "inputs": {
        "images": [number_of(prompt, "ToyboxReference"), 0], "filename_prefix": "dreammatcher/reference"}}
    prompt["901"] = {"class_type": "SaveImage", "inputs": {
        "images": [number_of(prompt, "DreamMatcherPreview"), 0], "filename_prefix": "dreammatcher/panels"}}
    result = host.run(prompt, executor)
    if not result.success:
        raise RuntimeError(f"the workflow failed: {result.error()}")
    plain, matched, reference = (host.images(result, number_of(prompt, "SaveImage", index))[0] for index in range(3))
    panels = host.images(result, "901")
    return [reference, plain, matched, panels[WARPED], panels[SUBJECT]]


def sheet_of(rows: list[list[Image.Image]], side: int = 192, gap: int = 6, head: int = 26) -> Image.Image:
    columns = len(TITLES)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, head + len(rows) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for column, title in enumerate(TITLES):
        draw.text((gap + column * (side + gap) + side / 2, head / 2), title, fill="black", font=font, anchor="mm")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            place = (gap + column * (side + gap), head + number * (side + gap))
            sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), place)
    return sheet


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    host = Host(ROOT / "build" / "host")
    executor = host.executor()
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    rows = []
    for number, row in enumerate(ROWS):
        pictures = run_row(host, executor, workflow, row)
        rows.append(pictures)
        for title, picture in zip(TITLES, pictures):
            picture.save(FOLDER / f"{number + 1}_{title.replace(' ', '_')}.png")
        print(f"row {number + 1} of {len(ROWS)}: {time.monotonic() - started:.0f} s", flush=True)
    sheet_of(rows).save(FOLDER / "sheet.png")
    print(f"wrote {Path('build/demo/sheet.png')}: {' | '.join(TITLES)}")


if __name__ == "__main__":
    main()
