"""The planner: what 0 stands for, and how a training is run so that it fits."""

from __future__ import annotations

import logging
import re
import time

import pytest
import torch
from kept_memory import kept_for_the_gradient

from benchmarks.paper_model import attention_of_cards, paper_model
from benchmarks.training_memory import CASES, GB, LIST, PAGE, listed, rows_of
from benchmarks.training_memory import recipe_of as recipe_on_paper

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

LORA_WITH_TEXT = {case.title: case for case in CASES if case.text}


@pytest.fixture(scope="module")
def on_paper(host):
    """All plans of every training at its real size."""
    with torch.inference_mode():
        return {case.title: rows_of(host, case) for case in CASES}


@pytest.mark.parametrize(("title", "card"), [
    ("SDXL LoRA, text encoders, class pictures", 12), ("SD1.5 LoRA, text encoder, class pictures", 6), ("SD1.5 LoRA", 6),
    ("SDXL LoRA", 8)])
def test_a_lora_of_real_size_fits_a_small_card(on_paper, title, card):
    assert any(row.fits(card) for row in on_paper[title])


def test_more_sparing_plans_take_less_and_none_takes_less_than_the_model(on_paper):
    for title, rows in on_paper.items():
        assert all(later.taken < earlier.taken for earlier, later in zip(rows, rows[1:])), title
        assert rows[-1].taken > (1.8 if "SD1.5" in title else 4.7) * GB, title


def test_the_list_of_the_help_page_is_what_the_command_writes(on_paper):
    shown, made = LIST.search(PAGE.read_text(encoding="utf-8"))[0], listed(on_paper)
    number = re.compile(r"\d+\.\d")
    assert number.sub("#", shown) == number.sub("#", made)
    pairs = zip(number.findall(shown), number.findall(made), strict=True)
    assert all(abs(float(one) - float(other)) <= 0.05 * float(one) for one, other in pairs)


def test_what_a_text_encoder_keeps_by_arithmetic_is_what_it_really_keeps(pack, fresh):
    estimate, methods, settings = (pack.module(f"dreammatcher.{name}") for name in (
        "host.training.estimate", "training.dreambooth", "training.settings"))
    model = pack.module("dreammatcher.host.training.model").HostDenoiser(fresh[0], fresh[1], (16, 16))
    with torch.inference_mode(False):
        lora = methods.lora_of(model.text, methods.TEXT_TARGETS, settings.LoraSettings(), 1e-4, torch.Generator())
    found = []
    for again in (False, True):
        with torch.inference_mode(False), torch.enable_grad(), kept_for_the_gradient() as kept:
            said = model.changed(checkpointing=again).encode(["a photo of a robot"], lora.weights(model.text))
        assert said.cross_attention.requires_grad
        found.append(kept.beside(model.text.values(), lora.parameters()))
    real, saving = found
    assert estimate.text_activations(model, lora) == pytest.approx(real, rel=0.15) and saving < 0.1 * real


def recipe_of(pack, fresh, batch=1):
    """A LoRA on Toybox, ready to train."""
    methods, settings, data, recipes = (pack.module(f"dreammatcher.training.{name}") for name in (
        "dreambooth", "settings", "data", "recipe"))
    model = pack.module("dreammatcher.host.training.model").HostDenoiser(fresh[0], fresh[1], (16, 16), checkpointing=None)
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, 4, 16, 16, generator=generator)
        pictures = data.LatentSet((data.Prepared(latents, None, ("a photo of a sks robot",)),))
        unet = methods.lora_of(model.unet, methods.UNET_TARGETS, settings.LoraSettings(), 1e-3, generator)
        recipe = recipes.SubjectRecipe(model, pictures, settings.ObjectiveSettings(), unet=unet)
    return recipe, settings.TrainingSettings(4, batch, seed=3), settings


def test_the_time_is_told_to_a_factor_of_three(pack, fresh):
    estimate, loop = (pack.module(f"dreammatcher.{name}") for name in ("host.training.estimate", "training.loop"))
    recipe, settings, _ = recipe_of(pack, fresh, batch=4)
    told = estimate.pace_of(recipe, recipe.model, settings, (16, 16)).step
    with torch.inference_mode(False), torch.enable_grad():
        training, taken = loop.Training(recipe, settings), []
        for _ in range(4):
            begun = time.perf_counter()
            training.advance()
            taken.append(time.perf_counter() - begun)
    assert told / 3 < min(taken) < 3 * told or told / 3 < max(taken[1:]) < 3 * told


def gb(pack, monkeypatch, free: float):
    monkeypatch.setattr(pack.module("dreammatcher.host.training.estimate"), "free_on", lambda device: int(free * GB))


