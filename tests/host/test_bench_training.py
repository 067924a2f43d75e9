"""The benchmark of training: every arm takes steps on the same weights and pictures, and a table says how each row was got."""

from __future__ import annotations

import argparse
import sys

import pytest
import torch

from benchmarks import bench_training
from benchmarks.training_arms import ARMS, Setting, diffusers_unet, drawn, step_times

SMALL = Setting(8, 2, 4, 32, 3)
FORMS = {"every activation kept": SMALL, "gradient checkpointing": Setting(8, 2, 4, 32, 3, True),
         "SDXL in bfloat16": Setting(8, 2, 4, 32, 3, family="SDXL", bfloat16=True)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ARMS)
def test_every_arm_takes_its_steps(host, name, form):
    if name == "TrainLoraNode" and not host.upstream:
        pytest.skip("packaged hosts have no such node")
    with torch.inference_mode():
        times = step_times(ARMS[name](host, FORMS[form]))
    assert len(times) == 2 and all(seconds > 0 for seconds in times)


@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
def test_the_arms_of_this_pack_and_of_diffusers_have_the_same_model(host, family):
    setting = Setting(8, 1, 4, 32, 3, family=family)
    latents, text, pooled = drawn(setting)
    with torch.inference_mode(False), torch.no_grad():
        theirs, ours = diffusers_unet(setting), setting.unet().model.diffusion_model
        beside, more = None, {}
        if pooled is not None:
            sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
            beside = torch.cat([pooled, theirs.add_time_proj(sizes.flatten()).reshape(1, -1)], 1)
            more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        said = theirs(latents[:1], torch.tensor([500]), text, return_dict=False, **more)[0]
        expected = ours(latents[:1], torch.tensor([500.0]), context=text, y=beside)
    assert (said - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.fixture
def printed(host, monkeypatch, capsys, tmp_path):
    """What the command prints, its arms in this process."""
    def run(*arguments: str) -> str:
        monkeypatch.setattr(bench_training, "Host", lambda folder: host)
        monkeypatch.setattr(bench_training, "in_a_process", bench_training.measured)
        monkeypatch.setattr(bench_training, "ROOT", tmp_path)
        monkeypatch.setattr(sys, "argv", ["bench_training", *arguments])
        bench_training.main()
        return capsys.readouterr().out
    return run


def rows(said: str) -> dict[tuple[str, str], list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line.startswith("| S")]
    return {(title, name): rest for title, name, *rest in cells}


def test_the_table_says_which_rows_are_measured_and_which_are_arithmetic(printed, tmp_path):
    table = rows(printed("--side", "8", "--width", "32", "--steps", "3", "--rounds", "1", "--arms", "diffusers"))
    assert len(table) == 6 and {title for title, _ in table} == {
        "SD1.5 64x64, batch 1, float32, every activation kept", "SD1.5 64x64, batch 1, float32, gradient checkpointing"}
    for (_, name), (seconds, ratio, memory, how) in table.items():
        if name == bench_training.ARITHMETIC:
            assert (seconds, ratio, how) == ("–", "–", "by arithmetic") and float(memory) > 0
        else:
            assert float(seconds) > 0 and float(ratio) > 0 and how == "measured on a CPU"
    assert not list(tmp_path.rglob("*.json")), "a part of the arms is no result to keep"


def test_what_is_told_of_a_card_needs_none(printed):
    table = rows(printed("--device", "cuda", "--arithmetic", "--family", "SD1.5", "--side", "8", "--width", "32"))
    assert len(table) == 4 and {how for *_, how in table.values()} == {"by arithmetic"}
    one, four = (float(table[f"SD1.5 64x64, batch {batch}, bfloat16, every activation kept", bench_training.ARITHMETIC][2])
                 for batch in (1, 4))
    assert four > one > 0


def test_a_card_trains_both_families_at_their_own_sizes_in_two_batches():
    left_open = dict.fromkeys(("family", "batch", "dtype", "side", "steps"))
    settings = bench_training.settings_of(argparse.Namespace(device="cuda", rank=4, width=320, **left_open))
    assert list(settings)[::2] == [f"{family}, batch {batch}, bfloat16, every activation kept"
                                   for family in ("SD1.5 512x512", "SDXL 1024x1024") for batch in (1, 4)]
    assert len(settings) == 8 and all(one.bfloat16 and one.device == "cuda" for one in settings.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_refused_by_a_sentence(printed):
    with pytest.raises(SystemExit, match="^--device cuda: there is no CUDA device here; give --device cpu .*--arithmetic"):
        printed("--device", "cuda")
