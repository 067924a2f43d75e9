"""A run has a name: more steps go on from what it has learned, and what differs from before is listed and asked for."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from test_every_option import PLAIN
from test_kept_steps import USUAL, embeddings, learn, loras, runs, same  # noqa: F401  fixtures

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture(autouse=True)
def told(pack, monkeypatch, runs):  # noqa: F811
    """The messages on nodes about going on; no run is on disk. Memory, most of so short a training, has tests of its own."""
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, chosen, *_, **__: chosen)
    said = []
    monkeypatch.setattr(pack.module("dreammatcher.host.training.going_on"), "tell", said.append)
    return said


@pytest.fixture
def stop_at(monkeypatch):
    """Has the user interrupt the next training after a step, whatever its length."""
    import comfy.model_management
    import comfy.utils

    update, steps = comfy.utils.ProgressBar.update_absolute, []

    def interrupt(bar, value, total=None, *rest):
        if value in steps:
            steps.clear()
            comfy.model_management.interrupt_current_processing()
        update(bar, value, total, *rest)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", interrupt)
    return steps.append


@pytest.fixture
def stopped(pack, learn, stop_at):  # noqa: F811
    """Learns until a step at which the user stops it."""
    def at(step, **choices):
        stop_at(step)
        with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
            learn(**choices)
    return at


def states(runs):  # noqa: F811
    return list((runs.parent / "training").glob("*.safetensors"))


def close(one, other, share=2e-3):
    return one.keys() == other.keys() and all((value - other[name]).norm() <= share * value.norm() + 1e-6
                                              for name, value in one.items())


@pytest.mark.parametrize("answer", ["ask", "go on"])
@pytest.mark.parametrize("average", [0.0, 0.5])
def test_more_steps_on_a_stopped_run_and_on_a_kept_state_are_those_of_a_longer_run(learn, stopped, runs, told, answer, average):  # noqa: F811
    expected = learn(steps=5, average=average)
    stopped(2, steps=3, average=average, when_it_differs=answer)
    assert same(learn(steps=5, average=average, when_it_differs=answer).lora, expected.lora)
    assert told == ["goes on from step 2 of the run 'sks'"] and not states(runs)
    learn(steps=3, seed=1, average=average, keep_state=True)
    again = learn(steps=5, average=average, when_it_differs=answer, keep_state=True)
    assert same(again.lora, expected.lora) and again.about["steps"] == "5"
    assert told[1:] == ["goes on from step 3 of the run 'sks'"]
    told.clear()
    assert same(learn(steps=5, average=average, when_it_differs=answer).lora, expected.lora), "an ended run has its state"
    assert told == ["goes on from step 5 of the run 'sks'"] and [path.name for path in runs.iterdir()] == ["sks"]


def test_more_steps_on_a_run_that_kept_its_files_begin_with_their_weights_and_a_fresh_optimiser(learn, loras, runs, told):  # noqa: F811
    first = learn(steps=3, keep_every=3)
    longer = learn(steps=4, keep_every=4, when_it_differs="ask")
    assert told == ["goes on from step 3 of the run 'sks', with a fresh optimiser"] and longer.about["steps"] == "4"
    assert not close(longer.lora, first.lora) and not same(longer.lora, learn(steps=4).lora)
    assert sorted(path.name for path in loras.glob("sks*")) == ["sks-step00000003.safetensors", "sks-step00000004.safetensors"]
    record = json.loads((runs / "sks" / "run.json").read_text())
    assert sorted(record["steps"]) == ["3", "4"] and record["said"]["steps"] == 4 and len(record["losses"]) == 4
    still = learn(steps=5, keep_every=5, when_it_differs="go on", given={"rate": 1e-12})
    assert close(longer.lora, still.lora), "half precision is all that a step without a rate changes"


@pytest.mark.parametrize(("method", "part"), [("TextualInversion", "embeddings"), ("CustomDiffusion", "lora")])
def test_words_go_on_from_their_files_too(learn, loras, embeddings, told, method, part):  # noqa: F811
    first = learn(steps=2, method=method, keep_every=2)
    still = learn(steps=3, method=method, keep_every=3, when_it_differs="go on", given={"rate": 1e-12})
    assert close(getattr(first, part), getattr(still, part)) and close(first.embeddings, still.embeddings)
    assert told == ["goes on from step 2 of the run 'sks', with a fresh optimiser"]


def test_what_differs_is_listed_and_asked_for(host, fresh, learn, stopped, runs, told):  # noqa: F811
    stopped(2, steps=3)
    with pytest.raises(ValueError, match=r"run_name: the run 'sks' stands at step 2, with other choices: .*rate 0.001 → 0.0005"):
        learn(steps=3, given={"rate": 5e-4}, when_it_differs="ask")
    with pytest.raises(ValueError) as error:
        learn(steps=9, seed=4, given={"rate": 5e-4, "batch": 2}, weight_decay=0.5, schedule="cosine", when_it_differs="ask")
    for said in ("steps 3 → 9", "seed 1 → 4", "rate 0.001 → 0.0005", "batch 1 → 2", "weight_decay 0.01 → 0.5",
                 "schedule constant → cosine", "'go on' or 'begin anew'"):
        assert said in str(error.value), said
    assert "contents" not in str(error.value) and "model" not in str(error.value) and len(states(runs)) == 1
    assert learn(steps=1, given={"rate": 5e-4}, when_it_differs="ask", run_name="another"), "another name asks nothing"
    assert not told


def test_other_pictures_are_named_as_such(host, fresh, learn, stopped, small_set):  # noqa: F811
    from dataclasses import replace

    stopped(2, steps=3)
    options, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL, when_it_differs="ask")
    mirrored = replace(small_set, examples=tuple(replace(one, picture=one.picture.flip(2)) for one in small_set.examples))
    for pictures, said in ((mirrored, "training_set: other pictures or captions"),
                           (replace(mirrored, examples=mirrored.examples + small_set.examples), "training_set's pictures 2 → 4")):
        with pytest.raises(ValueError, match=f"other choices: {said}[.]"):
            host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, pictures, "LoRA", 3, 1e-3, 1, options=options)


def test_going_on_takes_another_rate_and_other_pictures_and_beginning_anew_leaves_what_was(learn, stopped, runs, told):  # noqa: F811
    stopped(2, steps=3)
    kept = states(runs)
    fresh_run = learn(steps=3, given={"rate": 1e-2})
    assert len(told) == 1 and "rate 0.001 → 0.01. This one begins anew; set when_it_differs" in told[0] and states(runs) == kept
    anew = learn(steps=3, given={"rate": 1e-2}, when_it_differs="begin anew")
    assert same(anew.lora, fresh_run.lora) and states(runs) == kept
    on = learn(steps=3, given={"rate": 1e-2}, when_it_differs="go on")
    assert told[2:] == ["goes on from step 2 of the run 'sks'"] and not same(on.lora, anew.lora) and not states(runs)
    assert not same(on.lora, learn(steps=3).lora)


@pytest.mark.parametrize("change", [{"optimiser": "Adafactor"}, {"average": 0.5}])
def test_another_optimiser_or_average_goes_on_from_the_weights(learn, stopped, told, change):  # noqa: F811
    stopped(2, steps=3)
    assert learn(steps=3, when_it_differs="go on", **change).about["steps"] == "3"
    assert told == ["goes on from step 2 of the run 'sks', with a fresh optimiser"]


@pytest.mark.parametrize(("change", "said"), [
    ({"given": {"rank": 8}}, "rank 4 → 8"), ({"given": {"kind": "full"}}, "kind LoRA → full"),
    ({"lora_alpha": 1.0}, "alpha none → 1"),
    ({"given": {"text_encoder": True}}, "text_encoder False → True"), ({"steps": 1}, "steps 1 are done already"),
    ({"method": "TextualInversion"}, "method DreamBooth → Textual Inversion")])
def test_what_cannot_go_on_is_refused_by_its_name(learn, stopped, runs, change, said):  # noqa: F811
    stopped(2, steps=3)
    with pytest.raises(ValueError, match=f"run_name: the run 'sks', at step 2, cannot go on so: .*{said}"):
        learn(**{"steps": 3, **change}, when_it_differs="go on")
    assert len(states(runs)) == 1


def test_another_model_cannot_go_on(host, fresh, learn, stopped, small_set):  # noqa: F811
    stopped(2, steps=3)
    options, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL, when_it_differs="go on")
    other = fresh[0].clone()
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    other.add_patches({key: ("diff", (torch.ones_like(other.model.state_dict()[key]),))}, 1.0)
    with pytest.raises(ValueError, match="cannot go on so: another model, text encoder or LoRA on them"):
        host.nodes["DreamMatcherDreamBooth"]().learn(other, *fresh[1:], small_set, "LoRA", 3, 1e-3, 1, options=options)


def test_vico_goes_on_from_a_state(host, fresh, small_set, runs, told):  # noqa: F811
    shutil.rmtree(runs, ignore_errors=True)

    def train(steps, masked=True, **chosen):
        options, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL, **chosen)
        return host.nodes["DreamMatcherViCoTrain"]().learn(*fresh, small_set, initial_word="robot", steps=steps, word_rate=1e-2,
                                                           block_rate=1e-3, seed=1, batch=1, regularisation=0.01, masked=masked,
                                                           options=options)

    expected = train(3)
    train(2, keep_state=True)
    again = train(3, when_it_differs="ask")
    learned, wanted = (next(one for one in done if hasattr(one, "rows")) for done in (again, expected))
    assert torch.equal(learned.rows, wanted.rows) and told == ["goes on from step 2 of the run 'sks'"]
    with pytest.raises(ValueError, match="other choices: masked True → False; steps 2 → 3[.]"):
        train(3, masked=False, when_it_differs="ask")


@pytest.fixture
def with_details(host, fresh, small_set):
    """DreamBooth with finer choices."""
    def learned(steps, begin_from=None, text_encoder=True, options=None, **details):
        chosen, = host.nodes["DreamMatcherTrainingOptions"]().make(**{**USUAL, **(options or {})})
        chosen, = host.nodes["DreamMatcherTrainingDetails"]().make(**{**PLAIN, **details}, options=chosen)
        return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, small_set, "LoRA", steps, 1e-3, 1, text_encoder=text_encoder,
                                                            options=chosen, begin_from=begin_from)[2]
    return learned


def test_more_steps_with_finer_choices_are_those_of_a_longer_run(with_details, runs, told):  # noqa: F811
    finer = dict(feed_forward=True, rank_dropout=0.3, text_rate=1e-2, noise_offset=0.1, caption_dropout=0.3, loss="Huber")
    expected = with_details(4, **finer)
    with_details(2, **finer, options={"keep_state": True})
    assert same(with_details(4, **finer, options={"when_it_differs": "ask"}).lora, expected.lora)
    assert told == ["goes on from step 2 of the run 'sks'"] and any("_mlp_" in name for name in expected.lora)


@pytest.mark.parametrize("files", [False, True])
def test_finer_choices_that_differ_are_listed_and_all_but_the_layers_go_on(with_details, runs, loras, told, files):  # noqa: F811
    kept = {"keep_every": 2} if files else {"keep_state": True}
    first = with_details(2, options=kept)
    for change, said in (({"text_rate": 5e-3}, ["text_rate 0 → 0.005"]), ({"timesteps": "late"}, ["timesteps uniform → late"]),
                         ({"rank_dropout": 0.5, "keep_tags": 2}, ["rank_dropout 0 → 0.5", "keep_tags 1 → 2"]),
                         ({"blocks": "M00, OUT03"}, ["blocks none → M00, OUT03"])):
        with pytest.raises(ValueError, match="at step 2, with other choices: ") as error:
            with_details(3, **change, options={"when_it_differs": "ask"})
        listed = str(error.value).partition("choices: ")[2].partition(". Set")[0].split("; ")
        assert sorted(listed) == sorted(["steps 2 → 3", *said])
    for change, said in (({"feed_forward": True}, "feed_forward False → True"), ({"blocks": "M00"}, "blocks none → M00"),
                         ({"attention": False, "projections": True, "feed_forward": True}, "attention True → False")):
        with pytest.raises(ValueError, match=f"at step 2, cannot go on so: {said}"):
            with_details(3, **change, options={"when_it_differs": "go on"})
    assert not told
    again = with_details(3, text_rate=1e-12, rank_dropout=0.5, options={"when_it_differs": "go on"})
    assert told == [f"goes on from step 2 of the run 'sks'{', with a fresh optimiser' * files}"]
    text, unet = ({name: value for name, value in first.lora.items() if name.startswith(part)}
                  for part in ("lora_te", "lora_unet"))
    assert close({name: again.lora[name] for name in text}, text), "without a rate the text encoder stays as it was"
    assert not close({name: again.lora[name] for name in unet}, unet)


def test_a_text_encoder_that_has_ended_stays_where_its_run_goes_on(with_details, runs, told):  # noqa: F811
    kept = with_details(4, text_until=0.5, options={"keep_state": True})
    longer = with_details(6, text_until=0.5, options={"when_it_differs": "go on"})
    assert told == ["goes on from step 4 of the run 'sks'"]
    text = [name for name in kept.lora if name.startswith("lora_te")]
    assert text and same({name: kept.lora[name] for name in text}, {name: longer.lora[name] for name in text})
    assert not same(kept.lora, longer.lora)


def test_a_training_of_fewer_layers_keeps_those_that_it_begins_from_and_says_so(pack, with_details, runs, monkeypatch):  # noqa: F811
    said = []
    monkeypatch.setattr(pack.module("dreammatcher.host.training.dreambooth"), "tell", said.append)
    more = with_details(2, feed_forward=True, text_encoder=False)
    again = with_details(1, more, text_encoder=False, rank_dropout=0.5, options={"run_name": "again"})
    assert not said and again.lora.keys() == more.lora.keys()
    fewer = with_details(1, more, text_encoder=False, blocks="M00", options={"run_name": "fewer"})
    assert len(said) == 1 and "weights beyond the layers that Training Details (DreamMatcher) chooses" in said[0]
    assert fewer.lora.keys() == more.lora.keys() and not same(fewer.lora, more.lora)
