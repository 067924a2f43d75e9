"""Several subjects learned in one run, on the host: their words, class pictures, samples, files, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_kept_steps import USUAL, embeddings, loras, runs  # noqa: F401  fixtures

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture(autouse=True)
def told(pack, monkeypatch):
    """The messages on nodes. Memory, most of so short a training, has tests of its own."""
    said = []
    for name in ("run", "going_on", "learn", "sets"):
        monkeypatch.setattr(pack.module(f"dreammatcher.host.training.{name}"), "tell", said.append)
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, chosen, *_, **__: chosen)
    return said


@pytest.fixture(scope="module")
def sets(host):
    """Sets by word: two pictures of a robot, three of a bird, and class pictures of each."""
    draw, make = host.nodes["ToyboxReference"]().draw, host.nodes["DreamMatcherTrainingSet"]().make

    def made(word, kind, poses, **more):
        with torch.inference_mode():
            drawn = torch.cat([draw(3, kind, pose, "grass")[0] for pose in range(poses)])[:, ::2, ::2]
            return make(word, kind, "photo", 64, drawn, **more)["result"][0]

    return {"sks": made("sks", "robot", 2), "abc": made("abc", "bird", 3), "robot": made("", "robot", 2),
            "bird": made("", "bird", 2)}


@pytest.fixture
def join(host, sets):
    def joined(*words):
        given = {f"training_set_{number}": sets[word] for number, word in enumerate(words, 1)}
        return host.nodes["DreamMatcherJoinSets"]().join(**given)["result"][0]
    return joined


@pytest.fixture
def learn(host, fresh):
    def learned(chosen, method="DreamBooth", steps=2, options=None, **given):
        made, = host.nodes["DreamMatcherTrainingOptions"]().make(**{**USUAL, **(options or {})})
        more = {"DreamBooth": dict(kind="LoRA"), "TextualInversion": dict(initial_word="robot, bird", vectors=2),
                "CustomDiffusion": dict(initial_word="robot, bird", sizes=False)}[method]
        usual = dict(steps=steps, rate=1e-3, seed=1, batch=2, options=made)
        return host.nodes[f"DreamMatcher{method}"]().learn(*fresh, chosen, **{**usual, **more, **given})[2]
    return learned


def test_the_node_joins_what_is_connected_and_says_what_it_made(host, sets, told):
    join = host.nodes["DreamMatcherJoinSets"]().join
    made = join(training_set_1=sets["sks"], training_set_3=sets["abc"])
    assert made["ui"]["text"][0].startswith("2 sets, each drawn equally often\n2 pictures of 'sks robot'")
    assert join(training_set_2=sets["abc"])["result"][0] is sets["abc"]
    assert told == ["training_set_2 alone is connected, so nothing is joined; it goes on as it is"]
    with pytest.raises(ValueError, match="no set is connected"):
        join()
    with pytest.raises(ValueError, match="training_set_2: its subject 'sks robot' shares the word 'sks'"):
        join(training_set_1=sets["sks"], training_set_2=sets["sks"])


@pytest.mark.parametrize("kind", ["lora", "word"])
def test_the_gradient_of_both_subjects_is_the_mean_of_the_two_alone_on_the_host_s_model(pack, fresh, kind):
    """The same rows, timesteps and noise go through the host's model together and one by one."""
    module = {name: pack.module(f"dreammatcher.training.{name}") for name in (
        "data", "denoising", "dreambooth", "settings", "textual_inversion")}
    model, clip, _ = fresh
    with torch.inference_mode(False), torch.enable_grad():
        denoiser = pack.module("dreammatcher.host.training.model").HostDenoiser(model, clip, (8, 8))
        generator = torch.Generator().manual_seed(2)
        captions = ["a sks robot", "a abc bird and a sks toy"]
        batch = module["data"].Batch(torch.randn(2, 4, 8, 8, generator=generator), None, captions)
        rows = {word: module["textual_inversion"].token_rows(denoiser.rows_of(initial), vectors, 1e-3)
                for word, initial, vectors in (("sks", "robot", 2), ("abc", "bird", 1))}
        lora = module["dreambooth"].lora_of(denoiser.unet, module["dreambooth"].UNET_TARGETS, module["settings"].LoraSettings(2),
                                            1e-3, generator)
        parameters = list(lora.parameters()) if kind == "lora" else [one.rows for one in rows.values()]

        def gradient(numbers):
            numbers, draws = torch.tensor(numbers), torch.Generator().manual_seed(9)
            said = denoiser.encode(batch.said(numbers), None, rows)
            error, _ = module["denoising"].errors(denoiser, batch, said, lora.weights(denoiser.unet),
                                                  module["settings"].ObjectiveSettings(), draws, numbers)
            return torch.autograd.grad(error.mean(), parameters, allow_unused=True)

        both, robot, bird = gradient([0, 1]), gradient([0]), gradient([1])
        for whole, first, second in zip(both, robot, bird, strict=True):
            mean = ((0 if first is None else first) + (0 if second is None else second)) / 2
            assert whole is not None and (whole - mean).norm() <= 1e-4 * whole.norm()
        assert kind == "lora" or (robot[1] is None and None not in bird), "each caption moves its own words"


