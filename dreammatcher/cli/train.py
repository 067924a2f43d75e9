"""``python -m dreammatcher.training job.json``: a training that Training Job (DreamMatcher) wrote, without a graph.

``accelerate launch -m dreammatcher.training job.json`` runs it on as many processes and machines as accelerate is told. No code
and no folder is taken from the job: ``--comfyui`` or COMFYUI_PATH says which ComfyUI runs, ``--base`` where its models are.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..devices import accelerator
from ..training.job import TOYBOX, read
from ..training.parallel import ALONE, Share


def share_of_this_process() -> Share:
    """This process's share of the work, as accelerate has set it up.

    Raises RuntimeError when there are several processes and no accelerate.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise RuntimeError("several processes need the package accelerate: pip install accelerate") from error
    processes = Accelerator(cpu=not torch.cuda.is_available())  # also picks the card of this process
    return Share(processes.process_index, processes.num_processes, lambda value: processes.reduce(value, "mean"))


def use_host(code: Path, base: Path) -> None:
    """Makes ComfyUI importable: its folder, and the folder of its models, input and output. Reads no command line."""
    if not (code / "comfy" / "sd.py").is_file():
        raise ValueError(f"--comfyui: {code} is no ComfyUI, it has no comfy/sd.py")
    sys.path.insert(0, str(code))
    flags = [] if accelerator() else ["--cpu"]
    if (code / "comfy" / "cmd" / "main_pre.py").is_file():  # the packaged host
        sys.argv = ["comfyui", "--cwd", str(base), *flags]
        importlib.import_module("comfy.cmd.main_pre")
        sys.modules["folder_paths"] = importlib.import_module("comfy.cmd.folder_paths")  # as packs know it
        return
    sys.argv = ["main.py", *([] if base == code else ["--base-directory", str(base)]), *flags]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("comfy.cli_args")


def load_toybox(_: str) -> tuple:
    """The model that ships with the pack."""
    from toybox import host

    folder = Path(__file__).resolve().parents[2] / "toybox"
    return host.load(folder / "model.safetensors", folder / "tokenizer", host.embedding_folders())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dreammatcher.training", description=__doc__)
    parser.add_argument("job", type=Path, help="job.json, beside its pictures")
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH") or None,
                        help="folder of ComfyUI, whose code runs; COMFYUI_PATH without it")
    parser.add_argument("--base", type=Path, help="folder of its models, input and output; --comfyui's own without it")
    parser.add_argument("--checkpoint", help="the checkpoint, where it has another path on this machine")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    job = read(options.job)
    job = replace(job, checkpoint=options.checkpoint or job.checkpoint)
    if options.comfyui is None:  # never from the file: whoever wrote it would choose what code runs here
        raise ValueError("comfyui: give the folder of this machine's ComfyUI with --comfyui FOLDER or in COMFYUI_PATH; the job "
                         f"was written by the one in {job.host.get('code')}")
    share = share_of_this_process()
    use_host(Path(options.comfyui).resolve(), (options.base or Path(options.comfyui)).resolve())
    from ..host.training.job import load_checkpoint, run_job  # now that there is a host

    with torch.inference_mode():
        load = load_toybox if job.checkpoint == TOYBOX else partial(load_checkpoint, given=options.checkpoint is not None)
        _, said = run_job(job, share, load)
    if share.first:
        sys.stdout.write(said + "\n")


def command() -> None:
    """Runs the command; what is wrong with its input is said in one line, and the process ends with 1."""
    try:
        main()
    except (ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"dreammatcher.training: {error}")


if __name__ == "__main__":
    command()
