"""NaN and infinity are seen where they arise: the message names the part at fault, and nothing of it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


class Broken:
    """A VAE of which a part overflows, as SDXL's does in half precision."""

    def __init__(self, vae, part: str):
        self.vae, self.part, self.first_stage_model = vae, part, vae.first_stage_model

    def encode(self, picture):
        return self.vae.encode(picture) * (torch.nan if self.part == "encoder" else 1)

    def decode(self, latent):
        return self.vae.decode(latent) * (torch.nan if self.part == "decoder" else 1)


def spoilt(module: torch.nn.Module, ending: str, value: float = torch.nan) -> None:
    """Writes a number that is not finite into one of a module's weights."""
    name = next(name for name, _ in module.named_parameters() if name.endswith(ending))
    module.get_parameter(name).flatten()[0] = value


def trainings(host, model, clip, vae, training_set, picture) -> dict:
    node = lambda name: host.nodes[f"DreamMatcher{name}"]()  # noqa: E731
    return {"DreamBooth": lambda: node("DreamBooth").learn(model, clip, vae, training_set, "LoRA", 2, 1e-3, 1),
            "Textual Inversion": lambda: node("TextualInversion").learn(model, clip, vae, training_set, "robot", 1, 2, 1e-2, 1),
            "Custom Diffusion": lambda: node("CustomDiffusion").learn(
                model, clip, vae, training_set, "robot", 2, 1e-3, 1, sizes=False),
            "ViCo": lambda: node("ViCoTrain").learn(model, clip, vae, training_set, "robot", 2, 1e-2, 1e-3, 1, batch=1),
            "SeFi-IDE": lambda: node("SeFiTrain").learn(model, clip, vae, picture, "<me>", "robot", "a photo of a robot", 128, 2,
                                                        1e-2, 0.01, 1)}


METHODS = ("DreamBooth", "Textual Inversion", "Custom Diffusion", "ViCo", "SeFi-IDE")


@pytest.mark.parametrize("method", METHODS)
def test_a_vae_that_gives_nan_is_named_before_the_first_step(host, fresh, training_set, pictures, method):
    model, clip, vae = fresh
    with pytest.raises(ValueError, match="^vae: a picture of the training set is NaN .* --fp32-vae"):
        trainings(host, model, clip, Broken(vae, "encoder"), training_set, pictures[:1])[method]()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["model", "clip"])
def test_a_model_or_a_text_encoder_that_gives_nan_is_named(host, fresh, training_set, pictures, method, part):
    model, clip, vae = fresh
    if part == "model":
        spoilt(model.model.diffusion_model, "attn1.to_out.0.weight")
    else:
        spoilt(clip.cond_stage_model, "mlp.fc1.weight")
    said = {"model": "^model: its prediction holds NaN", "clip": "^clip: a caption as the text encoder reads it"}[part]
    with pytest.raises(FloatingPointError, match=f"{said}.*at step 0.*lower rate"):
        trainings(host, model, clip, vae, training_set, pictures[:1])[method]()


def test_pictures_that_hold_nan_are_named_and_not_the_vae(host, fresh, pictures):
    bad = pictures.clone()
    bad[1, 3, 3] = torch.nan
    bad_set = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 128, bad)["result"][0]
    with pytest.raises(ValueError, match="^a picture of the training set holds NaN or infinity before it is encoded"):
        trainings(host, *fresh, bad_set, bad[1:])["DreamBooth"]()


@pytest.fixture
def make_prior(host, fresh, training_set):
    def make(model=None, vae=None):
        done = host.nodes["DreamMatcherPriorSet"]().make(model or fresh[0], fresh[1], vae or fresh[2], training_set, 2, 2, 5.0,
                                                         "euler", "normal", 909)
        return done["ui"]["text"][0]
    return make


def prior_folder(said: str) -> Path:
    return Path(said.splitlines()[1])


def test_class_pictures_that_the_vae_breaks_are_never_kept(fresh, make_prior):
    folder = prior_folder(make_prior())
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="^vae: class picture 1 holds NaN or infinity when it is decoded"):
        make_prior(vae=Broken(fresh[2], "decoder"))
    assert not list(folder.iterdir())
    assert "2 drawn now" in make_prior() and all(max(high for _, high in Image.open(file).getextrema()) > 0
                                                 for file in folder.iterdir())


def test_a_model_that_samples_nan_is_named_and_its_class_pictures_are_never_kept(fresh, make_prior):
    spoilt(fresh[0].model.diffusion_model, "out.2.bias")
    with pytest.raises(ValueError, match="^model: class picture 1 is NaN or infinity as it was sampled"):
        make_prior()