def test_a_caption_of_two_words_reads_what_each_has_learned(pack, host, fresh):
    """While it trains, a caption with two new words is read as the finished words are in a prompt."""
    model, clip, _ = fresh
    vectors = {"sks": torch.randn(2, 96, generator=torch.Generator().manual_seed(1)), "abc": torch.randn(1, 96)}
    with torch.inference_mode(False):
        denoiser = pack.module("dreammatcher.host.training.model").HostDenoiser(model, clip, (8, 8))
        rows = {word: pack.module("dreammatcher.training.trainables").TokenRows(value, 1.0) for word, value in vectors.items()}
        read = denoiser.encode(["a abc bird, a sks robot and a abc hat"], None, rows).cross_attention.detach()
    taught = pack.module("dreammatcher.host.text.new_words").with_new_words(clip, vectors)
    said = taught.encode_from_tokens(taught.tokenize("a abc bird, a sks robot and a abc hat"))
    assert (read - said).norm() < 1e-5 * said.norm()


@pytest.mark.parametrize("method", ["DreamBooth", "TextualInversion", "CustomDiffusion"])
def test_the_learned_file_holds_both_words(host, pack, join, learn, loras, embeddings, method):  # noqa: F811
    for path in (*Path(loras).glob("two*"), *Path(embeddings).glob("two*")):
        path.unlink()  # of an earlier run
    learned = learn(join("sks", "abc"), method)
    assert learned.about["subject"] == "sks robot, abc bird" and learned.about["identifier"] == "sks, abc"
    assert learned.about["modelspec.trigger_phrase"] == "sks robot, abc bird"
    tags = json.loads(learned.about["ss_tag_frequency"])
    assert list(tags) == ["1_sks robot", "1_abc bird"] and tags["1_abc bird"]["abc bird"] == 3
    assert json.loads(learned.about["ss_dataset_dirs"])["1_abc bird"]["img_count"] == 3
    said = host.nodes["DreamMatcherSaveLearned"]().save(learned, f"two {method}")["ui"]["text"][0]
    if method == "DreamBooth":
        assert "write sks robot, abc bird in prompts" in said.lower() and not learned.embeddings
        return
    assert set(learned.embeddings) == {"sks", "abc"}
    begun = {word: rows for word, rows in learn(join("sks", "abc"), method, steps=1, rate=1e-12).embeddings.items()}
    assert all(not torch.equal(rows, begun[word]) for word, rows in learned.embeddings.items()), "both have moved"
    assert not torch.equal(begun["sks"], begun["abc"]), "each begins from its own word"
    files = sorted(Path(embeddings).glob(f"two_{method}*"))
    assert len(files) == 2 and all(f"embedding:{file.stem}" in said for file in files)
    assert sum(load_file(file)["clip_l"].shape[0] for file in files) == sum(len(rows) for rows in learned.embeddings.values())
    if method == "CustomDiffusion":
        name = next(path.name for path in Path(loras).glob(f"two {method}*"))
        back = host.nodes["DreamMatcherLoadLearned"]().load(*host.nodes["ToyboxLoader"]().load()[:2], name, 1.0, 1.0)["result"][2]
        assert set(back.embeddings) == {"sks", "abc"} and back.about["subject"] == "sks robot, abc bird"


