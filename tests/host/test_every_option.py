"""Every input of every trainer does something: switching it changes what is learned or what is shown, or it is refused; with and
without gradient checkpointing, which changes nothing of what is learned and keeps less for the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from kept_memory import kept_for_the_gradient
from test_two_text_encoders import two_encoders
from world import family_unet

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

USUAL = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
             min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again",
             gradient_checkpointing=False, keep_minutes=10.0, keep_every=0, run_name="", sheet_prompts="",
             when_it_differs="begin anew", keep_state=False, records="none")
#: of Training Options: another value of everything that changes what is learned
LEARNED = {"optimiser": "Adafactor", "schedule": "linear", "warmup": 2, "weight_decay": 0.9, "clip_norm": 1e-4, "accumulate": 2,
           "average": 0.5, "min_snr_gamma": 0.01}
#: and of the others, each of which has a test of its own
SHOWN = {"lora_alpha", "sample_prompt", "sample_every", "when_stopped", "gradient_checkpointing", "keep_minutes", "keep_every",
         "run_name", "sheet_prompts", "when_it_differs", "keep_state", "records"}


#: what Training Details has, as it is without it
PLAIN = dict(text_rate=0.0, text_until=1.0, attention=True, feed_forward=False, projections=False, convolutions=False, blocks="",
             rank_dropout=0.0, noise_offset=0.0, loss="squared", huber_c=0.1, huber_schedule="snr", timesteps="uniform",
             caption_dropout=0.0, caption_shuffle=False, keep_tags=1, allow_one_picture=False, algorithm="LoRA")
TAGS = "\n".join(("sks robot, grass, red, day", "sks robot, blue, toy, two", "sks robot, a, bee, in, oil"))
#: another value of each, and what it needs beside it to matter
DETAILS = {"text_rate": 1e-4, "text_until": 0.5, "attention": False, "feed_forward": True, "projections": True,
           "convolutions": True, "blocks": "MID", "rank_dropout": 0.5, "noise_offset": 0.3, "loss": "Huber", "huber_c": 0.5,
           "huber_schedule": "constant", "timesteps": "late", "caption_dropout": 0.9, "caption_shuffle": True, "keep_tags": 0,
           "allow_one_picture": True, "algorithm": "LoHa"}
BESIDE = {"attention": {"feed_forward": True}, "huber_c": {"loss": "Huber"}, "huber_schedule": {"loss": "smooth L1"},
          "keep_tags": {"caption_shuffle": True}}
OF_TEXT, OF_LORA = {"text_rate", "text_until"}, {"attention", "feed_forward", "projections", "convolutions", "blocks",
                                                 "rank_dropout", "algorithm"}
#: details that a method refuses; SeFi-IDE takes one picture anyway
REFUSED = {"DreamBooth LoRA": set(), "DreamBooth full": OF_LORA, "Textual Inversion": {*OF_TEXT, *OF_LORA, "caption_dropout"},
           "Custom Diffusion": {*OF_TEXT, *OF_LORA}, "ViCo": {*OF_TEXT, *OF_LORA},
           "SeFi-IDE": {*OF_TEXT, *OF_LORA, "caption_dropout"}}


@dataclass(frozen=True)
class Trainer:
    """A node, what it is given, and another value of each of its inputs; ``beside``: what an input needs to matter."""

    node: str
    given: Mapping[str, object]
    others: Mapping[str, object]
    beside: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


SOURCES = {"model": "another", "clip": "another", "vae": "another", "training_set": "another"}
COMMON = {"steps": 3, "seed": 8, "batch": 2, "bfloat16": True}
PRIOR = {"prior_weight": {"prior_set": "there"}}
DREAMBOOTH = dict(steps=2, rate=1e-3, seed=1)
DREAMBOOTH_OTHERS = {**SOURCES, **COMMON, "rate": 2e-3, "prior_set": "there", "prior_weight": 3.0, "text_encoder": True,
                     "masked": True}
MASKED = {"masked": {"training_set": "masked"}}
LOSS = {"class_word": "bird", "attention_weight": 300.0, "reduction": "mean", "compared": "the word's own"}
TRAINERS = {
    "DreamBooth LoRA": Trainer("DreamBooth", {**DREAMBOOTH, "kind": "LoRA"}, {**DREAMBOOTH_OTHERS, "kind": "full", "rank": 2,
                                                                       "begin_from": "a lora"},
                               {**PRIOR, **MASKED}),
    "DreamBooth full": Trainer("DreamBooth", {**DREAMBOOTH, "kind": "full"},
                               {**DREAMBOOTH_OTHERS, "kind": "LoRA", "begin_from": "a lora"},
                               {**PRIOR, **MASKED}),
    "Textual Inversion": Trainer(
        "TextualInversion", dict(initial_word="robot", vectors=1, steps=2, rate=1e-2, seed=1),
        {**SOURCES, **COMMON, "initial_word": "bird", "vectors": 2, "rate": 2e-2, "attention_loss": "there",
         "begin_from": "a word"}),
    "Custom Diffusion": Trainer(
        "CustomDiffusion", dict(initial_word="robot", steps=2, rate=1e-3, seed=1, batch=1, sizes=False),
        {**SOURCES, **COMMON, "initial_word": "bird", "rate": 2e-3, "prior_set": "there", "prior_weight": 3.0, "sizes": True,
         "attention_loss": "there", "word_rate": 1e-2, "begin_from": "a lora"}, PRIOR),
    "ViCo": Trainer(
        "ViCoTrain", dict(initial_word="robot", steps=2, word_rate=1e-2, block_rate=1e-3, seed=1, batch=1, regularisation=0.01),
        {**SOURCES, **COMMON, "initial_word": "bird", "word_rate": 2e-2, "block_rate": 2e-3, "regularisation": 10.0,
         "masked": False, "zero_start": True}),
    "SeFi-IDE": Trainer(
        "SeFiTrain", dict(image="own", identifier="<me>", class_word="robot", reference_prompt="a photo of a robot",
                          resolution=64, steps=2, rate=1e-2, attention_weight=100.0, seed=1),
        {**{name: value for name, value in SOURCES.items() if name != "training_set"}, **COMMON, "image": "another",
         "identifier": "robot2", "class_word": "bird", "reference_prompt": "a robot on grass", "resolution": 128, "rate": 2e-2,
         "attention_weight": 1.0, "stages": 3, "split": False, "learns": "table", "flip": False, "reduction": "mean",
         "compared": "the word's own"},
        {"class_word": {"reference_prompt": "a robot and a bird"}}),
}
#: inputs that concern another kind of the same node
NOT_HERE = {"DreamBooth full": {"rank"}}
#: inputs that name the result and do not change its numbers
NAMES = {"SeFi-IDE": {"identifier"}}


@pytest.fixture(scope="module")
def learn(host, pack):
    """Trains on Toybox at 64 pixels; tensors by name of what was learned. The same choices train once."""
    with torch.inference_mode():
        model, clip, vae = host.nodes["ToyboxLoader"]().load()
        draw, make = host.nodes["ToyboxReference"]().draw, host.nodes["DreamMatcherTrainingSet"]().make
        drawn = [draw(3, "robot", pose, "grass") for pose in (1, 2, 3)]
        pictures, masks = (torch.cat([one[part] for one in drawn])[:, ::2, ::2] for part in (0, 1))
        sets = {None: make("sks", "robot", "photo", 64, pictures)["result"][0],
                "another": make("sks", "robot", "photo", 64, pictures[:2])["result"][0],
                "masked": make("sks", "robot", "photo", 64, pictures, masks)["result"][0],
                "prior": make("", "robot", "photo", 64, pictures.flip(2))["result"][0],
                "tags": make("sks", "robot", "photo", 64, pictures, captions=TAGS)["result"][0],
                "one": make("sks", "robot", "photo", 64, pictures[:1])["result"][0]}
        loss, = host.nodes["DreamMatcherSeFiLoss"]().make("robot", 100.0, "sum over patches", "all tokens")
        other_model, = host.nodes["ModelSamplingDiscrete"]().patch(model, "eps", True)
        other_clip, = host.nodes["CLIPSetLastLayer"]().set_last_layer(clip, -2)

    export = pack.module("dreammatcher.training.export")
    keys, generator = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", torch.Generator().manual_seed(3)
    width = model.model.diffusion_model.state_dict()["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape
    lora = export.Learned({f"{keys}.lora_down.weight": torch.randn(2, width[1], generator=generator),
                           f"{keys}.lora_up.weight": torch.randn(width[0], 2, generator=generator) / 10})
    word = export.Learned({}, {"sks": torch.randn(1, 96, generator=generator)})

    class Louder:
        """A VAE whose latents are a little larger."""

        def encode(self, picture):
            return 1.1 * vae.encode(picture)

    def value(name: str, chosen: object) -> object:
        meant = {("model", None): model, ("model", "another"): other_model, ("clip", None): clip, ("clip", "another"): other_clip,
                 ("vae", None): vae, ("vae", "another"): Louder(), ("prior_set", "there"): sets["prior"],
                 ("attention_loss", "there"): loss, ("image", "own"): pictures[:1], ("image", "another"): pictures[1:2],
                 ("begin_from", "a lora"): lora, ("begin_from", "a word"): word}
        return sets[chosen] if name == "training_set" else meant.get((name, chosen), chosen) if isinstance(
            chosen, (str, type(None))) else chosen

    @cache
    def trained(name: str, changes: tuple, options: tuple, details: tuple) -> dict[str, torch.Tensor]:
        trainer = TRAINERS[name]
        inputs = host.nodes[f"DreamMatcher{trainer.node}"].INPUT_TYPES()
        chosen = {**{source: None for source in ("model", "clip", "vae", "training_set") if source in inputs["required"]},
                  **trainer.given, **dict(changes)}
        options_node, = host.nodes["DreamMatcherTrainingOptions"]().make(**{**USUAL, **dict(options)})
        if details:
            options_node, = host.nodes["DreamMatcherTrainingDetails"]().make(**{**PLAIN, **dict(details)}, options=options_node)
        with torch.inference_mode():
            done = host.nodes[f"DreamMatcher{trainer.node}"]().learn(
                **{name: value(name, one) for name, one in chosen.items()}, options=options_node)
        return tensors_of(done)

    def learned(name: str, changes: Mapping = {}, options: Mapping = {}, details: Mapping = {}) -> dict[str, torch.Tensor]:
        return trained(name, *(tuple(sorted(each.items())) for each in (changes, options, details)))

    # the estimate of memory is most of so short a training, and has tests of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, settings, *_, **__: settings)
        yield learned


def tensors_of(done: tuple) -> dict[str, torch.Tensor]:
    for result in done:
        if hasattr(result, "lora"):
            return {**result.lora, **result.embeddings}
        if hasattr(result, "rows"):
            return {**result.tensors, "word": result.rows}
        if hasattr(result, "keys") and hasattr(result, "values") and torch.is_tensor(result.keys):
            return {"keys": result.keys, "values": result.values}
    raise AssertionError("nothing was learned")


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() != other.keys() or any(value.shape != other[name].shape or not torch.equal(value, other[name])
                                             for name, value in one.items())


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], share: float = 0.05) -> bool:
    """Up to what rounding does to Adam, which divides by the gradient: where that is next to nothing, rounding is all of it."""
    return one.keys() == other.keys() and all(
        (value - other[name]).norm() <= share * value.norm() + 1e-6 * value.numel() ** 0.5 for name, value in one.items())


@pytest.mark.parametrize("name", TRAINERS)
def test_no_input_is_forgotten_here(host, name):
    declared = host.nodes[f"DreamMatcher{TRAINERS[name].node}"].INPUT_TYPES()
    wanted = {*declared["required"], *declared["optional"]} - {"options"} - NOT_HERE.get(name, set())
    assert wanted == set(TRAINERS[name].others)
    options = host.nodes["DreamMatcherTrainingOptions"].INPUT_TYPES()
    assert {*options["required"], *options["optional"]} == {*LEARNED, *SHOWN} == set(USUAL)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TRAINERS)
def test_every_input_changes_what_is_learned(learn, name, checkpointing):
    trainer, options = TRAINERS[name], {"gradient_checkpointing": checkpointing}
    same = []
    for changed, other in trainer.others.items():
        if changed in NAMES.get(name, ()):
            continue
        beside = trainer.beside.get(changed, {})
        before, after = learn(name, beside, options), learn(name, {**beside, changed: other}, options)
        if not differ(before, after):
            same.append(changed)
    assert not same


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TRAINERS)
def test_every_training_option_changes_what_is_learned(learn, name, checkpointing):
    options, before = {"gradient_checkpointing": checkpointing}, learn(name, options={"gradient_checkpointing": checkpointing})
    same = [changed for changed, other in LEARNED.items() if not differ(before, learn(name, options={**options, changed: other}))]
    assert not same


def given_for(name: str, detail: str) -> dict[str, object]:
    """Other inputs of a trainer without which a detail is of no account."""
    if name == "SeFi-IDE":
        return {"reference_prompt": "a robot, grass, red, day"}
    chosen = {"training_set": "tags"} if detail in ("caption_shuffle", "keep_tags") else {}
    return {**chosen, "text_encoder": True} if detail in OF_TEXT and name.startswith("DreamBooth") else chosen


@pytest.mark.parametrize("name", TRAINERS)
def test_every_training_detail_changes_what_is_learned_or_is_refused_by_its_name(host, learn, name):
    declared = host.nodes["DreamMatcherTrainingDetails"].INPUT_TYPES()
    assert {*declared["required"], *declared["optional"]} - {"options"} == {*PLAIN} == {*DETAILS}
    same = []
    for changed, other in DETAILS.items():
        if changed == "allow_one_picture":  # has a test of its own
            continue
        given, beside = given_for(name, changed), BESIDE.get(changed, {})
        if changed in REFUSED[name]:
            with pytest.raises(ValueError, match=f"{changed}.* cannot use this option of Training Details .DreamMatcher."):
                learn(name, given, {}, {**beside, changed: other})
        elif not differ(learn(name, given, {}, beside), learn(name, given, {}, {**beside, changed: other})):
            same.append(changed)
    assert not same


@pytest.mark.parametrize("name", TRAINERS)
def test_training_details_that_are_left_alone_change_nothing(learn, name):
    assert not differ(learn(name), learn(name, details=PLAIN))


@pytest.mark.parametrize("detail", ["text_until", "rank_dropout", "convolutions", "caption_dropout", "algorithm"])
def test_training_details_do_the_same_with_checkpointing(learn, detail):
    given = given_for("DreamBooth LoRA", detail)
    one, other = (learn("DreamBooth LoRA", given, {"gradient_checkpointing": on}, {detail: DETAILS[detail]})
                  for on in (False, True))
    assert alike(one, other)


def test_tags_that_are_not_there_cannot_be_shuffled(learn):
    with pytest.raises(ValueError, match="caption_shuffle: no caption of the training set has two tags"):
        learn("DreamBooth LoRA", details={"caption_shuffle": True})


@pytest.mark.parametrize("name", [name for name in TRAINERS if name != "SeFi-IDE"])
def test_one_picture_is_learned_from_where_that_is_allowed_and_the_node_says_what_it_costs(pack, learn, monkeypatch, name):
    said = []
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "tell", said.append)
    with pytest.raises(ValueError, match="training_set: it has one picture.* turn allow_one_picture on"):
        learn(name, {"training_set": "one"})
    assert learn(name, {"training_set": "one"}, {}, {"allow_one_picture": True})
    assert any("What this costs: background, light, pose and framing are learned" in text for text in said)


@pytest.mark.parametrize("name", TRAINERS)
def test_checkpointing_changes_nothing_of_what_is_learned_whatever_else_is_chosen(learn, name):
    """The results would differ if an option reached the gradient only without checkpointing."""
    trainer, parted = TRAINERS[name], []
    for changed, other in trainer.others.items():
        beside = {**trainer.beside.get(changed, {}), changed: other}
        if changed != "bfloat16" and not alike(*(learn(name, beside, {"gradient_checkpointing": on}) for on in (False, True))):
            parted.append(changed)
    assert not parted


def gradients(pack, train, checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of the first step, and the bytes that autograd keeps for them beside the model's weights."""
    loop, gradient_of, taken = pack.module("dreammatcher.training.loop"), {}, []

    class Noting(loop.Training):
        def _loss(self):
            model = self.recipe.model.denoiser
            with kept_for_the_gradient() as kept:
                loss = super()._loss()
            taken.append(kept.beside(model.unet.values(), model.text.values()))
            return loss

        def _clipped(self):
            gradient_of.update({name: value.grad.clone() for name, value in self.recipe.learned.named_parameters()
                                if value.grad is not None})
            return super()._clipped()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Training", Noting)
        train(checkpointing)
    return gradient_of, taken[-1]


