"""Learning a subject in the graph, on Toybox: it works, it stops and goes on, and what it saves the stock loaders take."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from safetensors import safe_open
from world import same_weights, weights

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

STEPS = 4


def learn(host, model, clip, vae, training_set, name="DreamMatcherDreamBooth", **changes):
    chosen = dict(kind="LoRA", steps=STEPS, rate=1e-3, seed=1) if name == "DreamMatcherDreamBooth" else \
        dict(initial_word="robot", vectors=2, steps=STEPS, rate=1e-2, seed=1)
    return host.nodes[name]().learn(model, clip, vae, training_set, **{**chosen, **changes})


def drawn(host, model, clip, text="a photo of a sks robot on grass") -> torch.Tensor:
    positive, negative = (host.nodes["CLIPTextEncode"]().encode(clip, prompt)[0] for prompt in (text, ""))
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    return host.nodes["KSampler"]().sample(model, 5, 4, 5.0, "euler", "normal", positive, negative, latent)[0]["samples"]


@pytest.mark.parametrize("changes", [
    {}, {"kind": "full", "rate": 1e-4}, {"text_encoder": True}, {"kind": "full", "text_encoder": True, "rate": 1e-4},
    {"bfloat16": True}, {"batch": 2, "rank": 8}])
def test_dreambooth_learns_and_leaves_the_model_as_it_was(host, fresh, make_set, changes):
    model, clip, vae = fresh
    before, text = weights(model), {name: value.clone() for name, value in clip.cond_stage_model.state_dict().items()}
    plain = drawn(host, model, clip)
    learned_model, learned_clip, learned, loss = learn(host, model, clip, vae, make_set(), **changes)
    assert loss.shape[-1] == 3 and learned.lora and all(torch.isfinite(value).all() for value in learned.lora.values())
    assert not torch.equal(drawn(host, learned_model, learned_clip), plain)
    assert torch.equal(drawn(host, model, clip), plain) and same_weights(model, before)
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in text.items())


def test_a_model_in_half_precision_learns_too(host, fresh, make_set):
    model, clip, vae = fresh
    model.model.diffusion_model.half()
    model.model.diffusion_model.dtype = torch.float16
    learned = learn(host, model, clip, vae, make_set())[2].lora
    moved = [value for name, value in learned.items() if name.endswith("lora_up.weight")]
    assert all(torch.isfinite(value).all() and value.dtype == torch.float32 for value in moved)
    assert all(value.abs().max() > 0 for value in moved)


def test_the_same_seed_gives_the_same_result_and_another_does_not(host, fresh, make_set):
    first, again, other = (learn(host, *fresh, make_set(), seed=seed)[2].lora for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_run_that_the_user_stops_goes_on_when_it_is_queued_again(host, fresh, make_set, stopped_at, bfloat16):
    chosen = dict(seed=11, bfloat16=bfloat16, batch=1 + bfloat16)
    expected = learn(host, *fresh, make_set(), **chosen)[2].lora
    folder = host.folder / "output" / "dreammatcher" / "training"
    before = set(folder.glob("*.safetensors"))  # a test run that was killed may have left some
    with stopped_at(2, STEPS):
        learn(host, *fresh, make_set(), **chosen)
    states = list(set(folder.glob("*.safetensors")) - before)
    assert len(states) == 1
    resumed = learn(host, *fresh, make_set(), **chosen)[2].lora
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
    assert not states[0].exists(), "a finished run leaves no state"


def test_a_saved_lora_through_the_stock_loader_draws_the_trainers_own_picture(host, fresh, make_set, model_folder):
    model_folder("loras")
    model, clip, vae = fresh
    taught, text, learned, _ = learn(host, model, clip, vae, make_set(), text_encoder=True)
    name, = host.nodes["DreamMatcherSaveLearned"]().save(learned, "robot")["result"]
    loaded, loaded_text = host.nodes["LoraLoader"]().load_lora(model, clip, name, 1.0, 1.0)
    ours, theirs, plain = drawn(host, taught, text), drawn(host, loaded, loaded_text), drawn(host, model, clip)
    assert (ours - theirs).norm() < 0.02 * (ours - plain).norm(), "half precision must be all that differs"
    with safe_open(host.folder_paths.get_full_path("loras", name), "pt") as file:
        assert "lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in file.keys()  # noqa: SIM118
        assert file.metadata()["subject"] == "sks robot"
    second, = host.nodes["DreamMatcherSaveLearned"]().save(learned, "robot")["result"]
    assert second != name, "a file that is there is not overwritten"


def test_strength_scales_what_was_learned(host, fresh, make_set):
    model, clip, vae = fresh
    taught, text, learned, _ = learn(host, model, clip, vae, make_set(), kind="full", rate=1e-4)
    apply = host.nodes["DreamMatcherApplyLearned"]().apply
    plain, whole = drawn(host, model, clip), drawn(host, taught, text)
    assert torch.equal(drawn(host, *apply(model, clip, learned, 1.0, 1.0)), whole)
    assert close(drawn(host, *apply(model, clip, learned, 0.0, 0.0)), plain, RUN)
    half = drawn(host, *apply(model, clip, learned, 0.5, 0.5))
    assert 0 < (half - plain).norm() < (whole - plain).norm()


def test_a_lora_on_the_model_is_seen_and_not_saved(host, fresh, make_set):
    model, clip, vae = fresh
    key = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_v.weight"
    patched = model.clone()
    patched.add_patches({key: (0.3 * torch.eye(128),)}, 1.0)
    bare = learn(host, model, clip, vae, make_set())[2].lora
    beside = learn(host, patched, clip, vae, make_set())[2].lora
    name = next(name for name in bare if name.endswith("lora_up.weight"))
    assert not torch.equal(bare[name], beside[name]) and (beside[name] - bare[name]).abs().max() < 0.01


def test_a_new_word_is_learned_and_read_by_the_stock_prompt(host, fresh, make_set, model_folder):
    model_folder("embeddings")
    model, clip, vae = fresh
    same, _, learned, _ = learn(host, model, clip, vae, make_set(template="object"), "DreamMatcherTextualInversion")
    assert same is model and learned.embeddings["sks"].shape == (2, 96)
    file, = host.nodes["DreamMatcherSaveLearned"]().save(learned, "mine")["result"]
    reloaded = host.nodes["ToyboxLoader"]().load()[1]
    named = drawn(host, model, reloaded, f"a photo of a embedding:{file.removesuffix('.safetensors')} on grass")
    assert not torch.equal(named, drawn(host, model, reloaded, "a photo of a robot on grass"))


@pytest.mark.parametrize("sizes", [True, False])
def test_custom_diffusion_learns_keys_values_and_a_word_and_saves_both(host, fresh, make_set, sizes, model_folder):
    model_folder("loras")
    model_folder("embeddings")
    model, clip, vae = fresh
    before = weights(model)
    taught, text, learned, _ = host.nodes["DreamMatcherCustomDiffusion"]().learn(
        model, clip, vae, make_set(identifier="<new1>"), "robot", STEPS, 1e-3, 1, prior_set=make_set(identifier=""), sizes=sizes)
    assert {name.rsplit("_", 1)[1] for name in learned.lora} == {"k.diff", "v.diff"} and "<new1>" in learned.embeddings
    assert same_weights(model, before) and not torch.equal(drawn(host, taught, text), drawn(host, model, clip))
    done = host.nodes["DreamMatcherSaveLearned"]().save(learned, "new1")
    assert "Load LoRA" in done["ui"]["text"][0] and "Write embedding:new1" in done["ui"]["text"][0]
    loaded, _ = host.nodes["LoraLoader"]().load_lora(model, clip, done["result"][0], 1.0, 0.0)
    ours, theirs, plain = drawn(host, taught, text), drawn(host, loaded, clip), drawn(host, model, clip)
    assert (ours - theirs).norm() < 0.02 * (ours - plain).norm()


def test_the_word_of_custom_diffusion_moves_at_a_rate_of_its_own(host, fresh, make_set):
    def learned(**rates):
        return host.nodes["DreamMatcherCustomDiffusion"]().learn(*fresh, make_set(identifier="<new1>"), "robot", 1, 1e-3, 1,
                                                                 sizes=False, **rates)[2]

    same, twice, named = learned(), learned(word_rate=2e-3), learned(word_rate=1e-3)
    start = learned(word_rate=1e-7).embeddings["<new1>"]
    moved = [(one.embeddings["<new1>"] - start).abs().max() for one in (same, twice)]
    assert moved[1] / moved[0] == pytest.approx(2.0, rel=1e-2)
    assert torch.equal(same.embeddings["<new1>"], named.embeddings["<new1>"])
    assert same.lora.keys() == twice.lora.keys()
    assert all(torch.equal(value, twice.lora[name]) for name, value in same.lora.items())


def test_pictures_of_the_class_are_learned_beside_the_subjects(host, fresh, make_set):
    prior = make_set(identifier="", class_word="robot")
    with_prior, without = (learn(host, *fresh, make_set(), prior_set=one)[2].lora for one in (prior, None))
    assert any(not torch.equal(value, with_prior[name]) for name, value in without.items())


def test_matching_goes_on_top_of_what_was_learned(host, fresh, make_set, pack):
    model, clip, vae = fresh
    taught, text, _, _ = learn(host, model, clip, vae, make_set())
    reference, _ = host.nodes["ToyboxReference"]().draw(3, "robot", 1, "grass")
    easy = host.nodes["DreamMatcherEasy"]()
    monkey = pytest.MonkeyPatch()
    monkey.setattr(pack.module("dreammatcher.host.matching.easy"), "STEPS", 4)
    matched, positive, negative, trace = easy.match(
        taught, text, vae, reference, "a photo of a robot", "a photo of a sks robot", "", "robot")["result"]
    monkey.undo()
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    host.nodes["KSampler"]().sample(matched, 5, 4, 5.0, "euler", "normal", positive, negative, latent)
    assert trace.why_nothing_matched() == ""


@pytest.mark.parametrize("wrong, said", [
    (dict(images=torch.zeros(2, 32, 32, 3)), "32x32 pixels, under 64"),
    (dict(identifier=" ", class_word=""), "both are empty"),
    (dict(captions="a robot"), "1 lines for 2 pictures"),
    (dict(captions="a sks robot\na robot"), "'a robot' does not hold the identifier 'sks'"),
    (dict(masks=torch.ones(1, 64, 64)), "paint them on the pictures themselves"),
    (dict(masks=torch.ones(3, 128, 128)), "there are 3 for 2 pictures"),
    (dict(images=torch.full((2, 128, 128, 5), 0.5)), "images: an IMAGE is")])
def test_a_set_that_cannot_be_learned_from_is_named_before_the_first_step(make_set, wrong, said):
    with pytest.raises(ValueError, match=said):
        make_set(**wrong)


@pytest.mark.parametrize("name, chosen, said", [
    ("DreamMatcherDreamBooth", {"rate": 1.5}, "rate: 1.5 is outside"), ("DreamMatcherDreamBooth", {"steps": 0}, "steps: 0"),
    ("DreamMatcherDreamBooth", {"kind": "half"}, "kind: 'half'"), ("DreamMatcherTextualInversion", {"vectors": 0}, "vectors: 0"),
    ("DreamMatcherTextualInversion", {"initial_word": " "}, "initial_word: it has no token")])
def test_choices_that_cannot_be_trained_with_are_named(host, fresh, make_set, name, chosen, said):
    with pytest.raises(ValueError, match=said):
        learn(host, *fresh, make_set(), name, **chosen)


def test_a_prior_that_names_the_subject_and_masks_that_are_not_there_are_refused(host, fresh, make_set):
    with pytest.raises(ValueError, match="holds the identifier 'sks'"):
        learn(host, *fresh, make_set(), prior_set=make_set())
    with pytest.raises(ValueError, match="masked: the training set has no masks"):
        learn(host, *fresh, make_set(), masked=True)


def test_a_prior_needs_the_class_and_a_word_needs_an_identifier(host, fresh, make_set):
    with pytest.raises(ValueError, match="class_word: it is empty in the training set"):
        learn(host, *fresh, make_set(class_word=""), prior_set=make_set(identifier=""))
    with pytest.raises(ValueError, match="identifier: it is empty"):
        learn(host, *fresh, make_set(identifier=""), "DreamMatcherTextualInversion")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 200, "a\nb"])
def test_a_name_that_is_no_file_name_is_refused(host, pack, name):
    learned = pack.module("dreammatcher.training.export").Learned({"a.diff": torch.zeros(2)})
    with pytest.raises(ValueError, match="is no name for a file"):
        host.nodes["DreamMatcherSaveLearned"]().save(learned, name)


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_clip_of_a_textual_inversion_reads_the_word_as_the_saved_embedding(host, fresh, make_set, vectors):
    model, clip, vae = fresh
    _, spoken, learned, _ = learn(host, model, clip, vae, make_set(), "DreamMatcherTextualInversion", vectors=vectors)
    rows = learned.embeddings["sks"]

    def encode(clip, text):
        return host.nodes["CLIPTextEncode"]().encode(clip, text)[0][0][0]

    host.nodes["DreamMatcherSaveLearned"]().save(learned, f"spoken_{vectors}")
    again = host.nodes["ToyboxLoader"]().load()[1]
    for text in ("a photo of a sks robot on grass", "a (sks:1.3) robot and a sks cat", "two robots, risks"):
        assert close(encode(spoken, text), encode(again, text.replace("sks", f"embedding:spoken_{vectors}"))
                           if "risks" not in text else encode(clip, text), RUN), text
    assert not torch.equal(encode(spoken, "a sks robot"), encode(clip, "a sks robot"))
    assert len(rows) == vectors and spoken is not clip and type(clip.tokenizer).__name__ != "NewWords"


def test_words_learned_one_after_the_other_stand_in_one_prompt(host, fresh, make_set, pack):
    _, clip, _ = fresh
    with_new_words = pack.module("dreammatcher.host.text.new_words").with_new_words
    one, two = torch.randn(1, 96), torch.randn(2, 96)
    both = with_new_words(with_new_words(clip, {"<toy>": one}), {"<pet>": two})
    tokens = [token for token, *_ in both.tokenize("a <toy> and sks and a <pet> robot")["l"][0]]
    vectors = [token for token in tokens if torch.is_tensor(token)]
    assert torch.equal(torch.stack(vectors), torch.cat([one, two]))
    marker = clip.tokenize("sks")["l"][0][1][0]
    assert sum(not torch.is_tensor(token) and token == marker for token in tokens) == 1, "the text's own sks stays"


def vectors_in(clip, text: str) -> list[int]:
    """Places of vectors among a prompt's tokens."""
    return [place for place, (token, *_) in enumerate(clip.tokenize(text)["l"][0]) if torch.is_tensor(token)]