def test_every_class_has_its_pictures_and_a_class_without_is_told(host, fresh, sets, join, learn, told):
    draw = host.nodes["DreamMatcherPriorSet"]().make
    chosen = dict(count=2, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", seed=3)
    made = draw(*fresh, join("sks", "abc"), **chosen)
    prior, said = made["result"][0], made["ui"]["text"][0]
    assert [one.naming.class_word for one in prior.subjects] == ["robot", "bird"] and len(prior.examples) == 4
    assert "2 pictures of 'robot'" in said and "2 pictures of 'bird'" in said
    one = draw(*fresh, sets["sks"], **chosen)["result"][0]
    assert all(torch.equal(a.picture, b.picture) for a, b in zip(one.examples, prior.subjects[0].examples)), "as it had alone"
    told.clear()
    learn(join("sks", "abc"), prior_set=prior)
    assert not any("prior_set" in text for text in told)
    learn(join("sks", "abc"), prior_set=join("robot", "bird"))
    assert not any("prior_set" in text for text in told)
    learn(join("sks", "abc"), prior_set=sets["robot"])
    assert any("prior_set: it has no pictures of the class of 'abc bird'" in text for text in told)
    with pytest.raises(ValueError, match="prior_set: its caption 'a photo of a abc bird' holds the identifier 'abc'"):
        learn(join("sks", "abc"), prior_set=sets["abc"])


def test_samples_are_of_each_subject_on_the_node_and_in_the_sheet(pack, join, learn, runs, loras):  # noqa: F811
    from PIL import Image

    sheets = pack.module("dreammatcher.training.sheet")
    learn(join("sks", "abc"), options={"keep_every": 1})
    folder = runs / "sks+abc"
    prompts = ("a photo of a sks robot", "a photo of a abc bird")
    assert sheets.read(folder / "sheet.png", prompts).prompts == prompts and list(folder.iterdir())
    with Image.open(folder / "sheet.png") as page:
        assert page.width > page.height
    shown = pack.module("dreammatcher.host.training.shown")
    page, square = Image.new("RGB", (300, 100)), Image.new("RGB", (8, 8), "red")
    assert shown.beside(page, [square, square]).size == (500, 100) and shown.beside(page, []) is page


def test_a_run_of_both_goes_on_and_a_set_that_changed_is_named(pack, sets, join, learn, runs, loras, embeddings, told):  # noqa: F811
    keep = {"keep_every": 1, "keep_state": True, "when_it_differs": "ask"}
    learn(join("sks", "abc"), options=keep)
    more = learn(join("sks", "abc"), steps=3, options=keep)
    assert any("goes on from step 2 of the run 'sks+abc'" in text for text in told)
    whole = learn(join("sks", "abc"), steps=3, options={"when_it_differs": "begin anew"})
    assert all(torch.equal(value, more.lora[name]) for name, value in whole.lora.items()), "bit for bit"
    with pytest.raises(ValueError, match="training_set: words sks, abc → abc, sks"):
        learn(join("abc", "sks"), options={**keep, "run_name": "sks+abc"})
    with pytest.raises(ValueError, match="training_set: words sks, abc → of one subject"):
        learn(sets["sks"], options={**keep, "run_name": "sks+abc"})


def test_a_word_begins_where_it_was_and_a_further_one_anew(join, learn, sets, told):
    first = learn(sets["sks"], "TextualInversion", initial_word="robot")
    both = learn(join("sks", "abc"), "TextualInversion", steps=1, rate=1e-12, begin_from=first)
    plain = learn(join("sks", "abc"), "TextualInversion", steps=1, rate=1e-12)
    assert torch.allclose(both.embeddings["sks"], first.embeddings["sks"], rtol=1e-6, atol=1e-8)
    assert torch.allclose(both.embeddings["abc"], plain.embeddings["abc"], rtol=1e-6, atol=1e-8)
    assert any("begin_from: it does not hold 'abc', which begin from initial_word" in text for text in told)
    other = type(first)({}, {"xyz": first.embeddings["sks"]})
    with pytest.raises(ValueError, match="begin_from: its words are 'xyz', and those that are learned here 'sks', 'abc'"):
        learn(join("sks", "abc"), "TextualInversion", begin_from=other)


def test_methods_and_losses_of_one_subject_refuse_several(host, pack, fresh, join, learn, sets):
    loss, = host.nodes["DreamMatcherSeFiLoss"]().make("robot", 100.0, "sum over patches", "all tokens")
    with pytest.raises(ValueError, match="attention_loss: it compares one word with its class"):
        learn(join("sks", "abc"), "TextualInversion", attention_loss=loss, vectors=1)
    with pytest.raises(ValueError, match="training_set: it joins 2 subjects .sks, abc., and ViCo learns one"):
        host.nodes["DreamMatcherViCoTrain"]().learn(*fresh, join("sks", "abc"), initial_word="robot", steps=1, word_rate=1e-2,
                                                    block_rate=1e-3, seed=1, batch=1, regularisation=0.01)
    write = host.nodes["DreamMatcherTrainingJob"]().write
    file, = write("Toybox", join("sks", "abc"), "Textual Inversion", "two words", 1, 1e-3, 1)["result"]
    job = pack.module("dreammatcher.training.job").read(Path(file))
    with torch.inference_mode():
        learned, _ = pack.module("dreammatcher.host.training.job")._learn(job, *fresh, job.options)
    assert set(learned.embeddings) == {"sks", "abc"}, "each begins from its class word"


def test_one_picture_of_a_subject_is_named(host, sets, learn):
    make = host.nodes["DreamMatcherTrainingSet"]().make
    lonely = make("xyz", "toy", "photo", 64, torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)))["result"][0]
    joined = host.nodes["DreamMatcherJoinSets"]().join(training_set_1=sets["sks"], training_set_2=lonely)["result"][0]
    with pytest.raises(ValueError, match="training_set: it has one picture of 'xyz toy', from which the background"):
        learn(joined)