TERMS = {"DreamBooth LoRA": {"text_encoder": True, "prior_set": "there"}, "DreamBooth full": {"batch": 8}, "Textual Inversion":
         {"attention_loss": "there"}, "Custom Diffusion": {"attention_loss": "there"}, "ViCo": {"regularisation": 10.0},
         "SeFi-IDE": {}}


@pytest.mark.parametrize("name", TRAINERS)
def test_checkpointing_gives_the_same_gradient_and_keeps_less_for_it(pack, learn, name):
    counter = iter((101, 102))  # a training of its own each time

    def train(checkpointing: bool) -> None:
        learn(name, {**TERMS[name], "steps": 1}, {"gradient_checkpointing": checkpointing, "keep_minutes": next(counter)})

    (plain, much), (again, little) = (gradients(pack, train, on) for on in (False, True))
    assert plain.keys() == again.keys() and little < 0.8 * much
    for part, value in plain.items():
        assert (value - again[part]).norm() <= 1e-4 * value.norm() + 1e-9, part


@pytest.mark.parametrize("checkpointing", [False, True])
def test_vico_s_regularisation_reaches_the_word(pack, learn, checkpointing):
    """It is linear in its weight: what it adds to the gradient at 10 is ten times what it adds at 1."""
    def word(weight: float) -> torch.Tensor:
        def train(on: bool) -> None:
            learn("ViCo", {"regularisation": weight, "steps": 1}, {"gradient_checkpointing": on, "keep_minutes": 200 + weight})

        return gradients(pack, train, checkpointing)[0]["word.rows"]

    none, one, ten = (word(weight) for weight in (0.0, 1.0, 10.0))
    assert (one - none).norm() > 1e-3 * none.norm()
    assert ((ten - none) - 10 * (one - none)).norm() < 1e-3 * (ten - none).norm()


