"""SeFi-IDE in the host: training on one picture, prompts of stages, and sampling beside everything else."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from test_composition import PACKS, RANDOM
from world import same_weights, weights

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

SIZE = (12, 16)


@pytest.fixture(scope="module")
def image(host):
    return host.nodes["ToyboxReference"]().draw(3, "robot", 1, "grass")[0]


@pytest.fixture(scope="module")
def learn(host, toybox, image):
    def learned(steps=2, **chosen):
        given = dict(identifier="<me>", class_word="robot", reference_prompt="a photo of a robot", resolution=128, steps=steps,
                     rate=0.05, attention_weight=0.0, seed=4, learns="table", flip=False)
        return host.nodes["DreamMatcherSeFiTrain"]().learn(*toybox, image, **{**given, **chosen})[0]
    return learned


@pytest.fixture(scope="module")
def sefi(learn):
    with torch.inference_mode():
        return learn(6, batch=8)


def subject(pack, word: str, stages: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return pack.module("dreammatcher.sefi.learned").SeFi(
        *(0.4 * torch.randn(2, stages, 96, generator=generator)), {"word": word})


def draw(host, model, positive, negative, seed=3, steps=6, sampler="dpmpp_2m", cfg=4.0, batch=1):
    latent = {"samples": torch.zeros(batch, 4, *SIZE)}
    return host.nodes["KSampler"]().sample(model, seed, steps, cfg, sampler, "karras", positive, negative, latent)[0]["samples"]


@pytest.fixture
def world(host, toybox, sefi):
    """MODEL with SeFi Apply, its prompt, and the negative one."""
    node = host.nodes["DreamMatcherSeFiPrompt"]()
    positive, place = node.encode(toybox[1], "a photo of a <me> on grass", sefi)
    negative = host.nodes["CLIPTextEncode"]().encode(toybox[1], "")[0]
    model, = host.nodes["DreamMatcherSeFiApply"]().apply(toybox[0], sefi)
    return model, positive, negative, place


def test_one_stage_that_is_not_split_is_textual_inversion_bit_for_bit(pack, toybox, learn, image):
    one_picture = pack.module("dreammatcher.host.sefi.train").one_picture
    training_set = one_picture(image, "<me>", "robot", "a photo of a robot", 128, False)
    model = pack.module("dreammatcher.host.training.model").HostDenoiser(toybox[0], toybox[1], (16, 16))
    settings = pack.module("dreammatcher.training.settings")
    run = pack.module("dreammatcher.host.training.run")
    options, chosen = settings.TrainingOptions(), settings.TrainingSettings(4, 2, seed=4)
    with run.ready(*toybox, training_set, None, chosen, options.running) as work, torch.inference_mode(False):
        rows = {"<me>": pack.module("dreammatcher.training.textual_inversion").token_rows(model.rows_of("robot"), 1, 0.05)}
        recipe = pack.module("dreammatcher.training.recipe").SubjectRecipe(
            work.denoiser, work.subject_set, settings.ObjectiveSettings(), rows=rows)
        name = pack.module("dreammatcher.host.training.job_name").job_of("sefi equals textual inversion")
        run.run(recipe, chosen, name, options)
    staged = learn(4, stages=1, split=False, batch=2)
    assert torch.equal(staged.keys, rows["<me>"].rows.detach()) and torch.equal(staged.values, staged.keys)


def test_every_stage_learns_in_its_own_steps_alone_and_the_model_stays_as_it_is(toybox, learn, sefi):
    before = weights(toybox[0])
    few = learn(1, batch=1)
    start = learn(1, batch=1, rate=1e-7).keys
    moved = [(one - two).abs().max() > 0.01 for one, two in zip(few.keys, start)]  # all of them decay a little
    assert sum(moved) == 1, "one picture has one timestep"
    assert not torch.allclose(sefi.keys, sefi.values) and len(sefi.keys) == 5
    assert same_weights(toybox[0], before)


def test_the_network_learns_too_and_is_dropped(learn):
    first, later = learn(1, learns="network", rate=1e-3), learn(4, learns="network", rate=1e-3)
    assert first.keys.shape == later.keys.shape == (5, 96) and not torch.equal(first.keys, later.keys)
    assert torch.equal(later.keys, learn(4, learns="network", rate=1e-3).keys), "the same seed twice"


def denoiser_and_staged(pack, toybox, word: str, table: torch.Tensor, **chosen):
    model = pack.module("dreammatcher.host.training.model").HostDenoiser(toybox[0], toybox[1], (16, 16))
    loss = pack.module("dreammatcher.sefi.attention_loss").AttentionLoss("robot", **chosen)
    staged = pack.module("dreammatcher.sefi.recipe").Staged(model, word, [f"a photo of a {word}"], (table, table), True, loss)
    return model, staged


@pytest.mark.parametrize("chosen", [{}, {"subject_only": True}, {"reduction": "mean"}])
def test_the_attention_loss_is_nothing_when_the_word_is_its_class(pack, toybox, chosen):
    with torch.inference_mode(False), torch.enable_grad():
        model, staged = denoiser_and_staged(pack, toybox, "<me>", torch.zeros(5, 96), **chosen)
        table = model.rows_of("robot").expand(5, -1).clone()
        staged.table = (table, table)
        staged.predict(torch.randn(1, 4, 16, 16), torch.tensor([500]), None, {})
        assert float(staged.watching.loss()) == pytest.approx(0, abs=1e-9) and len(staged.watching.collected) >= 6
        staged.table = (table.flip(-1), table)
        staged.predict(torch.randn(1, 4, 16, 16), torch.tensor([500]), None, {})
        assert float(staged.watching.loss()) > 1e-5


def test_the_gradient_of_the_attention_loss_equals_finite_differences(pack, toybox):
    with torch.inference_mode(False), torch.enable_grad():
        table = (0.4 * torch.randn(5, 96, generator=torch.Generator().manual_seed(1))).requires_grad_()
        _, staged = denoiser_and_staged(pack, toybox, "<me>", table)
        noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))

        def loss():
            staged.predict(noisy, torch.tensor([500]), None, {})
            return staged.watching.loss()

        loss().backward()
        assert table.grad[2].any() and not table.grad[[0, 1, 3, 4]].any()
        place = int(table.grad[2].abs().argmax())
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                table[2, place] += sign * 0.02
                losses.append(float(loss()))
                table[2, place] -= sign * 0.02
        assert float(table.grad[2, place]) == pytest.approx((losses[0] - losses[1]) / 0.04, rel=0.05)


def test_the_loss_draws_the_word_s_attention_to_its_class_and_serves_textual_inversion_too(host, toybox, learn):
    free, drawn = learn(30, batch=4), learn(30, batch=4, attention_weight=100.0)
    word = learn(1, rate=1e-7).keys
    assert (drawn.keys - word).norm() < (free.keys - word).norm()
    pictures = torch.cat([host.nodes["ToyboxReference"]().draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])
    training_set = host.nodes["DreamMatcherTrainingSet"]().make("sks", "", "photo", 128, pictures)["result"][0]
    loss, = host.nodes["DreamMatcherSeFiLoss"]().make("robot", 100.0, "sum over patches", "all tokens")
    for name, chosen in (("TextualInversion", ("robot", 1, 10, 0.05, 0)), ("CustomDiffusion", ("robot", 10, 0.002, 0))):
        train = host.nodes[f"DreamMatcher{name}"]().learn
        plain, with_loss = (train(*toybox, training_set, *chosen, attention_loss=one)[2] for one in (None, loss))
        assert not torch.equal(plain.embeddings["sks"], with_loss.embeddings["sks"]), name


def test_a_stage_s_text_is_the_prompt_with_the_stage_s_vector(pack, host, toybox, sefi):
    positive, _ = host.nodes["DreamMatcherSeFiPrompt"]().encode(toybox[1], "a photo of a <me> on grass", sefi)
    texts = positive[0][1]["dreammatcher_texts"]
    known = pack.module("dreammatcher.host.text.new_words").with_new_words(toybox[1], {"<me>": sefi.keys[3][None]})
    expected = host.nodes["CLIPTextEncode"]().encode(known, "a photo of a <me> on grass")[0][0][0]
    assert [texts.at(t) for t in (0, 199, 200, 599.4, 600, 999, 1200)] == [0, 0, 1, 2, 3, 4, 4]
    assert torch.equal(texts.keys[3], expected) and not torch.equal(texts.values[3], expected)
    assert torch.equal(positive[0][0], texts.keys[2])


def test_prompts_are_read_by_stage_and_the_negative_one_never(host, toybox, sefi, world):
    model, positive, negative, _ = world
    seen, attn2 = [], toybox[0].model.diffusion_model.output_blocks[1][1].transformer_blocks[0].attn2

    def note(_, inputs, named):
        context = named.get("context", inputs[1] if len(inputs) > 1 else None)
        seen.append((context.clone(), named.get("value").clone()))

    hook = attn2.register_forward_pre_hook(note, with_kwargs=True)
    try:
        draw(host, model, positive, negative, steps=10)
    finally:
        hook.remove()
    texts = positive[0][1]["dreammatcher_texts"]
    used = set()
    for context, value in seen:
        for row_keys, row_values in zip(context, value):
            if torch.equal(row_keys, negative[0][0][0]):
                assert torch.equal(row_values, row_keys)
                continue
            number = next(number for number, keys in enumerate(texts.keys) if torch.equal(keys[0], row_keys))
            assert torch.equal(row_values, texts.values[number][0])
            used.add(number)
    assert used == {0, 1, 2, 3, 4}


def test_plain_prompts_are_left_alone_and_a_run_that_did_nothing_says_so(host, pack, toybox, sefi, world, monkeypatch):
    model, positive, negative, _ = world
    said = []
    monkeypatch.setattr(pack.module("dreammatcher.host.sefi.apply"), "tell", said.append)
    plain = host.nodes["CLIPTextEncode"]().encode(toybox[1], "a photo of a robot on grass")[0]
    assert torch.equal(draw(host, model, plain, negative), draw(host, toybox[0], plain, negative))
    assert len(said) == 1 and "no prompt was written with SeFi Prompt (DreamMatcher)" in said[0]
    assert not torch.equal(draw(host, model, positive, negative), draw(host, toybox[0], positive, negative)) and len(said) == 1
    empty, = host.nodes["DreamMatcherSeFiApply"]().apply(toybox[0], sefi, 0.0, 0.0)
    assert torch.equal(draw(host, empty, positive, negative), draw(host, toybox[0], positive, negative)) and len(said) == 2


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "heun", "lcm", "uni_pc"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_every_sampler_and_guidance_scale_works(host, world, sampler, cfg):
    model, positive, negative, _ = world
    assert torch.isfinite(draw(host, model, positive, negative, sampler=sampler, cfg=cfg)).all()


def test_a_batch_equals_its_pictures(host, world):
    model, positive, negative, _ = world
    both = draw(host, model, positive, negative, batch=2)
    alone = draw(host, model, positive, negative)
    assert close(both[:1], alone, RUN)


@pytest.mark.parametrize("name", PACKS)
def test_a_pack_works_in_front_and_behind(host, toybox, sefi, world, name):
    model, positive, negative, _ = world
    apply = host.nodes["DreamMatcherSeFiApply"]().apply
    front, behind = apply(PACKS[name](host, toybox[0]), sefi)[0], PACKS[name](host, model)
    results = [draw(host, patched, positive, negative) for patched in (front, behind)]
    assert all(torch.isfinite(out).all() for out in results)
    if name not in RANDOM:
        assert close(*results, roundings=RUN)


def test_two_subjects_of_other_stages_stand_in_one_prompt(host, pack, toybox):
    first, second = subject(pack, "<one>", 5), subject(pack, "<two>", 3, seed=1)
    positive, _ = host.nodes["DreamMatcherSeFiPrompt"]().encode(toybox[1], "a <one> and a <two> on grass", first, second)
    texts = positive[0][1]["dreammatcher_texts"]
    assert texts.ends == (199, 333, 399, 599, 666, 799, 999)
    apply, negative = host.nodes["DreamMatcherSeFiApply"]().apply, host.nodes["CLIPTextEncode"]().encode(toybox[1], "")[0]
    both = apply(apply(toybox[0], first)[0], second)[0]
    assert torch.isfinite(draw(host, both, positive, negative)).all()


def test_a_long_prompt_and_another_one_beside_it_keep_their_places(host, toybox, sefi, world):
    model, _, negative, _ = world
    encode = host.nodes["DreamMatcherSeFiPrompt"]().encode
    long, _ = encode(toybox[1], "a photo of a <me> on grass " + "grass " * 90, sefi)
    short, _ = encode(toybox[1], "a <me>", sefi)
    other = host.nodes["CLIPTextEncode"]().encode(toybox[1], "a red bird")[0]
    assert long[0][0].shape[1] == 154
    combined = host.nodes["ConditioningCombine"]().combine(long, host.nodes["ConditioningCombine"]().combine(short, other)[0])[0]
    for positive in (long, combined):
        assert torch.isfinite(draw(host, model, positive, negative)).all()
    left = host.nodes["ConditioningSetArea"]().append(short, 64, 96, 0, 0, 1.0)[0]
    assert not torch.equal(draw(host, model, [*left, *other], negative), draw(host, toybox[0], [*left, *other], negative))


def test_beside_dreammatcher_apply_both_act(host, pack, toybox, sefi, world, image):
    model, positive, negative, place = world
    latent = host.nodes["VAEEncode"]().encode(toybox[2], image)[0]
    reference = host.nodes["DreamMatcherInvert"]().invert(model, positive, negative, 10, "ddim_uniform", latent)[0]
    mask = host.nodes["DreamMatcherMask"]().make(place, place, 0.4, "otsu")[0]
    both = host.nodes["DreamMatcherApply"]().apply(model, reference, mask, 1.0, 0.0, 1.0, "")[0]
    assert not torch.equal(draw(host, both, positive, negative), draw(host, model, positive, negative))


def test_what_is_saved_is_loaded_and_reads_as_a_plain_embedding(host, model_folder, sefi):
    model_folder("embeddings")
    saved = host.nodes["DreamMatcherSeFiSave"]().save(sefi, "my robot")
    assert "Write <me>" not in saved["ui"]["text"][0] and "write <me> in SeFi Prompt (DreamMatcher)" in saved["ui"]["text"][0]
    loaded, = host.nodes["DreamMatcherSeFiLoad"]().load(saved["result"][0])
    assert torch.equal(loaded.keys, sefi.keys) and torch.equal(loaded.values, sefi.values) and loaded.word == "<me>"
    again = host.nodes["DreamMatcherSeFiSave"]().save(sefi, "my robot")["result"][0]
    assert again != saved["result"][0]


@pytest.mark.parametrize(("content", "said"), [
    (b"nonsense", "not a whole safetensors file"), ({"x": torch.zeros(1)}, "it holds x, not sefi.k and sefi.v"),
    ({"sefi.k": torch.zeros(5, 8), "sefi.v": torch.zeros(4, 8)}, "different shapes")])
def test_files_of_another_kind_are_named(host, content, said):
    from safetensors.torch import save_file

    folder = host.folder / "output" / "sefi"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wrong.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else save_file(content, path, {"format": "sefi-ide"})
    with pytest.raises(ValueError, match=f"wrong.safetensors.*{said}"):
        host.nodes["DreamMatcherSeFiLoad"]().load("wrong.safetensors")


@pytest.mark.parametrize(("chosen", "said"), [
    (dict(identifier=""), "identifier: it is empty"), (dict(class_word="dog"), "does not hold the class word 'dog'"),
    (dict(class_word="red robot", reference_prompt="a red robot"), "'red robot' is 2 tokens"),
    (dict(attention_weight=-1.0), "attention_weight"), (dict(stages=0), "stages: 0"), (dict(rate=2.0), "rate: 2.0 is outside")])
def test_training_that_cannot_be_is_refused_before_the_first_step(learn, chosen, said):
    with pytest.raises(ValueError, match=said):
        learn(**chosen)


def test_the_loss_is_refused_where_tokens_would_not_stand_in_the_same_places(host, toybox):
    pictures = torch.cat([host.nodes["ToyboxReference"]().draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])
    training_set = host.nodes["DreamMatcherTrainingSet"]().make("sks", "", "photo", 128, pictures)["result"][0]
    make, learn = host.nodes["DreamMatcherSeFiLoss"]().make, host.nodes["DreamMatcherTextualInversion"]().learn
    with pytest.raises(ValueError, match="vectors: 2 do not go with attention_loss"):
        learn(*toybox, training_set, "robot", 2, 1, 0.01, 0, attention_loss=make("robot", 1.0, "mean", "all tokens")[0])
    with pytest.raises(ValueError, match="'red robot' is 2 tokens"):
        learn(*toybox, training_set, "robot", 1, 1, 0.01, 0, attention_loss=make("red robot", 1.0, "mean", "all tokens")[0])


def test_several_pictures_are_refused(host, toybox, image):
    with pytest.raises(ValueError, match="2 pictures and SeFi-IDE learns from one"):
        host.nodes["DreamMatcherSeFiTrain"]().learn(*toybox, image.repeat(2, 1, 1, 1), "<me>", "robot", "a photo of a robot", 128,
                                                    1, 1e-3, 0.0, 0)


def test_a_prompt_without_the_word_and_vectors_of_another_model_are_named(host, pack, toybox, sefi):
    encode = host.nodes["DreamMatcherSeFiPrompt"]().encode
    with pytest.raises(ValueError, match="does not hold the word '<me>'"):
        encode(toybox[1], "a robot", sefi)
    with pytest.raises(ValueError, match="two subjects have the word '<me>'"):
        encode(toybox[1], "a <me>", sefi, sefi)
    wide = pack.module("dreammatcher.sefi.learned").SeFi(torch.zeros(5, 768), torch.zeros(5, 768), {"word": "<me>"})
    with pytest.raises(ValueError, match="vectors of 768 numbers and this model's words have 96"):
        encode(toybox[1], "a <me>", wide)


def test_a_sample_is_drawn_while_it_trains(pack, learn, monkeypatch):
    import comfy.utils

    shown, update = [], comfy.utils.ProgressBar.update_absolute

    def look(bar, value, total=None, preview=None):
        shown.extend([] if preview is None else [preview[1]])
        update(bar, value, total, None)

    options = pack.module("dreammatcher.training.settings").TrainingOptions(
        sample_prompt="a photo of a <me> on grass", sample_every=1)
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", look)
    learn(2, seed=21, options=options)
    assert len(shown) == 2