def test_black_and_damaged_class_pictures_of_an_earlier_version_are_drawn_again(make_prior):
    folder = prior_folder(make_prior())
    sound = (folder / "00000.png").read_bytes()
    Image.new("RGB", (128, 128)).save(folder / "00000.png")
    (folder / "00001.png").write_bytes((folder / "00001.png").read_bytes()[:20])
    assert "2 drawn now" in make_prior() and (folder / "00000.png").read_bytes() == sound
    assert "0 drawn now" in make_prior()


def easy(host, model, clip, vae, reference):
    match = host.nodes["DreamMatcherEasy"]().match
    return match(model, clip, vae, reference, "a photo of a robot", "a robot at night", "", "robot")


def test_matching_names_the_vae_the_picture_or_the_model(host, fresh, pictures):
    model, clip, vae = fresh
    with pytest.raises(ValueError, match="^vae: reference: it is NaN or infinity as a latent"):
        easy(host, model, clip, Broken(vae, "encoder"), pictures[:1])
    bad = pictures[:1].clone()
    bad[0, 3, 3] = torch.inf
    with pytest.raises(ValueError, match="^reference: it holds NaN or infinity before it is encoded"):
        easy(host, model, clip, vae, bad)
    spoilt(model.model.diffusion_model, "attn1.to_out.0.weight")
    with pytest.raises(ValueError, match="^model: its prediction for the reference at sigma .* holds NaN"):
        easy(host, model, clip, vae, pictures[:1])


def test_inversion_names_the_latent_or_the_model(host, fresh, pictures):
    model, clip, vae = fresh
    encode, invert = host.nodes["CLIPTextEncode"]().encode, host.nodes["DreamMatcherInvert"]().invert
    positive, negative = (encode(clip, text)[0] for text in ("a photo of a robot", ""))
    latent = vae.encode(pictures[:1])
    with pytest.raises(ValueError, match="^reference latent: it holds NaN or infinity: the VAE"):
        invert(model, positive, negative, 5, "ddim_uniform", {"samples": latent * torch.nan})
    reference = invert(model, positive, negative, 5, "ddim_uniform", {"samples": latent})[0]
    spoilt(model.model.diffusion_model, "attn1.to_out.0.weight")
    with pytest.raises(ValueError, match="^model: its prediction for the reference"):
        invert(model, positive, negative, 5, "ddim_uniform", {"samples": latent})
    with pytest.raises(ValueError, match="^model: what it makes of the reference at sigma"):
        subject = host.nodes["DreamMatcherSubject"]().encode(clip, "a photo of a robot", "robot")["result"][1]
        mask, = host.nodes["DreamMatcherMask"]().make(subject, subject, 0.4, "otsu")
        host.nodes["DreamMatcherFeatures"]().prepare(model, reference, mask, 0, "cpu", "model")


def test_a_pooled_text_counts_only_for_a_model_that_reads_it(host, pack, fresh, pictures):
    """SD1.5's checkpoints have no weights for it: the host takes what stands in memory, which may be NaN."""
    model, clip, vae = fresh
    spoilt(clip.cond_stage_model, "text_projection.weight")
    positive, negative = (host.nodes["CLIPTextEncode"]().encode(clip, text)[0] for text in ("a photo of a robot", ""))
    assert not torch.isfinite(positive[0][1]["pooled_output"]).all()
    latent = vae.encode(pictures[:1])
    reference = host.nodes["DreamMatcherInvert"]().invert(model, positive, negative, 5, "ddim_uniform", {"samples": latent})[0]
    assert reference.positive.pooled is None and torch.isfinite(reference.trajectory.noise).all()
    assert easy(host, model, clip, vae, pictures[:1]) is not None
    with pytest.raises(ValueError, match="^positive: this CONDITIONING holds NaN"):
        pack.module("dreammatcher.host.text.conditioning").from_host(positive, "positive")


def test_vico_names_the_vae_the_latent_or_the_model(host, fresh, training_set, pictures):
    model, clip, vae = fresh
    vico, knowing, _ = trainings(host, model, clip, vae, training_set, None)["ViCo"]()
    apply = host.nodes["DreamMatcherViCoApply"]().apply
    with pytest.raises(ValueError, match="^vae: image: the reference is NaN"):
        apply(model, vico, 1.0, 0.0, 1.0, pictures[:1], Broken(vae, "encoder"))
    with pytest.raises(ValueError, match="^latent: the reference holds NaN"):
        apply(model, vico, 1.0, 0.0, 1.0, latent={"samples": torch.full((1, 4, 16, 16), torch.nan)})
    applied, _ = apply(model, vico, 1.0, 0.0, 1.0, pictures[:1], vae)
    spoilt(model.model.diffusion_model, "attn1.to_out.0.weight")
    positive = host.nodes["DreamMatcherSubject"]().encode(knowing, "a photo of a sks robot", "sks")["result"][0]
    negative = host.nodes["CLIPTextEncode"]().encode(clip, "")[0]
    with pytest.raises(ValueError, match="^model: what it makes of the reference at sigma"):
        host.nodes["KSampler"]().sample(applied, 5, 2, 5.0, "euler", "normal", positive, negative,
                                        {"samples": torch.zeros(1, 4, 16, 16)})


