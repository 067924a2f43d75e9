"""A training written by the graph and run from a terminal: by one process, by two, and after one of them died.

ComfyUI starts anew in every process. Two processes start twice: once to die, once to run all jobs of this file in turn.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from world import robots

from harness.library import ROOT

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

STEPS, SIDE = 3, 64
#: of the training whose processes die: enough that they do before its end
MANY = 100
#: what two roundings to half precision may differ by, as a share of the largest value of a file
HALF = 2 * torch.finfo(torch.float16).eps
MODULE = ("-m", "dreammatcher.training")
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no")
METHODS = {"DreamBooth LoRA": (True, {"rank": 2}), "Textual Inversion": (False, {}),
           "Custom Diffusion": (True, {"sizes": False, "word_rate": 2e-2})}
OPTIONS = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
               min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again")


@pytest.fixture(scope="module")
def pictures(host):
    return robots(host, 3)


@pytest.fixture(scope="module")
def write(host, pictures):
    shutil.rmtree(host.folder / "output" / "dreammatcher" / "jobs", ignore_errors=True)

    def written(name: str, method: str = "DreamBooth LoRA", options: dict | None = None, prior: bool = False, **chosen) -> Path:
        others = a_set(host, pictures.flip(2), "") if prior else None
        more = {} if options is None else {"options": host.nodes["DreamMatcherTrainingOptions"]().make(**options)[0]}
        said = host.nodes["DreamMatcherTrainingJob"]().write(
            "Toybox", a_set(host, pictures), method, name, prior_set=others,
            **{"steps": STEPS, "rate": 1e-3, "seed": 5, **more, **chosen})
        return Path(said["result"][0])
    return written


def a_set(host, pictures: torch.Tensor, identifier: str = "sks"):
    return host.nodes["DreamMatcherTrainingSet"]().make(identifier, "robot", "photo", SIDE, pictures)["result"][0]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(29500 + os.getpid() % 400),
            "PYTHONPATH": str(ROOT)}


def where() -> tuple[str, ...]:
    """The options that say which ComfyUI runs, as the node prints them."""
    import comfy
    import folder_paths

    return "--comfyui", str(Path(comfy.__path__[0]).resolve().parent), "--base", str(folder_paths.base_path)


def run(*command: str, **changes: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**environment(), **changes}, timeout=400)


@pytest.fixture
def refused(pack, monkeypatch):
    """The line with which the command ends in this process, where ComfyUI has started already."""
    def said(*arguments: object) -> str:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(sys, "argv", ["dreammatcher.training", *map(str, arguments)])
            pack.module("dreammatcher.cli.train").command()
        assert isinstance(ended.value.code, str)
        return ended.value.code
    return said


def here(pack) -> tuple:
    """This process alone, and how it loads the model that ships with the pack."""
    train = pack.module("dreammatcher.cli.train")
    return train.ALONE, train.load_toybox


def finished(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def learned(said: str) -> list[dict[str, torch.Tensor]]:
    """The tensors that each job says it saved, of a LoRA, an embedding or both."""
    jobs = re.split(r"^\d+ steps, the last loss ", said, flags=re.MULTILINE)[1:]
    files = [re.findall(r"^Saved as (.+?\.safetensors)[.,]", job, re.MULTILINE) for job in jobs]
    return [{name: tensor for path in paths for name, tensor in load_file(path).items()} for paths in files]


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether these are the same numbers, but for their rounding."""
    size = max(value.abs().max() for value in other.values())
    return one.keys() == other.keys() and all(
        (one[name].float() - value.float()).abs().max() <= HALF * size for name, value in other.items())


def test_the_command_that_the_node_prints_learns_what_the_node_learns_in_the_graph(host, pictures, fresh):
    training_set = a_set(host, pictures)
    written = host.nodes["DreamMatcherTrainingJob"]().write(
        "Toybox", training_set, "DreamBooth LoRA", "as printed", STEPS, 1e-3, 5, rank=2)
    lines = written["ui"]["text"][0].splitlines()
    command = shlex.split(next(line for line in lines if line.startswith("python ")))
    tensors, = learned(finished(run(sys.executable, *command[1:], COMFYUI_PATH="")))
    expected = host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, "LoRA", STEPS, 1e-3, 5, rank=2)[2].lora
    assert alike(tensors, expected)
    assert any(value.abs().max() > 0 for name, value in tensors.items() if name.endswith("lora_up.weight"))


