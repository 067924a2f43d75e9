"""``python -m dreammatcher.evaluation run workflow.json --protocol dreambooth --data DIR --out DIR --servers URL``

makes every picture of a protocol by any workflow saved in API format, and scores them. ``compare OUT OUT`` sets runs side by
side.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ..evaluation import plan, protocols, scoring
from ..evaluation.encoders import CLIP_B32, DINO, DINO_2, NO_LPIPS, missing
from ..evaluation.metrics import DREAMBOOTH, VICO
from ..evaluation.protocols import Case, Protocol
from ..evaluation.report import write
from ..evaluation.runner import Arm, Folder, run
from ..evaluation.scoring import EncoderJudge, Judge
from ..evaluation.server import serving
from ..evaluation.statistics import summary
from ..evaluation.workflow import read_workflow


@dataclass(frozen=True)
class Choice:
    """The encoders and the measure that photos are scored with."""

    encoders: Path | None
    lpips: bool


@dataclass(frozen=True)
class Benchmark:
    """The source of a protocol, and the judge of its pictures."""

    read: Callable[[Path], Protocol]  # from the folder of its files
    judge: Callable[[Choice], Judge]
    drawn: bool = False  # its references are drawn into the run's folder

    def protocol_in(self, data: Path, out: Path) -> Protocol:
        return self.read(out / "references" if self.drawn else data)


@dataclass(frozen=True)
class Run:
    """Pictures of a protocol that are in a folder, and what judges them."""

    folder: Folder
    cases: list[Case]
    judge: Judge


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dreammatcher.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("run", help="make the pictures of a protocol, and score them")
    making.add_argument("workflow", type=Path, help="saved with Workflow > Export (API)")
    making.add_argument("--protocol", required=True, help="dreambooth, vico, toybox, or a JSON file of your own")
    making.add_argument("--data", type=Path, default=Path("."), help="folder of the protocol's published files")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--identifier", default="sks", help="the word for the subject, as embedding:NAME")
    making.add_argument("--set", action="append", default=[], metavar="NAME=NODE.widget",
                        help="where reference, prompt or seed is")
    making.add_argument("--output", help="number of the node whose pictures count")
    making.add_argument("--servers", nargs="+", default=[], help="running ComfyUI servers, as http://127.0.0.1:8188")
    making.add_argument("--comfyui", type=Path, help="ComfyUI to start for each process, where no server is given")
    making.add_argument("--shard", default="", help="I/N: the I-th of N parts, from 0; accelerate launch splits by itself")
    making.add_argument("--limit", type=int, default=0, help="only the first so many cases")
    making.add_argument("--prior", type=int, default=0, metavar="N",
                        help="also N pictures of each subject's class alone, for PRES and DIV")
    comparing = commands.add_parser("compare", help="runs of one protocol side by side")
    comparing.add_argument("runs", nargs="+", type=Path)
    comparing.add_argument("--out", type=Path)
    for each in (making, comparing):
        each.add_argument("--encoders", type=Path, help=f"folder that holds {DINO} and {CLIP_B32}, and {DINO_2} if you want it")
        each.add_argument("--lpips", action="store_true", help="DIV by LPIPS instead of DINO; needs the package lpips")
    options = parser.parse_args()
    if options.command == "run":
        make(options)
    else:
        choice = Choice(options.encoders, options.lpips)
        compare([reopened(folder, choice) for folder in options.runs], options.out or options.runs[0])


def protocol_of_toybox(folder: Path) -> Protocol:
    from toybox.evaluation import protocol

    return protocol(folder)


def judge_of_toybox(_: Choice) -> Judge:
    from toybox.evaluation import judge_run

    return judge_run


def judge_of_photos(preparation: str, choice: Choice) -> Judge:
    """Raises ValueError, before any picture is made, for encoders that are not where they should be: all of them at once."""
    said = [missing({name: choice.encoders for name in (DINO, CLIP_B32)})] if choice.encoders is not None else []
    if choice.lpips and find_spec("lpips") is None:
        said.append(NO_LPIPS)
    if any(said):
        raise ValueError("\n".join(filter(None, said)))
    return EncoderJudge(choice.encoders, preparation, choice.lpips)


BENCHMARKS = {
    "dreambooth": Benchmark(protocols.dreambooth, partial(judge_of_photos, DREAMBOOTH)),
    "vico": Benchmark(protocols.vico, partial(judge_of_photos, VICO)),
    "toybox": Benchmark(protocol_of_toybox, judge_of_toybox, drawn=True),
}


def benchmark(name: str) -> Benchmark:
    """The one of this name, or one's own by the path of its JSON file."""
    return BENCHMARKS.get(name) or Benchmark(partial(protocols.protocol_file, Path(name)), partial(judge_of_photos, DREAMBOOTH))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def make(options: argparse.Namespace) -> None:
    """Makes this process's cases. The last of the processes to find all of them finished writes the report."""
    part, chosen, folder = part_of(options), benchmark(options.protocol), Folder(options.out)
    protocol = chosen.protocol_in(options.data, options.out)
    wrong = [one for one in options.set if "=" not in one]
    if wrong:
        raise ValueError(f"set: {wrong[0]!r} is not as prompt=6.text")
    if options.prior < 0:
        raise ValueError(f"prior: {options.prior} is not a number of pictures")
    judge = chosen.judge(Choice(options.encoders, options.lpips))
    if isinstance(judge, EncoderJudge) and judge.encoders is None:
        say("encoders: none are given, so pictures are made and kept, and not scored")
    arm = Arm(read_workflow(options.workflow, dict(one.split("=", 1) for one in options.set), options.output), options.identifier)
    cases = protocols.cases_of(protocol, options.prior, options.limit)
    assigned = protocols.shard(cases, *part)
    said = {"protocol": options.protocol, "data": str(options.data.resolve()), "limit": options.limit, "prior": options.prior,
            "workflow": arm.workflow.graph, "identifier": options.identifier}
    changed = plan.begin(options.out, said, arm, protocol, cases)
    with serving(options.servers, options.comfyui) as servers:
        failed = run(assigned, arm, servers, folder, say, changed)
    for key, error in failed:
        say(f"{key}: {error}")
    left = sum(not folder.done(case) for case in cases)
    if left:
        say(f"{len(cases) - left} of {len(cases)} cases are done; the same command makes the others")
        sys.exit(1 if failed else 0)
    compare([Run(folder, cases, judge)], options.out)


