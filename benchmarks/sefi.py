"""``make learn-sefi``: Toybox learns subjects from one picture each by SeFi-IDE, part by part.

Writes build/sefi.json and prints a table of the subjects that are done. ``--weights`` sweeps the weight of the attention loss
instead, on other subjects; ``--reduction`` says how its maps are summed up. Everything is alone, without DreamMatcher. What is
done is kept, so a stopped run goes on, and several processes share the work: ``--first 2 --subjects 1`` teaches one subject.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harness.boot import Host
from harness.library import ROOT
from toybox.evaluation import CLASS, ERROR, SCENE, SILHOUETTE, Truth, measured
from toybox.judge import colours_followed, look
from toybox.layout import facing_of
from toybox.world import caption, unseen_subject

from .method_runner import MethodRunner, SubjectCase, Taught, subject_cases
from .tables import Columns, compared, markdown, means

FOLDER = ROOT / "build" / "sefi"
FILE = FOLDER.with_suffix(".json")
#: a subject of Toybox is its colours, so the word stands where a colour would, and begins as one: "a photo of a red robot"
WORD, COARSE = "sks", "red"
STEPS, RATE, BATCH = 300, 3e-2, 4
WEIGHT, REDUCTION = 0.03, "sum over patches"
WEIGHTS = (0.0, 0.003, 0.03, 0.3, 3.0)
#: the cases begin at these numbers; make learn has 0 to 9
SUBJECTS, SWEPT = 200, 300
FACING, COLOURS = "facing", "colours of the prompt"
COLUMNS: Columns = {ERROR: ("subject error ↓", 1), SCENE: ("scene ↑", 2), FACING: ("facing ↑", 2),
                    COLOURS: ("colours that the prompt names ↑", 2), CLASS: ("class ↑", 2),
                    SILHOUETTE: ("silhouette IoU with plain ↑", 2)}
PLAIN = "plain"
#: row -> what is chosen
ROWS = {"Textual Inversion": dict(stages=1, split=False, weight=0.0),
        "Textual Inversion + attention loss": dict(stages=1, split=False, weight=WEIGHT),
        "five stages": dict(stages=5, split=False, weight=0.0), "keys and values apart": dict(stages=1, split=True, weight=0.0),
        "both": dict(stages=5, split=True, weight=0.0), "both + attention loss": dict(stages=5, split=True, weight=WEIGHT)}

#: with the attention loss, against the same without
LOSS = (("both", "both + attention loss"),)


def teach(runner: MethodRunner, case: SubjectCase, stages: int, split: bool, weight: float, steps: int,
          reduction: str = REDUCTION) -> Taught:
    """SeFi-IDE on the first of the case's pictures."""
    nodes, toybox, kind = runner.nodes, runner.runner, case.subject.kind
    image = torch.from_numpy(case.pictures[0].copy()).float()[None] / 255
    sefi = nodes["DreamMatcherSeFiTrain"]().learn(
        toybox.model, toybox.clip, toybox.vae, image, WORD, COARSE, f"a photo of a {COARSE} {kind}", 128, steps, RATE, weight, 0,
        stages, split, "table", False, BATCH, reduction)[0]
    model = nodes["DreamMatcherSeFiApply"]().apply(toybox.model, sefi)[0]

    def encode(prompt: str) -> list:
        if WORD not in prompt.split():
            return toybox.prompt(prompt)[0]
        return nodes["DreamMatcherSeFiPrompt"]().encode(toybox.clip, prompt, sefi)[0]
    return Taught(model, sefi, encode)


def untaught(runner: MethodRunner) -> Taught:
    """The plain model, whose prompts do without the word."""
    return Taught(runner.runner.model, None, lambda prompt: runner.runner.prompt(prompt)[0])