def test_a_clone_of_a_clip_keeps_its_learned_words(host, fresh, pack):
    clip = pack.module("dreammatcher.host.text.new_words").with_new_words(fresh[1], {"<toy>": torch.randn(2, 96)})
    assert vectors_in(clip.clone(), "a <toy> robot") == vectors_in(clip, "a <toy> robot") == [2, 3]
    stopped = host.nodes["CLIPSetLastLayer"]().set_last_layer(clip, -2)[0]
    assert vectors_in(stopped, "a <toy> robot") == [2, 3]


@pytest.mark.parametrize("text, places", [
    ("a Sks and a <toy> robot", [5, 6]), ("SKS <TOY>", [2, 3]), ("sks sks <toy> sks", [3, 4]),
    ("a <toy>, (<toy>:1.2)", [2, 3, 5, 6])])
def test_vectors_stand_where_their_word_does_whatever_else_is_in_the_prompt(fresh, pack, text, places):
    clip = pack.module("dreammatcher.host.text.new_words").with_new_words(fresh[1], {"<toy>": torch.randn(2, 96)})
    assert vectors_in(clip, text) == places


def test_a_file_whose_name_holds_the_word_is_left_to_the_host(host, fresh, make_set, pack, model_folder):
    from safetensors.torch import save_file

    folder = model_folder("embeddings")
    save_file({"emb_params": torch.ones(1, 96)}, folder / "sks.safetensors")
    clip = host.nodes["ToyboxLoader"]().load()[1]
    spoken = pack.module("dreammatcher.host.text.new_words").with_new_words(clip, {"<toy>": torch.zeros(1, 96)})
    tokens = [token for token, *_ in spoken.tokenize("embedding:sks <toy>")["l"][0] if torch.is_tensor(token)]
    assert [float(token.mean()) for token in tokens] == [1.0, 0.0]