def test_a_lora_s_alpha_scales_it_and_other_trainings_have_none(learn):
    assert differ(learn("DreamBooth LoRA"), learn("DreamBooth LoRA", options={"lora_alpha": 1.0}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_text_encoders_both_learn_with_every_option(host, pack, tmp_path, checkpointing):
    """SDXL's: each choice moves the factors of both encoders, or the word's part in both."""
    model, clip = family_unet("SDXL", context=1320), two_encoders(tmp_path)
    draw, make = host.nodes["ToyboxReference"]().draw, host.nodes["DreamMatcherTrainingSet"]().make
    pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])
    training_set = make("sks", "robot", "photo", 64, pictures[:, ::2, ::2])["result"][0]

    class Flat:
        def encode(self, picture):
            return torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 8)[:, [0, 1, 2, 0]]

    def trained(node: str, given: dict, changed: dict) -> dict[str, torch.Tensor]:
        chosen = {**USUAL, "gradient_checkpointing": checkpointing, **changed}
        options, = host.nodes["DreamMatcherTrainingOptions"]().make(**chosen)
        learn = host.nodes[f"DreamMatcher{node}"]().learn
        return tensors_of(learn(model, clip, Flat(), training_set, steps=2, seed=1, options=options, **given))

    for node, given in (("DreamBooth", dict(kind="LoRA", rate=1e-3, text_encoder=True)),
                        ("TextualInversion", dict(initial_word="robot", vectors=1, rate=1e-2))):
        before = trained(node, given, {})
        parts = ({"l": slice(0, 40), "g": slice(40, None)} if node == "TextualInversion" else {"te1": None, "te2": None})
        for option, value in LEARNED.items():
            after = trained(node, given, {option: value})
            for part, columns in parts.items():
                moved = [name for name in before if (columns is not None or f"lora_{part}_" in name) and not torch.equal(
                    *(one[name] if columns is None else one[name][:, columns] for one in (before, after)))]
                assert moved, (node, option, part)
