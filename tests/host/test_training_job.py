"""A training written by the graph and run from a terminal: by one process, by two, and after one of them died."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from world import robots

from harness.library import ROOT

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

STEPS = 3
#: what two roundings to half precision may differ by, as a share of the largest value of a file
HALF = 2 * torch.finfo(torch.float16).eps
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no")


@pytest.fixture(scope="module")
def pictures(host):
    return robots(host, 3)


@pytest.fixture
def write(host, pictures):
    shutil.rmtree(host.folder / "output" / "dreammatcher" / "jobs", ignore_errors=True)

    def written(name: str, method: str = "DreamBooth LoRA", options: dict | None = None, prior: bool = False, **chosen) -> Path:
        make = host.nodes["DreamMatcherTrainingSet"]().make
        training_set = make("sks", "robot", "photo", 128, pictures)["result"][0]
        others = make("", "robot", "photo", 128, pictures.flip(2))["result"][0] if prior else None
        more = {} if options is None else {"options": host.nodes["DreamMatcherTrainingOptions"]().make(**options)[0]}
        said = host.nodes["DreamMatcherTrainingJob"]().write(
            "Toybox", training_set, method, name, **{"steps": STEPS, "rate": 1e-3, "seed": 5, **chosen}, prior_set=others, **more)
        return Path(said["result"][0])
    return written


def environment(host) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(29500 + os.getpid() % 400),
            "PYTHONPATH": str(ROOT)}


def where() -> tuple[str, ...]:
    """The options that say which ComfyUI runs, as the node prints them."""
    import comfy
    import folder_paths

    return "--comfyui", str(Path(comfy.__path__[0]).resolve().parent), "--base", str(folder_paths.base_path)


def run(host, path: Path, launcher: tuple[str, ...] = (sys.executable,), **changes: str) -> subprocess.CompletedProcess:
    return subprocess.run([*launcher, "-m", "dreammatcher.training", str(path), *where()], cwd=ROOT, capture_output=True,
                          text=True, env={**environment(host), **changes}, timeout=400)


def learned(done: subprocess.CompletedProcess) -> dict[str, torch.Tensor]:
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("Saved as "))
    return load_file(line.removeprefix("Saved as ").partition(". ")[0] if ".safetensors. " not in line
                     else line.removeprefix("Saved as ").partition(".safetensors. ")[0] + ".safetensors")


def test_a_job_run_by_itself_learns_what_the_node_learns_in_the_graph(host, write, pictures, fresh):
    path = write("alone", rank=2)
    tensors = learned(run(host, path))
    training_set = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 128, pictures)["result"][0]
    expected = host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, "LoRA", STEPS, 1e-3, 5, rank=2)[2].lora
    assert tensors.keys() == expected.keys()
    size = max(value.abs().max() for value in expected.values())
    assert all((tensors[name].float() - value).abs().max() <= HALF * size for name, value in expected.items())
    assert any(value.abs().max() > 0 for name, value in tensors.items() if name.endswith("lora_up.weight"))


@pytest.mark.parametrize(("method", "prior", "chosen"), [
    ("DreamBooth LoRA", True, {"rank": 2}), ("Textual Inversion", False, {}),
    ("Custom Diffusion", True, {"sizes": False, "word_rate": 2e-2})])
def test_two_processes_of_one_picture_learn_as_one_process_of_two(host, write, method, prior, chosen):
    together = learned(run(host, write("two", method, prior=prior, batch=1, **chosen), LAUNCH))
    alone = learned(run(host, write("one", method, prior=prior, batch=2, **chosen)))
    assert together.keys() == alone.keys()
    size = max(value.abs().max() for value in alone.values())
    for name, value in alone.items():
        assert (together[name].float() - value.float()).abs().max() <= HALF * size, name


def test_a_job_whose_process_dies_goes_on_and_ends_the_same(host, write):
    options = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
                   min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again",
                   keep_minutes=0.001)
    path = write("long", "Textual Inversion", options, steps=400, rate=5e-3)
    states = host.folder / "output" / "dreammatcher" / "training"
    known = set(states.glob("*.safetensors"))
    process = subprocess.Popen([*LAUNCH, "-m", "dreammatcher.training", str(path), *where()], cwd=ROOT, env=environment(host),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (state := set(states.glob("*.safetensors")) - known) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        for one in (*psutil.Process(process.pid).children(recursive=True), process):  # the launcher's own have other sessions
            one.kill()
        process.wait()
    from safetensors import safe_open

    with safe_open(state.pop(), framework="pt") as file:
        step = dict(json.loads(file.metadata()["tree"])["dict"])["step"]
    assert 0 < step < 400
    resumed = run(host, path, LAUNCH)
    again = run(host, write("whole", "Textual Inversion", steps=400, rate=5e-3), LAUNCH)
    for name, value in learned(again).items():
        assert torch.equal(learned(resumed)[name], value)


def test_how_often_a_state_is_kept_travels_with_the_job_and_older_jobs_are_read(pack, write):
    options = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
                   min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again")
    read = pack.module("dreammatcher.training.job").read
    path = write("kept", options={**options, "keep_minutes": 2.5})
    assert read(path).options.running.keep_minutes == 2.5
    said = json.loads(path.read_text())
    del said["keep_minutes"]
    path.write_text(json.dumps(said))
    assert read(path).options.running.keep_minutes == 10
    path.write_text(json.dumps({**said, "keep_every": 100}))
    assert read(path).options.running.keep_minutes == 10


def test_the_same_job_is_written_to_the_same_folder_and_another_one_beside_it(write):
    first = write("kept")
    assert write("kept") == first and write("kept", steps=9).parent.name == "kept_2"
    assert "accelerate launch" in str(first) or first.name == "job.json"


def test_a_job_that_cannot_be_read_names_the_file_and_what_to_do(host, write):
    path = write("damaged")
    whole = path.read_text()
    for broken, message in ((whole[:-20], "cannot be read as a job"), ("[]", "no job of the format"),
                            (whole.replace('"rate"', '"speed"'), "this version"),
                            (whole.replace("DreamBooth LoRA", "Magic"), "'Magic' is unknown")):
        path.write_text(broken)
        done = run(host, path)
        assert done.returncode and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_what_the_training_would_refuse_is_not_written(host, write):
    for chosen, said in (({"masked": True}, "masked: the training set has no masks"), ({"rate": 2.0}, "rate: 2.0 is outside"),
                         ({"name": "../away"}, "is no name for a file")):
        with pytest.raises(ValueError, match=said):
            write(**{"name": "refused", **chosen})
    assert not (host.folder / "output" / "dreammatcher" / "jobs" / "refused").exists()


def test_a_job_on_another_machine_says_which_checkpoint_is_missing(host, write):
    path = write("elsewhere")
    path.write_text(path.read_text().replace('"Toybox"', '"/gone/model.safetensors"'))
    done = run(host, path)
    assert done.returncode and "'/gone/model.safetensors' is not on this machine; give --checkpoint" in done.stderr


def evil_host(folder: Path) -> Path:
    """A folder that looks like ComfyUI and whose code leaves a trace when it runs."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("__init__", "sd", "options", "cli_args"):
        (folder / "comfy" / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).write_text('')")
    return folder