NAME = "lora_unet_output_blocks_4_1_transformer_blocks_0_attn1_to_v"


def learned_of(pack, **tensors):
    return pack.module("dreammatcher.training.export").Learned({f"{NAME}.{name}": value for name, value in tensors.items()})


@pytest.mark.parametrize(("value", "kept"), [(7e4, torch.float32), (1e-9, torch.float32), (0.5, torch.float16),
                                             (0.0, torch.float16)])
def test_what_half_precision_has_no_number_for_is_saved_in_float32(host, pack, model_folder, value, kept):
    folder = model_folder("loras")
    learned = learned_of(pack, **{"lora_up.weight": torch.full((64, 4), value), "lora_down.weight": torch.ones(4, 64)})
    name, = host.nodes["DreamMatcherSaveLearned"]().save(learned, "halves")["result"]
    saved = load_file(folder / name)
    assert saved[f"{NAME}.lora_up.weight"].dtype == kept and saved[f"{NAME}.lora_down.weight"].dtype == torch.float16
    assert torch.allclose(saved[f"{NAME}.lora_up.weight"].float(), torch.full((64, 4), value), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_neither_saved_nor_applied_nor_loaded(host, pack, fresh, model_folder, value):
    folder = model_folder("loras")
    bad = torch.ones(64, 4)
    bad[3, 1] = value
    learned = learned_of(pack, **{"lora_up.weight": bad, "lora_down.weight": torch.ones(4, 64)})
    before = set(folder.iterdir())
    for act in (lambda: host.nodes["DreamMatcherSaveLearned"]().save(learned, "broken"),
                lambda: host.nodes["DreamMatcherApplyLearned"]().apply(fresh[0], fresh[1], learned, 1.0, 1.0)):
        with pytest.raises(ValueError, match=f"^learned: {NAME}.lora_up.weight holds NaN or infinity"):
            act()
    assert set(folder.iterdir()) == before
    save_file(dict(learned.lora), folder / "inf_inside.safetensors")
    with pytest.raises(ValueError, match="lora_up.weight holds NaN or infinity; the file it comes from is damaged"):
        host.nodes["DreamMatcherLoadLearned"]().load(fresh[0], fresh[1], "inf_inside.safetensors", 1.0, 1.0)


def test_a_run_that_gave_up_goes_on_at_another_rate_from_where_it_was(host, pack, fresh, training_set, monkeypatch):
    """And the run of the other rate is not disturbed by the state of one that was merely stopped."""
    loop, safety = pack.module("dreammatcher.training.loop"), pack.module("dreammatcher.host.training.safety")
    recipe = pack.module("dreammatcher.training.recipe").SubjectRecipe
    real, calls, told = recipe.loss, [], []
    learn = lambda rate: host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, "LoRA", 6, rate, 31)[2]  # noqa: E731

    def running_away(self, *given):
        calls.append(1)
        return real(self, *given) * (torch.nan if len(calls) > 3 else 1)

    said = f"at step 3.*{loop.PATIENCE} batches.*lower rate"
    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match=said):
        patch.setattr(recipe, "loss", running_away)
        learn(1e-2)
    first, advance = [], loop.Training.advance

    def noting(self):
        first.append((self.step, self.optimiser.param_groups[0]["lr"]))
        return advance(self)

    monkeypatch.setattr(loop.Training, "advance", noting)
    monkeypatch.setattr(safety, "tell", told.append)
    learn(1e-3)
    assert first[0] == (3, 1e-3) and "goes on after step 3 of this training at another rate" in told[0]
    first.clear()
    learn(1e-3)
    assert first[0][0] == 0, "a run that has reached its end leaves no state"


def test_batches_that_were_left_out_are_told_on_the_node(host, pack, fresh, training_set, monkeypatch):
    recipe, told = pack.module("dreammatcher.training.recipe").SubjectRecipe, []
    real, calls = recipe.loss, []

    def once(self, *given):
        calls.append(1)
        return real(self, *given) * (torch.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(recipe, "loss", once)
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "tell", told.append)
    learned = host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, "LoRA", 3, 1e-3, 32)[2]
    assert learned.about["steps"] == "3" and len(told) == 1
    assert "left out, since their loss or gradient was not finite: 1 beside 3 steps" in told[0]


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no eight-bit floats")
def test_a_lora_in_eight_bits_is_looked_at_and_saved(pack):
    finite, keep = pack.module("dreammatcher.finite"), pack.module("dreammatcher.host.training.keep")
    value = torch.tensor([[0.5, -2.0]]).to(torch.float8_e4m3fn)
    assert finite.finite(value) and torch.equal(keep.half(value), value.half())
    assert not finite.finite(torch.tensor([float("nan")]).to(torch.float8_e4m3fn))
