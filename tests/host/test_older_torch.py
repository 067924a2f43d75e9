"""The pack on an installation of 2024, whose torch lacks names of today."""

from __future__ import annotations

import os
import subprocess
import sys

from harness.library import ROOT

#: not there in torch 2.3
WITHOUT = """
import sys, torch
removed = [(torch, "OutOfMemoryError"), (torch, "accelerator"), (torch.serialization, "safe_globals"),
           (torch.compiler, "set_stance"), (torch.optim, "Adafactor")]
"""
BOOT = WITHOUT + """
from pathlib import Path
from harness.boot import Host
folder = Path(sys.argv[1])
host = Host(folder)
for owner, name in removed:
    delattr(owner, name)
pack = host.pack()
import importlib, pkgutil
package = pack.module("dreammatcher")
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
devices, gradients = pack.module("dreammatcher.devices"), pack.module("dreammatcher.host.model.gradients")
assert devices.OutOfMemory is torch.cuda.OutOfMemoryError and devices.accelerator() is None
with torch.inference_mode():
    model, clip, vae = host.nodes["ToyboxLoader"]().load()
    for error, wanted in ((torch.cuda.OutOfMemoryError("no memory"), torch.cuda.OutOfMemoryError),
                          (RuntimeError("no gradient"), gradients.NoGradient)):
        def fails(leaf, ready, error=error):
            raise error
        try:
            gradients.with_gradients(model.model, torch.zeros(1, 4, 16, 16), (), fails)
        except wanted:
            continue
        raise SystemExit(f"{error!r} was not raised as {wanted}")
    vico = pack.module("dreammatcher.host.vico.files")
    torch.save({"a": torch.ones(1)}, folder / "a.pt")
    assert vico.weights_only(folder / "a.pt")["a"] == 1
print("all is well")
"""


def run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_part_runs_in_a_host_and_a_full_device_is_told_from_other_errors(tmp_path):
    assert "all is well" in run(BOOT, str(tmp_path))


def test_both_commands_start():
    script = WITHOUT + """
for owner, name in removed:
    delattr(owner, name)
import runpy
sys.argv = ["evaluation", "--help"]
runpy.run_module(f"dreammatcher.{sys.argv[0]}", run_name="__main__")
"""
    for command in ("evaluation", "training"):
        assert "usage:" in run(script.replace('"evaluation"', f'"{command}"'))