def test_no_code_is_taken_from_a_path_in_the_job(host, write, tmp_path):
    path, evil = write("evil"), evil_host(tmp_path / "evil")
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "host": {"code": str(evil), "base": str(evil)}}))
    alone = {name: value for name, value in environment(host).items() if name != "COMFYUI_PATH"}
    done = subprocess.run([sys.executable, "-m", "dreammatcher.training", str(path)], cwd=ROOT, capture_output=True, text=True,
                          env=alone, timeout=400)
    assert done.returncode and "comfyui: give the folder of this machine's ComfyUI with --comfyui" in done.stderr
    assert "Traceback" not in done.stderr and not (evil / "ran").exists()
    trained = run(host, path)
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert not (evil / "ran").exists()
    learned(trained)


def test_the_host_may_be_named_by_the_environment(host, write):
    _, code, *base = where()
    command = [sys.executable, "-m", "dreammatcher.training", str(write("by variable", steps=1)), *base]

    def with_variable(value: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400,
                              env={**environment(host), "COMFYUI_PATH": value})

    done, wrong = with_variable(code), with_variable("/nowhere")
    assert done.returncode == 0, done.stderr[-2000:]
    assert wrong.returncode and "is no ComfyUI, it has no comfy/sd.py" in wrong.stderr


def test_the_node_prints_a_command_that_runs_as_it_is(host, pictures):
    import shlex

    make = host.nodes["DreamMatcherTrainingSet"]().make
    training_set = make("sks", "robot", "photo", 128, pictures)["result"][0]
    done = host.nodes["DreamMatcherTrainingJob"]().write("Toybox", training_set, "DreamBooth LoRA", "as printed", 1, 1e-3, 0)
    lines = done["ui"]["text"][0].splitlines()
    command = shlex.split(next(line for line in lines if line.startswith("python ")))
    alone = {name: value for name, value in environment(host).items() if name != "COMFYUI_PATH"}
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, env=alone, timeout=400)
    assert done.returncode == 0 and "Saved as" in done.stdout, done.stderr[-2000:]


class Evil:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_checkpoint_that_may_hold_code_is_only_read_from_the_host_s_own_folders_or_when_it_is_given(host, write, tmp_path):
    import pickle

    evil = tmp_path / "evil.ckpt"
    evil.write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "ran")}))
    path = write("pickled")
    path.write_text(path.read_text().replace('"Toybox"', json.dumps(str(evil))))
    done = run(host, path)
    assert done.returncode and "may hold code and is in no folder of checkpoints of this ComfyUI" in done.stderr
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