@pytest.fixture(scope="module")
def died(host, write) -> tuple[Path, int]:
    """A job whose two processes were killed, and the step of the state that they left."""
    path = write("long", "Textual Inversion", {**OPTIONS, "keep_minutes": 0.0001}, steps=MANY, rate=5e-3)
    states = host.folder / "output" / "dreammatcher" / "training"
    shutil.rmtree(states, ignore_errors=True)
    process = subprocess.Popen([*LAUNCH, *MODULE, str(path), *where()], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (state := next(states.glob("*.safetensors"), None)) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        for one in (*psutil.Process(process.pid).children(recursive=True), process):  # the launcher's own have other sessions
            one.kill()
        process.wait()
    with safe_open(state, framework="pt") as file:
        return path, dict(json.loads(file.metadata()["tree"])["dict"])["step"]


@pytest.fixture(scope="module")
def by_two(write, died) -> dict[str, dict[str, torch.Tensor]]:
    """What two processes learn: by each method, and to the end of the training that died, begun anew and gone on with."""
    jobs = {method: write("two", method, prior=prior, batch=1, **chosen) for method, (prior, chosen) in METHODS.items()}
    jobs |= {"whole": write("whole", "Textual Inversion", steps=MANY, rate=5e-3), "resumed": died[0]}
    script = str(Path(__file__).with_name("jobs_in_turn.py"))
    said = finished(run(*LAUNCH, script, *map(str, jobs.values()), "--", *where()))
    return dict(zip(jobs, learned(said), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_of_one_picture_learn_as_one_process_of_two(pack, write, by_two, method):
    prior, chosen = METHODS[method]
    job = pack.module("dreammatcher.training.job").read(write("one", method, prior=prior, batch=2, **chosen))
    _, said = pack.module("dreammatcher.host.training.job").run_job(job, *here(pack))
    alone, = learned(said)
    assert alike(by_two[method], alone)


def test_a_job_whose_process_dies_goes_on_and_ends_the_same(died, by_two):
    _, step = died
    assert 0 < step < MANY
    assert by_two["resumed"].keys() == by_two["whole"].keys()
    assert all(torch.equal(by_two["resumed"][name], value) for name, value in by_two["whole"].items())


def test_how_often_a_state_is_kept_travels_with_the_job_and_older_jobs_are_read(pack, write):
    read = pack.module("dreammatcher.training.job").read
    path = write("kept", options={**OPTIONS, "keep_minutes": 2.5})
    assert read(path).options.running.keep_minutes == 2.5
    said = json.loads(path.read_text())
    del said["keep_minutes"]
    path.write_text(json.dumps(said))
    assert read(path).options.running.keep_minutes == 10
    path.write_text(json.dumps({**said, "keep_every": 100}))
    assert read(path).options.running.keep_minutes == 10


def test_a_job_may_begin_from_what_was_learned_before_whoever_made_it(host, pack, write, pictures, fresh, refused):
    read = pack.module("dreammatcher.training.job").read
    before = host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, a_set(host, pictures), "LoRA", 2, 1e-2, 1, rank=2)[2]
    job = read(write("begins", begin_from=before, rank=4, steps=1, rate=1e-12))
    assert job.begin.about == before.about and alike(job.begin.lora, before.lora)
    _, said = pack.module("dreammatcher.host.training.job").run_job(job, *here(pack))
    tensors, = learned(said)
    for name in before.lora:
        if name.endswith("lora_up.weight"):
            stem = name.removesuffix("lora_up.weight")
            wanted, found = (one[name].float().flatten(1) @ one[f"{stem}lora_down.weight"].float().flatten(1) * (
                one[f"{stem}alpha"] / one[name].shape[1]) for one in (before.lora, tensors))
            assert (found - wanted).norm() <= 4 * HALF * wanted.norm(), name
    assert write("begins", begin_from=before, steps=9).parent.name == "begins_2"
    path = write("does not fit", "Textual Inversion", begin_from=before)
    assert "begin_from: it holds weights of the UNet, which this node does not teach" in refused(path, *where())
    path.with_name("begin.safetensors").unlink()
    assert "cannot be read as a job" in refused(path, *where())


def test_the_same_job_is_written_to_the_same_folder_and_another_one_beside_it(write):
    first = write("same")
    assert write("same") == first and write("same", steps=9).parent.name == "same_2"
    assert "accelerate launch" in str(first) or first.name == "job.json"


def test_a_job_that_cannot_be_read_names_the_file_and_what_to_do(write, refused):
    path = write("damaged")
    whole = path.read_text()
    for broken, message in ((whole[:-20], "cannot be read as a job"), ("[]", "no job of the format"),
                            (whole.replace('"rate"', '"speed"'), "this version"),
                            (whole.replace("DreamBooth LoRA", "Magic"), "'Magic' is unknown")):
        path.write_text(broken)
        assert message in refused(path, *where())


def test_a_command_that_is_refused_ends_with_one_line_and_no_traceback(write):
    path = write("damaged")
    path.write_text("[]")
    done = run(sys.executable, *MODULE, str(path))
    assert done.returncode == 1 and "no job of the format" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_what_the_training_would_refuse_is_not_written(host, write):
    for chosen, said in (({"masked": True}, "masked: the training set has no masks"), ({"rate": 2.0}, "rate: 2.0 is outside"),
                         ({"name": "../away"}, "is no name for a file")):
        with pytest.raises(ValueError, match=said):
            write(**{"name": "refused", **chosen})
    assert not (host.folder / "output" / "dreammatcher" / "jobs" / "refused").exists()


def test_a_job_on_another_machine_says_which_checkpoint_is_missing(write, refused):
    path = write("elsewhere")
    path.write_text(path.read_text().replace('"Toybox"', '"/gone/model.safetensors"'))
    assert "'/gone/model.safetensors' is not on this machine; give --checkpoint" in refused(path, *where())


def evil_host(folder: Path) -> Path:
    """A folder that looks like ComfyUI and whose code leaves a trace when it runs."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("__init__", "sd", "options", "cli_args"):
        (folder / "comfy" / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).write_text('')")
    return folder


def test_no_code_is_taken_from_a_path_in_the_job_and_the_environment_may_name_the_host(write, refused, tmp_path, monkeypatch):
    path, evil = write("evil"), evil_host(tmp_path / "evil")
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "host": {"code": str(evil), "base": str(evil)}}))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert "comfyui: give the folder of this machine's ComfyUI with --comfyui" in refused(path)
    monkeypatch.setenv("COMFYUI_PATH", "/nowhere")
    assert "is no ComfyUI, it has no comfy/sd.py" in refused(path)
    _, code, *base = where()
    tensors, = learned(finished(run(sys.executable, *MODULE, str(path), *base, COMFYUI_PATH=code)))
    assert tensors and not (evil / "ran").exists()


class Evil:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_checkpoint_that_may_hold_code_is_only_read_from_the_host_s_own_folders_or_when_it_is_given(write, refused, tmp_path):
    import pickle

    evil = tmp_path / "evil.ckpt"
    evil.write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "ran")}))
    path = write("pickled")
    path.write_text(path.read_text().replace('"Toybox"', json.dumps(str(evil))))
    assert "may hold code and is in no folder of checkpoints of this ComfyUI" in refused(path, *where())
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_in_a_folder_of_the_host_s_is_read_wherever_it_lies_there(host, pack, model_folder, monkeypatch):
    import comfy.sd

    read = []
    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", lambda path, **_: read.append(path) or (None, None, None, None))
    nested = model_folder("checkpoints") / "sd15" / "old.ckpt"
    nested.parent.mkdir(exist_ok=True)
    nested.write_bytes(b"")
    pack.module("dreammatcher.host.training.job").load_checkpoint(str(nested))
    assert read == [str(nested)]
    nested.unlink()