def test_a_second_word_is_learned_on_a_clip_that_knows_the_first(host, fresh, make_set):
    model, clip, vae = fresh
    first = learn(host, model, clip, vae, make_set(), "DreamMatcherTextualInversion")
    again = learn(host, first[0], first[1], vae, make_set(), "DreamMatcherTextualInversion", initial_word="sks")
    other = learn(host, first[0], first[1], vae, make_set(identifier="<toy>"), "DreamMatcherTextualInversion")
    assert again[2].embeddings["sks"].shape == (2, 96)
    assert len(vectors_in(other[1], "a sks and a <toy>")) == 4


def test_captions_must_hold_the_identifier_as_a_word(make_set):
    with pytest.raises(ValueError, match="does not hold the identifier 'sks'"):
        make_set(captions="two sksdogs\na sks dog")


def test_a_word_of_another_width_is_refused(fresh, pack):
    with pytest.raises(ValueError, match="vectors of 768 numbers and this model's words have 96"):
        pack.module("dreammatcher.host.text.new_words").with_new_words(fresh[1], {"<toy>": torch.randn(1, 768)})


def test_a_learned_word_can_name_the_subject_of_a_match(fresh, pack):
    clip = pack.module("dreammatcher.host.text.new_words").with_new_words(fresh[1], {"<toy>": torch.randn(2, 96)})
    subject = pack.module("dreammatcher.host.text.conditioning").subject_of(clip, "a photo of a <toy> robot", "<toy> robot")
    assert subject.columns == (5, 6, 7)