def reopened(folder: Path, choice: Choice) -> Run:
    """A run by its plan. Raises ValueError for a folder that is none."""
    said = plan.read_plan(folder)
    chosen = benchmark(said["protocol"])
    cases = protocols.cases_of(chosen.protocol_in(Path(said["data"]), folder), said.get("prior", 0), said["limit"])
    return Run(Folder(folder), cases, chosen.judge(choice))


def compare(runs: list[Run], out: Path) -> None:
    """Scores runs of one protocol, the others against the first, and writes the reports of them. Raises ValueError for a folder
    that is given twice."""
    names = names_of([one.folder.root for one in runs])
    arms = [scoring.measured(name, one.cases, one.folder, runs[0].folder, one.judge) for name, one in zip(names, runs)]
    told = summary(arms)
    sys.stdout.write("\n".join([told.markdown(), *map(str, write(told, out))]) + "\n")


def part_of(options: argparse.Namespace) -> tuple[int, int]:
    """This process's part of the cases: of --shard, then of accelerate's processes."""
    if options.shard and not re.fullmatch(r"\d+/[1-9]\d*", options.shard):
        raise ValueError(f"shard: {options.shard!r} is not as 0/4, a number from 0 and how many there are")
    number, count = map(int, options.shard.split("/")) if options.shard else (0, 1)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return number * processes + rank, count * processes


def names_of(runs: list[Path]) -> list[str]:
    """Names of runs: their folder, and as many of the folders around it as tell them apart.

    Raises ValueError for a folder that is given twice.
    """
    whole = [run.resolve() for run in runs]
    twice = next((run for place, run in enumerate(whole) if run in whole[:place]), None)
    if twice is not None:
        raise ValueError(f"runs: {twice} is given twice; give each run once")

    def name(run: Path) -> str:
        others = [other for other in whole if other != run]
        count = next(count for count in range(1, len(run.parts) + 1)
                     if all(other.parts[-count:] != run.parts[-count:] for other in others))
        return Path(*run.parts[-count:]).as_posix()

    return [name(run) for run in whole]


def command() -> None:
    """Runs the command; what is wrong with its input is said in one line, and the process ends with 1."""
    try:
        main()
    except ValueError as error:
        sys.exit(f"dreammatcher.evaluation: {error}")


if __name__ == "__main__":
    command()
