"""A training whose latents are in files learns bit for bit what it learns from main memory, and leaves no file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.mark.parametrize("method", ["DreamBooth", "CustomDiffusion"])
def test_latents_on_disk_change_nothing_of_what_is_learned(host, pack, fresh, small_set, monkeypatch, method):
    run, shelf = (pack.module(f"dreammatcher.{name}") for name in ("host.training.run", "training.shelf"))
    monkeypatch.setattr(run, "check_memory", lambda recipe, chosen, *_, **__: chosen)
    folder = Path(host.folder_paths.get_temp_directory()) / "dreammatcher"
    prior = host.nodes["DreamMatcherTrainingSet"]().make("", "robot", "photo", 64, torch.rand(
        3, 64, 64, 3, generator=torch.Generator().manual_seed(1)))["result"][0]
    more = {"DreamBooth": dict(kind="LoRA"), "CustomDiffusion": dict(initial_word="robot", sizes=True)}[method]

    def learned():
        node = host.nodes[f"DreamMatcher{method}"]()
        done = node.learn(*fresh, small_set, steps=3, rate=1e-3, seed=1, batch=2, prior_set=prior, **more)[2]
        return {**done.lora, **done.embeddings}

    there, train = [], run.train
    monkeypatch.setattr(run, "train", lambda *given, **options: there.append(len(list(folder.glob("*.latents")))) or train(
        *given, **options))
    plain = learned()
    monkeypatch.setattr(run, "Shelf", lambda folder, tell: shelf.Shelf(folder, room=0, tell=tell))
    from_disk = learned()
    assert there[0] == 0 and there[1] >= 5 and not list(folder.glob("*.latents"))
    assert plain.keys() == from_disk.keys() and all(torch.equal(value, from_disk[name]) for name, value in plain.items())
