"""``python -m dreammatcher.evaluation run workflow.json --protocol dreambooth --data DIR --out DIR --servers URL``

makes every picture of a protocol by any workflow saved in API format, and scores them. ``compare OUT OUT`` sets runs side by
side.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..devices import accelerator, device_of_process
from .encoders import CLIP_B32, DINO, DINO_2, load_encoder, load_lpips
from .metrics import DREAMBOOTH, VICO
from .plan import another_plan, check_plan, identity_of, read_plan, write_plan
from .protocols import Case, Protocol, read_protocol, shard, with_prior
from .report import Measured, markdown, table, write
from .runner import Arm, Folder, run
from .scoring import Scorers, Scores, score
from .server import Server
from .workflow import read_workflow

TOYBOX = "toybox"


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
        compare(options.runs, Choice(options.encoders, options.lpips), options.out or options.runs[0])


@dataclass(frozen=True)
class Choice:
    """What scores are made with."""

    encoders: Path | None
    lpips: bool


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def part_of(options: argparse.Namespace) -> tuple[int, int]:
    """This process's part of the cases: of --shard, then of accelerate's processes."""
    if options.shard and not re.fullmatch(r"\d+/[1-9]\d*", options.shard):
        raise ValueError(f"shard: {options.shard!r} is not as 0/4, a number from 0 and how many there are")
    number, count = map(int, options.shard.split("/")) if options.shard else (0, 1)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return number * processes + rank, count * processes


def cases_of(plan: dict, protocol: Protocol) -> list[Case]:
    """Every case of a run."""
    if plan.get("prior"):
        protocol = with_prior(protocol, plan["prior"])
    return list(protocol.cases())[:plan["limit"] or None]


def protocol_of(name: str, data: Path, out: Path) -> Protocol:
    if name == TOYBOX:
        from toybox.evaluation import protocol

        return protocol(out / "references")
    return read_protocol(name, data)


def make(options: argparse.Namespace) -> None:
    """Makes this process's cases. The last of the processes to find all of them finished writes the report."""
    wrong = [one for one in options.set if "=" not in one]
    if wrong:
        raise ValueError(f"set: {wrong[0]!r} is not as prompt=6.text")
    given = dict(one.split("=", 1) for one in options.set)
    workflow = read_workflow(options.workflow, given, options.output)
    if options.prior < 0:
        raise ValueError(f"prior: {options.prior} is not a number of pictures")
    plan = {"protocol": options.protocol, "data": str(options.data.resolve()), "limit": options.limit, "prior": options.prior,
            "workflow": workflow.graph}
    protocol, arm = protocol_of(options.protocol, options.data, options.out), Arm(workflow, options.identifier)
    folder = Folder(options.out)
    cases, identity = cases_of(plan, protocol), identity_of(arm, protocol)
    check_plan(options.out, identity, arm, cases)
    write_plan(options.out, {**plan, "identifier": options.identifier, "pictures": identity})
    own = shard(cases, *part_of(options))
    with servers_of(options) as servers:
        failed = run(own, arm, servers, folder, say, partial(another_plan, options.out, identity))
    for key, error in failed:
        say(f"{key}: {error}")
    left = sum(not folder.done(case) for case in cases)
    if left:
        say(f"{len(cases) - left} of {len(cases)} cases are done; the same command makes the others")
        sys.exit(1 if failed else 0)
    compare([options.out], Choice(options.encoders, options.lpips), options.out)


@contextlib.contextmanager
def servers_of(options: argparse.Namespace) -> Iterator[list[Server]]:
    """The servers that are given, or one that runs as long as this process. Raises ValueError for one that does not answer."""
    if options.servers:
        servers = [Server(url) for url in options.servers]
        silent = [server.url for server in servers if not server.alive()]
        if silent:
            raise ValueError(f"servers: {silent[0]} does not answer; start ComfyUI there, or take it from the list")
        yield servers
        return
    if options.comfyui is None:
        raise ValueError("servers: none is given; name running ones with --servers, or a ComfyUI to start with --comfyui")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **(device_of_process(os.environ) if torch.cuda.is_available() else {})}
    flags = [] if accelerator() else ["--cpu"]
    process = subprocess.Popen([sys.executable, "main.py", "--port", str(port), *flags], cwd=options.comfyui, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(f"http://127.0.0.1:{port}")
    try:
        while not server.alive():
            if process.poll() is not None:
                raise ValueError(f"comfyui: {options.comfyui} does not start; start it by hand and give --servers")
            time.sleep(0.5)
        yield [server]
    finally:
        process.terminate()
        process.wait()


def compare(runs: list[Path], choice: Choice, out: Path) -> None:
    """Scores runs of one protocol and writes the reports of them. Raises ValueError for a folder that is no run, and for one that
    is given twice."""
    arms = [measured(run, name, choice, runs[0]) for run, name in zip(runs, names_of(runs))]
    say(markdown(table(arms)))
    for path in write(arms, out):
        say(str(path))


def names_of(runs: list[Path]) -> list[str]:
    """What runs are called: by their folder, and by as many of the folders around it as tell them apart.

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


def measured(folder: Path, name: str, choice: Choice, first: Path) -> Measured:
    """A run's scores. On Toybox those of the layout are against the ``first`` run, which is to be the plain model's."""
    plan = read_plan(folder)
    cases = cases_of(plan, protocol_of(plan["protocol"], Path(plan["data"]), folder))
    scores, named = scored(plan["protocol"], cases, Folder(folder), choice, Folder(first))
    done = [case for case in cases if case.key in scores]
    return Measured(name, scores, {case.key: case.subject.name for case in done},
                    {case.key: Folder(folder).picture(case) for case in done}, named)


def scored(protocol: str, cases: list[Case], folder: Folder, choice: Choice, first: Folder) -> tuple[Scores, dict[str, str]]:
    """Scores of the finished cases, and what each is of: Toybox's judge knows the truth, photos need encoders."""
    if protocol == TOYBOX:
        from toybox.evaluation import ERROR, judged

        done, plain = ({case.key: own.picture(case) for case in cases if own.done(case)} for own in (folder, first))
        return judged(done, None if first == folder else plain), {ERROR: "Toybox's judge"}
    if choice.encoders is None:
        raise ValueError("encoders: none are given, so nothing is scored; give --encoders FOLDER. The pictures are kept")
    device = accelerator() or "cpu"
    how = VICO if protocol == VICO else DREAMBOOTH
    second = load_encoder(choice.encoders, DINO_2, how, device) if (choice.encoders / DINO_2).is_dir() else None
    by = Scorers(load_encoder(choice.encoders, DINO, how, device), load_encoder(choice.encoders, CLIP_B32, device=device), second,
                 load_lpips(device) if choice.lpips else None)
    scores = score(cases, folder, by)
    measures = {metric for row in scores.values() for metric in row}
    return scores, {metric: name for metric, name in by.names().items() if metric in measures}


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"dreammatcher.evaluation: {error}")