def drawn(runner: MethodRunner, case: SubjectCase, taught: Taught, word: str, folder: Path, name: str) -> dict[str, float | None]:
    """Means over the case's pictures. Each prompt asks for a scene and a side; one more names another subject's colours."""
    toybox, kind, negative = runner.runner, case.subject.kind, runner.runner.prompt("")[0]
    rows: list[dict[str, float | None]] = []
    pictures: list[np.ndarray] = []

    def draw(text: str, seed: int) -> np.ndarray:
        pictures.append(toybox.sample(taught.model, taught.encode(text.replace(f" {kind}", f"{word} {kind}", 1)), negative, seed))
        return pictures[-1]

    for place, (scene, _, seed) in enumerate(case.wanted):
        side = ("left", "right")[place % 2]
        picture = draw(caption(case.subject, facing=side, scene=scene), seed)
        plain = folder / f"{case.wanted[0][2]} {PLAIN}.png"
        other = np.array(Image.open(plain))[:, 128 * place:128 * (place + 1)] if plain.exists() else picture
        measures = measured(runner.judge, picture, Truth(case.pictures[0], case.parts[0], kind, scene),
                            (other, look(runner.judge, other)))
        rows.append({**measures, FACING: float(facing_of(look(runner.judge, picture).parts, kind) == side)})
    another = unseen_subject(70_000 + case.wanted[0][2] % 1000, kind)
    picture = draw(caption(another, colours=True, scene=case.wanted[0][0]), case.wanted[0][2] + 1)
    primary, secondary = another.colour_names[:2]
    rows.append({COLOURS: colours_followed(picture, look(runner.judge, picture).parts, kind,
                                           {"primary": primary, "secondary": secondary})})
    Image.fromarray(np.concatenate([*pictures, case.pictures[0]], 1)).save(folder / f"{case.wanted[0][2]} {name}.png")
    return means([{"name": name, **row} for row in rows], COLUMNS)[name]


def run(runner: MethodRunner, chosen: list[SubjectCase], rows: dict[str, dict], steps: int, folder: Path) -> None:
    """Teaches what is not there yet, the rows of a case in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(chosen):
        for name, choice in {PLAIN: None, **rows}.items():
            file = folder / f"{case.wanted[0][2]} {name}.json"
            if file.exists():
                continue
            taught = untaught(runner) if choice is None else teach(runner, case, steps=steps, **choice)
            means = drawn(runner, case, taught, "" if choice is None else f" {WORD}", folder, name)
            file.write_text(json.dumps(means), encoding="utf-8")
            print(f"subject {number + 1} of {len(chosen)}: {name}: {means[ERROR]}", flush=True)


def rows_of(folder: Path, rows: dict[str, dict]) -> list[dict]:
    """Figures of the subjects that have every row."""
    names = [PLAIN, *rows]
    seeds = sorted({path.name.split()[0] for path in folder.glob("*.json")})
    whole = [seed for seed in seeds if all((folder / f"{seed} {name}.json").exists() for name in names)]
    if not whole:
        raise SystemExit(f"{folder} holds no subject with every row")
    return [{"name": name, "subject": seed, **json.loads((folder / f"{seed} {name}.json").read_text(encoding="utf-8"))}
            for seed in whole for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--weights", action="store_true", help="sweep the attention loss's weight instead, on other subjects")
    parser.add_argument("--reduction", default=REDUCTION, help="of the swept loss")
    options = parser.parse_args()
    what = f"weights, {options.reduction}" if options.weights else "rows"
    rows = ROWS if not options.weights else {
        f"weight {one:g}": dict(stages=5, split=True, weight=one, reduction=options.reduction) for one in WEIGHTS}
    folder = FOLDER / f"{what}, {options.steps} steps, {options.prompts} prompts"
    with torch.inference_mode():
        runner = MethodRunner(Host(ROOT / "build" / f"host-sefi-{options.first}{options.weights}"))
        chosen = subject_cases(options.subjects, options.prompts, (SWEPT if options.weights else SUBJECTS) + options.first)
        run(runner, chosen, rows, options.steps, folder)
    subject_rows = rows_of(folder, rows)
    table, count = means(subject_rows, COLUMNS), len({row["subject"] for row in subject_rows})
    before = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    FILE.write_text(json.dumps({**before, what: {"subjects": count, **table}}, indent=1), encoding="utf-8")
    print(f"{count} subjects")
    print(markdown(table, COLUMNS))
    first, *others = rows
    print(compared(subject_rows, ERROR, [*((first, other) for other in others), *(() if options.weights else LOSS)]))


if __name__ == "__main__":
    main()