def test_the_text_encoder_leaves_the_device_where_that_is_enough_and_the_same_is_learned(pack, fresh, monkeypatch, caplog):
    plan, estimate, loop = (pack.module(f"dreammatcher.{name}") for name in (
        "host.training.plan", "host.training.estimate", "training.loop"))

    def learned(away: bool):
        recipe, settings, module = recipe_of(pack, fresh)
        if away:
            need = estimate.need_of(recipe, recipe.model.changed(checkpointing=False), settings, 1, (16, 16)).total
            monkeypatch.setattr(plan, "text_bytes", lambda model: need)
            gb(pack, monkeypatch, 0.5 * need / GB)
            monkeypatch.setattr(estimate, "make_room", lambda *_: None)
            settings = plan.check_memory(recipe, settings, module.Running(), prompts=("a robot",))
            assert recipe.model.text_away and not recipe.model.text and not recipe.model.checkpointing
        with torch.inference_mode(False), torch.enable_grad():
            loop.train(recipe, settings)
        return recipe

    plain, sparing = learned(False), learned(True)
    assert "the text encoder off the device" in caplog.text
    for one, other in zip(plain.learned.parameters(), sparing.learned.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(*(one.model.encode(["a red robot"]).cross_attention for one in (plain, sparing)))  # it comes back for it
    assert not sparing.model.text


def test_a_batch_that_was_left_open_is_parted_where_memory_needs_it(pack, fresh, monkeypatch, caplog):
    plan, estimate = (pack.module(f"dreammatcher.host.training.{name}") for name in ("plan", "estimate"))
    recipe, settings, module = recipe_of(pack, fresh, batch=4)
    two = estimate.need_of(recipe, recipe.model.changed(checkpointing=True), settings, 2, (16, 16)).total
    gb(pack, monkeypatch, 1.01 * two / GB)
    with pytest.raises(ValueError, match="memory: this training takes"):
        plan.check_memory(recipe, settings, module.Running())
    recipe.model.checkpointing = None
    planned = plan.check_memory(recipe, settings, module.Running(splits=True))
    assert (planned.batch, planned.accumulate) == (2, 2) and "batch 2, accumulated 2 times" in caplog.text


@pytest.mark.parametrize(("method", "optimiser", "given", "rate", "batch"), [
    ("DreamBooth LoRA", "AdamW", {}, 1e-4, 1), ("DreamBooth LoRA", "AdamW", {"text": True}, 1e-4, 1),
    ("DreamBooth full", "AdamW", {}, 5e-6, 1), ("DreamBooth full", "AdamW", {"text": True}, 2e-6, 1),
    ("Textual Inversion", "AdamW", {}, 5e-3, 1), ("Custom Diffusion", "AdamW", {}, 2e-5, 2),
    ("Custom Diffusion", "AdamW", {"prior": True}, 4e-5, 2), ("DreamBooth full", "Prodigy", {}, 1.0, 1),
    ("DreamBooth LoRA", "AdamW", {"pace": 20.0}, 2e-3, 1)])
def test_a_number_of_0_is_one_that_suits_the_method(pack, method, optimiser, given, rate, batch):
    Numbers = pack.module("dreammatcher.training.auto").Numbers
    filled = Numbers().filled(method, optimiser, **given)
    assert (filled.rate, filled.batch) == (pytest.approx(rate), batch)
    assert Numbers(0.3, 7).filled(method, optimiser, **given) == Numbers(0.3, 7)


def test_numbers_out_of_range_are_refused(pack):
    Numbers = pack.module("dreammatcher.training.auto").Numbers
    for wrong, said in (((-1.0, 0), "rate: -1.0 is outside"), ((2.0, 0), "rate: 2.0 is outside"),
                        ((0.0, -1), "batch: -1 is below")):
        with pytest.raises(ValueError, match=said):
            Numbers(*wrong)


def learn(host, fresh, resolution=0, **chosen):
    draw = host.nodes["ToyboxReference"]().draw
    pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])
    training_set = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", resolution, pictures)["result"][0]
    return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, **{"steps": 1, "seed": 1, **chosen})[2].lora


@pytest.mark.parametrize(("kind", "rate"), [("LoRA", 2e-3), ("full", 1e-4)])
def test_the_rate_follows_the_kind_and_what_was_chosen_is_told(host, fresh, caplog, kind, rate):
    auto = learn(host, fresh, kind=kind, rate=0.0)
    assert f"chosen: rate {rate:g}; batch 1; resolution 128; " in caplog.text and "GB beside the model" in caplog.text
    chosen = learn(host, fresh, 128, kind=kind, rate=rate, batch=1)
    assert all(torch.equal(value, chosen[name]) for name, value in auto.items())


def test_a_resolution_far_below_the_model_s_own_is_taken_and_warned_of(host, fresh, caplog):
    learn(host, fresh, 64, kind="LoRA", rate=1e-3, batch=1)
    assert "resolution: 64 is far below 128" in caplog.text and "chosen: " not in caplog.text


def test_a_set_without_a_size_says_so_and_its_size_cannot_be_asked(host, pack, pictures):
    said = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 0, pictures)["ui"]["text"][0]
    assert "at the model's own size: a photo of a sks robot" in said
    with pytest.raises(ValueError, match="resolution: it is 0"):
        pack.module("dreammatcher.training.data").Preparation(0).size(128, 128)


def test_sdxl_with_text_encoders_is_not_refused_on_24_gb(host, pack, monkeypatch, caplog):
    plan, settings, recipes = (pack.module(f"dreammatcher.{name}") for name in (
        "host.training.plan", "training.settings", "training.recipe"))
    case = LORA_WITH_TEXT["SDXL LoRA, text encoders, class pictures"]
    with torch.inference_mode(False), attention_of_cards(), caplog.at_level(logging.INFO):
        model = paper_model(host, case.family)
        recipe = recipe_on_paper(host, model, case, recipes, settings)
        weights = sum(value.nbytes for value in (*model.unet.values(), *model.text.values()))
        gb(pack, monkeypatch, 23 - weights / GB)
        monkeypatch.setattr(plan.estimate, "make_room", lambda *_: None)
        monkeypatch.setattr(plan.estimate, "speed_of", lambda *_: 50e12)
        plan.check_memory(recipe, settings.TrainingSettings(500), settings.Running(), before=3000)
    assert re.search(r"about \d+\.\d GB beside the model, of \d+\.\d GB that are free; about \d+ min", caplog.text)
