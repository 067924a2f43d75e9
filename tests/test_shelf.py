"""Latents beyond a size are in files while a training lasts, and what is learned from them is the same."""

from __future__ import annotations

import pytest
import torch
from small_training import normal

from dreammatcher.training.data import Prepared
from dreammatcher.training.shelf import Shelf


def examples(count: int = 7, size: int = 8) -> list[Prepared]:
    return [Prepared(normal(1 + number % 2, 4, size, size + number, seed=number), None, (f"picture {number}",))
            for number in range(count)]


@pytest.mark.parametrize("room", [0, 3000, 1 << 30])
def test_latents_are_the_same_wherever_they_are(tmp_path, room):
    plain, shelf = examples(), Shelf(tmp_path / "there", room)
    shelved = [*shelf.shelved(iter(plain[:2])), *shelf.shelved(iter(plain[2:]))]  # two sets have the same room
    assert [one.captions for one in shelved] == [one.captions for one in plain]
    assert all(torch.equal(one.latents, other.latents) for one, other in zip(shelved, plain, strict=True))
    in_memory = sum(one.latents.nbytes for one, other in zip(shelved, plain) if one is other)
    assert in_memory <= room and in_memory + shelf.size == sum(one.latents.nbytes for one in plain)
    assert shelf.size == sum(path.stat().st_size for path in shelf.files)
    files = list(shelf.files)
    shelf.close()
    assert not any(path.exists() for path in files) and not shelf.files
    assert bool(files) == (room < 1 << 20)


def test_they_come_from_the_file_and_are_never_written_to_it(tmp_path):
    shelf = Shelf(tmp_path, 0)
    first, = shelf.shelved(examples(1))
    path, = shelf.files
    before = path.read_bytes()
    first.latents.add_(1)
    assert path.read_bytes() == before == examples(1)[0].latents.numpy().tobytes()


def test_where_the_disk_refuses_they_stay_in_memory_and_that_is_told_once(tmp_path):
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    shelf = Shelf(tmp_path / "file", 0, said.append)
    plain = examples()
    assert shelf.shelved(plain) == plain and shelf.size == 0 and len(said) == 1 and "they stay in main memory" in said[0]
    shelf.close()
