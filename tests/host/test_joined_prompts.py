"""ViCo, SeFi-IDE, trainings and nodes without subject words, where prompts are joined, averaged or combined, or hold an embedding
that the host leaves out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from test_sefi import draw
from test_sefi import subject as learned_subject
from world import Bench, prompt, random_unet, sample

from harness.examples import full_control

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

KEY = "dreammatcher_subject"


@pytest.fixture
def encode(host, toybox):
    return lambda text: host.nodes["CLIPTextEncode"]().encode(toybox[1], text)[0]


def joined(host, to, other):
    return host.nodes["ConditioningConcat"]().concat(to, other)[0]


@pytest.fixture
def sefi(host, pack, toybox):
    """MODEL with SeFi Apply, its prompt, the negative one, and the texts of every stage."""
    learned = learned_subject(pack, "<me>")
    positive, _ = host.nodes["DreamMatcherSeFiPrompt"]().encode(toybox[1], "a photo of a <me>", learned)
    model, = host.nodes["DreamMatcherSeFiApply"]().apply(toybox[0], learned)
    return model, positive, host.nodes["CLIPTextEncode"]().encode(toybox[1], "")[0], positive[0][1]["dreammatcher_texts"]


def contexts(pack, monkeypatch) -> list[torch.Tensor]:
    """The contexts that the keys of every call read, filled while a model samples."""
    module, seen = pack.module("dreammatcher.host.sefi.apply"), []
    read = module._read_as

    def noted(*given):
        context = read(*given)
        seen.append(context)
        return context

    monkeypatch.setattr(module, "_read_as", noted)
    return seen


@pytest.mark.parametrize("places", [(0,), (0, 154), (77,)], ids=["in front", "twice", "behind"])
def test_a_staged_prompt_changes_its_own_part_of_a_joined_one(host, pack, encode, sefi, monkeypatch, places):
    model, positive, negative, texts = sefi
    other = encode("in the snow at night")
    both = {(0,): lambda: joined(host, positive, other), (0, 154): lambda: joined(host, joined(host, positive, other), positive),
            (77,): lambda: [[joined(host, other, positive)[0][0], positive[0][1]]]}[places]()
    seen = contexts(pack, monkeypatch)
    drawn = draw(host, model, both, negative, steps=3)
    assert torch.isfinite(drawn).all() and seen
    for read in filter(None, seen):
        context = next(row for row in read.keys if not torch.equal(row[:77], negative[0][0][0]))
        for start in range(0, len(context), 77):
            part = context[None, start:start + 77]
            staged = any(torch.allclose(part, text, atol=1e-6) for text in texts.keys)
            assert staged == (start in places), "a staged text stands in its own place and nowhere else"
            assert staged or torch.allclose(part, other[0][0])


def test_a_staged_prompt_that_is_averaged_is_read_as_it_is_and_it_is_said(host, encode, sefi, caplog, toybox):
    model, positive, negative, _ = sefi
    mixed = host.nodes["ConditioningAverage"]().addWeighted(positive, encode("a cat in the snow"), 0.5)[0]
    with caplog.at_level("WARNING"):
        drawn = draw(host, model, mixed, negative, steps=3)
    assert torch.equal(drawn, draw(host, toybox[0], mixed, negative, steps=3))
    said = [record.getMessage() for record in caplog.records]
    assert any("SeFi-IDE changed nothing in this run" in line and "averaged" in line for line in said)


@pytest.fixture(scope="module")
def looking(pack):
    from looking import Looking
    return Looking(pack, random_unet())


@pytest.mark.parametrize("order, columns", [("so", (6,)), ("os", (83,))])
@pytest.mark.parametrize("apart", [False, True], ids=["both rows in one call", "each row in a call of its own"])
def test_vico_looks_where_the_word_stands_in_a_joined_prompt_and_at_the_same_place_of_a_shorter_negative_one(
        pack, looking, order, columns, apart, monkeypatch):
    text = looking.positive[0][0]
    marked = looking.subject.encoded_as(text[0])
    both = torch.cat([{"s": text, "o": prompt(31)[0][0]}[one] for one in order], 1)
    if apart:
        import comfy.model_base
        monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *_, **__: 1e18)
    model, trace = looking.apply()
    by_hand = type(marked)("dog", "the dog", columns, 154)
    drawn = sample(model, [[both, {KEY: marked}]], looking.negative, height=32, width=32, steps=2)
    expected = sample(model, [[both, {KEY: by_hand}]], looking.negative, height=32, width=32, steps=2)
    assert torch.equal(drawn, expected) and not trace.skipped


def test_vico_says_so_when_the_prompt_does_not_hold_the_word(pack, looking):
    marked = looking.subject.encoded_as(looking.positive[0][0][0])
    model, trace = looking.apply(subject=False)
    out = sample(model, [[prompt(31)[0][0], {KEY: marked}]], looking.negative, height=32, width=32, steps=2)
    assert torch.isfinite(out).all() and any("averaged, or changed" in reason for reason in trace.skipped)


@pytest.mark.parametrize("caption, column", [("a photo of a <new> robot", 5), ("a photo of embedding:wide3 <new> robot", 4),
                                             ("<new> embedding:wide3 robot", 1), ("grass " * 76 + "embedding:wide3 <new>", 79)])
def test_a_training_finds_its_word_behind_embeddings_that_the_host_leaves_out(host, pack, fresh, model_folder, caption, column):
    save_file({"emb_params": torch.randn(3, 64)}, model_folder("embeddings") / "wide3.safetensors")
    denoiser = pack.module("dreammatcher.host.training.model").HostDenoiser(*fresh[:2], (16, 16))
    place, end = denoiser.places(caption, "<new>")
    rows = {"<new>": pack.module("dreammatcher.training.textual_inversion").token_rows(denoiser.rows_of("robot"), 1, 0.05)}
    other = {"<new>": pack.module("dreammatcher.training.textual_inversion").token_rows(denoiser.rows_of("cat"), 1, 0.05)}
    one, two = (denoiser.encode([caption], None, each).cross_attention[0] for each in (rows, other))
    assert place == column == int(((one - two).abs().amax(1) > 1e-6).nonzero()[0]) and end > 0


def without_words(reference: str, target: str, words=("", "")) -> dict:
    graph = {number: entry for number, entry in full_control().items()}
    subjects = [entry["inputs"] for entry in graph.values() if entry["class_type"] == "DreamMatcherSubject"]
    for inputs, text, word in zip(subjects, (reference, target), words):
        inputs.update(prompt=text, subject_words=word)
    for entry in graph.values():
        if entry["class_type"] == "DreamMatcherInvert":
            entry["inputs"]["steps"] = 2
        if entry["class_type"] == "KSampler":
            entry["inputs"]["steps"] = 3
    return graph


def mask_of(graph: dict) -> str:
    return next(number for number, entry in graph.items() if entry["class_type"] == "DreamMatcherMask")


def test_in_a_graph_mask_shows_the_words_that_both_prompts_share(host):
    graph = without_words("a photo of a red robot on grass", "an oil painting of a red robot sitting in the snow")
    result = host.run(graph)
    assert result.success, result.error()
    assert result.ui[mask_of(graph)]["text"] == [
        "subject_words: none given; the words that both prompts share are taken: red robot"]


def test_in_a_graph_mask_warns_where_the_prompts_share_nothing_and_is_silent_where_words_are_named(host, caplog):
    with caplog.at_level("WARNING"):
        graph = without_words("a photo of a robot", "a cat in the snow")
        result = host.run(graph)
    assert result.success, result.error()
    assert "share no word: 'robot' and 'cat'" in result.ui[mask_of(graph)]["text"][0]
    assert any("share no word" in record.getMessage() for record in caplog.records)
    graph = without_words("a photo of a robot", "a robot in the snow", ("robot", "robot"))
    result = host.run(graph)
    assert result.success and not result.ui.get(mask_of(graph), {}).get("text")


def test_of_several_prompts_without_words_those_with_the_shared_ones_take_part(host, toybox):
    subject, mask = host.nodes["DreamMatcherSubject"](), host.nodes["DreamMatcherMask"]()
    (_, reference), (one, target), (two, _), (three, _) = (subject.encode(toybox[1], text, "")["result"] for text in (
        "a photo of a red robot", "a red robot sitting in the snow", "standing, red robot", "a red cat"))
    settings = mask.make(reference, target, 0.4, "otsu")["result"][0]
    assert settings.target_subject.words == "red robot" and settings.target_subject.columns == (2, 3)
    prompts = [entry[0][1][KEY] for entry in (one, two, three)]
    assert [prompt.is_about(settings.target_subject) for prompt in prompts] == [True, True, False]
    assert prompts[1].limited({"red", "robot"}).words == "red robot"


def test_a_batch_with_prompts_of_its_own_is_refused_where_the_subject_stands_at_different_places(pack):
    bench = Bench(pack, random_unet())
    both = torch.cat([prompt(3)[0][0], prompt(3)[0][0].roll(2, 1)])
    marked = bench.subjects[1].encoded_as(both[0])
    model, trace = bench.apply(mask=bench.mask(target_subject=marked))
    sample(model, [[both, {}]], bench.negative, batch=2)
    assert any("prompts of their own" in reason for reason in trace.skipped)
    model, trace = bench.apply(mask=bench.mask(target_subject=marked))
    sample(model, [[both[:1].repeat(2, 1, 1), {}]], bench.negative, batch=2)
    assert trace.layers and not trace.skipped


@pytest.mark.parametrize("prompts, words", [
    (("a photo of a red robot", "a red robot, outdoors, forest"), "red robot"),
    (("a photo of a robot on grass", "two robots in the snow"), "robots")])
def test_easy_without_words_takes_what_both_share_but_for_medium_and_scene(host, pack, toybox, monkeypatch, prompts, words):
    monkeypatch.setattr(pack.module("dreammatcher.host.matching.easy"), "STEPS", 2)
    image = host.nodes["ToyboxReference"]().draw(1, "robot", 1, "grass")[0]
    outputs = host.nodes["DreamMatcherEasy"]().match(*toybox, image, *prompts, "", "")
    assert outputs["ui"]["text"] == [f"subject_words: none given; the words that both prompts share are taken: {words}"]
    assert outputs["result"][1][0][1][KEY].words == words
