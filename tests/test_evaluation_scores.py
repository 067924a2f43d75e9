"""Metrics and encoders by themselves: closed forms, and the libraries' own pipelines."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import close
from PIL import Image
from small_photos import photo

from dreammatcher.evaluation import chart, encoders, metrics, protocols, scoring, statistics
from dreammatcher.evaluation.protocols import Case, Protocol, Subject
from dreammatcher.evaluation.runner import Folder


@pytest.mark.parametrize("size", [(300, 400), (500, 257), (64, 64)])
def test_pictures_are_prepared_as_torchvision_does_and_the_evaluators_use(size):
    from torchvision import transforms as tv

    picture = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (3, *size), dtype=np.uint8)).float() / 255
    image = Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy())
    bicubic = tv.InterpolationMode.BICUBIC
    expected = {
        metrics.DREAMBOOTH: [tv.Resize(256, bicubic), tv.CenterCrop(224), tv.ToTensor(), tv.Normalize(*metrics.IMAGENET)],
        metrics.VICO: [tv.Resize((256, 256), bicubic), tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)],
        metrics.CLIP: [tv.Resize(224, bicubic), tv.CenterCrop(224), tv.ToTensor(), tv.Normalize(*metrics.CLIP_NORM)]}
    for how, steps in expected.items():
        assert close(metrics.prepared(picture, how), tv.Compose(steps)(image)), how
    with pytest.raises(ValueError, match="'dino' is unknown"):
        metrics.prepared(picture, "dino")


def test_fidelity_is_the_mean_cosine_to_every_reference():
    results, references = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert metrics.fidelity(results, references).tolist() == pytest.approx([0.5, math.sqrt(0.5)])
    assert metrics.alignment(results, references).tolist() == pytest.approx([1.0, math.sqrt(0.5)])
    assert metrics.preservation(results, references) == pytest.approx((0.5 + math.sqrt(0.5)) / 2)
    assert metrics.diversity(references) == pytest.approx(1) and metrics.diversity(results[:1]) == 0
    assert metrics.diversity(results[:1].repeat(3, 1)) == pytest.approx(0, abs=1e-6)


def test_the_interval_holds_the_mean_and_is_wider_where_pictures_of_a_subject_are_alike():
    values = np.random.default_rng(0).normal(0.6, 0.1, 400)
    found = statistics.estimate(list(values))
    assert found.low < values.mean() < found.high and found.high - found.low == pytest.approx(4 * 0.1 / 20, rel=0.15)
    alike = [0.1 * (number % 4) for number in range(400)]
    names = [str(number % 4) for number in range(400)]
    assert statistics.estimate(alike, names).high - statistics.estimate(alike, names).low > 4 * (
        statistics.estimate(alike).high - statistics.estimate(alike).low)
    with pytest.raises(ValueError, match="there is none"):
        statistics.estimate([])


def test_paired_differences_see_what_means_alone_do_not():
    hard = np.random.default_rng(0).normal(0.5, 0.3, 60)
    one = {str(number): float(value) for number, value in enumerate(hard)}
    other = {key: value + 0.02 for key, value in one.items()} | {"more": 9.0}
    found = statistics.difference(one, other)
    assert (found.mean, found.low, found.high) == pytest.approx((0.02,) * 3) and found.count == 60
    with pytest.raises(ValueError, match="share no case"):
        statistics.difference({"a": 1.0}, {"b": 1.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small random encoders of the real architectures, saved as their repositories are."""
    import transformers

    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    transformers.ViTModel(transformers.ViTConfig(**small, image_size=224, patch_size=16)).save_pretrained(root / encoders.DINO)
    transformers.Dinov2Model(transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224,
                                                       patch_size=14)).save_pretrained(root / encoders.DINO_2)
    words = {word: number for number, word in enumerate(["a", "dog", "on", "grass", "<|startoftext|>", "<|endoftext|>"])}
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<|startoftext|> $A <|endoftext|>", special_tokens=[
        ("<|startoftext|>", 4), ("<|endoftext|>", 5)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>",
                                         pad_token="<|endoftext|>").save_pretrained(root / encoders.CLIP_B32)
    text = transformers.CLIPTextConfig(**small, vocab_size=6, max_position_embeddings=16, bos_token_id=4, eos_token_id=5)
    vision = transformers.CLIPVisionConfig(**small, image_size=224, patch_size=32)
    transformers.CLIPModel(transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
                           ).save_pretrained(root / encoders.CLIP_B32)
    return root


def tensor_of(features):
    """Newer versions of transformers give the features among others."""
    return getattr(features, "pooler_output", features)


def test_features_are_those_of_transformers_own_pipeline(folder):
    import transformers

    picture = torch.from_numpy(np.random.default_rng(2).integers(0, 255, (3, 300, 280), dtype=np.uint8)).float() / 255
    image = Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy())
    clip = encoders.load_encoder(folder, encoders.CLIP_B32)
    model = transformers.CLIPModel.from_pretrained(folder / encoders.CLIP_B32).eval()
    pixels = transformers.CLIPImageProcessor()(image, return_tensors="pt")
    with torch.no_grad():
        expected = tensor_of(model.get_image_features(**pixels))
    assert torch.allclose(clip.pictures([picture, picture]), expected.repeat(2, 1), atol=2e-3)  # newer versions resize with torch
    tokens = torch.tensor([[4, 0, 1, 2, 3, 5]])
    with torch.no_grad():
        assert close(clip.texts(["a dog on grass"]), tensor_of(model.get_text_features(tokens)))
    assert clip.texts(["a dog " * 40, "a"]).shape == (2, 16)
    dino = encoders.load_encoder(folder, encoders.DINO)
    stock = transformers.ViTModel.from_pretrained(folder / encoders.DINO).eval()
    with torch.no_grad():
        expected = stock(metrics.prepared(picture, metrics.DREAMBOOTH)[None]).last_hidden_state[:, 0]
    assert close(dino.pictures([picture]), expected)
    for name, how in ((encoders.DINO, metrics.VICO), (encoders.DINO_2, metrics.DREAMBOOTH)):
        assert encoders.load_encoder(folder, name, how).pictures([picture]).shape == (1, 32)


def run_of(tmp_path, protocol: Protocol) -> tuple[list[Case], Folder]:
    """Every case of a protocol with a picture."""
    folder = Folder(tmp_path / "run")
    for number, case in enumerate(protocol.cases()):
        folder.keep(case, {"seconds": 1.0}, photo(tmp_path / "made.png", seed=number).read_bytes())
    return list(protocol.cases()), folder


def test_pictures_of_the_class_alone_tell_what_the_model_still_draws(folder, tmp_path):
    references = tuple(photo(tmp_path / "dog" / f"{number}.png", seed=50 + number) for number in range(2))
    plain = Protocol("p", (Subject("dog", "dog", references, ("a {} on grass",)),), 2)
    cases, run_folder = run_of(tmp_path, protocols.with_prior(plain, 3))
    assert [case.text("sks") for case in cases] == 2 * ["a sks dog on grass"] + 3 * ["a photo of a dog"]
    assert len({case.key for case in cases}) == 5
    distance = encoders.Distance("mine", lambda one, other: float((one - other).abs().mean()))
    by = scoring.Scorers(encoders.load_encoder(folder, encoders.DINO), encoders.load_encoder(folder, encoders.CLIP_B32),
                         encoders.load_encoder(folder, encoders.DINO_2), distance)
    scores = scoring.score(cases, run_folder, by)
    assert set(scores["dog-00-0"]) == {"DINO", "DINOv2", "CLIP-I", "CLIP-T"} == set(scores["dog-00-1"])
    drawn = [scoring.picture(run_folder.picture(case)) for case in cases[2:]]
    for number, case in enumerate(cases[2:]):
        assert set(scores[case.key]) == {"PRES", "DIV"}
        features = by.dino.pictures([drawn[number], *map(scoring.picture, references)])
        assert scores[case.key]["PRES"] == pytest.approx(float(metrics.fidelity(features[:1], features[1:])), abs=1e-5)
        pairs = [distance.between(drawn[one], drawn[other]) for one, other in ((0, 1), (0, 2), (1, 2))]
        assert scores[case.key]["DIV"] == pytest.approx(sum(pairs) / 3, abs=1e-6)
    assert by.names()["DIV"] == "mine" and by.names()["PRES"].startswith("dino-vits16")
    without = scoring.score(cases, run_folder, scoring.Scorers(by.dino))
    assert without["dog-class-00-0"]["DIV"] == pytest.approx(metrics.diversity(by.dino.pictures(drawn)), abs=1e-6)
    with pytest.raises(ValueError, match="names no classes"):
        protocols.with_prior(replace(plain, subjects=(replace(plain.subjects[0], class_word=""),)), 3)


def test_lpips_is_its_authors_package_and_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(ValueError, match="pip install lpips"):
        encoders.load_lpips()


def test_a_missing_encoder_is_named_with_its_repository_files_and_folder(folder, tmp_path):
    with pytest.raises(ValueError, match=r"dino-vits16 is missing; put config.json.*huggingface.co/facebook/dino-vits16 into"):
        encoders.load_encoder(tmp_path, encoders.DINO)
    (tmp_path / encoders.DINO).mkdir()
    (tmp_path / encoders.DINO / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="dino-vits16 is missing"):
        encoders.load_encoder(tmp_path, encoders.DINO)  # its weights were not copied
    (tmp_path / encoders.DINO / "model.safetensors").write_text("half of a download")
    with pytest.raises(ValueError, match="cannot be read"):
        encoders.load_encoder(tmp_path, encoders.DINO)


def test_all_encoders_that_are_missing_are_named_at_once(folder, tmp_path):
    both = encoders.missing({encoders.DINO: tmp_path / "one", encoders.CLIP_B32: tmp_path / "two"})
    assert f"huggingface.co/facebook/dino-vits16 into {tmp_path / 'one' / encoders.DINO}. {encoders.CLIP_B32} is missing" in both
    assert both.endswith(f"huggingface.co/openai/clip-vit-base-patch32 into {tmp_path / 'two' / encoders.CLIP_B32}")
    only = encoders.missing({encoders.DINO: folder, encoders.CLIP_B32: tmp_path})
    assert only.startswith("encoders: clip-vit-base-patch32 is missing") and "dino" not in only
    assert encoders.missing({name: folder for name in encoders.REPOSITORIES}) == ""


def test_bars_end_at_one_or_at_the_largest_mean_and_a_mean_that_is_nan_has_none():
    def reach(row: int, arms: dict) -> int:
        """Pixels of the bar in an arm's row of the first metric."""
        pixels = np.array(chart.chart(arms))[chart.GAP + 18 + row * chart.BAR + chart.BAR // 2]
        return int((pixels[chart.LABEL:chart.LABEL + chart.LENGTH + 1] == chart.COLOURS[row]).all(1).sum())

    half = {"plain": {"DINO": 0.5}, "ours": {"DINO": 1.0}}
    assert reach(0, half) == pytest.approx(chart.LENGTH / 2, abs=2) and reach(1, half) == pytest.approx(chart.LENGTH, abs=2)
    errors = {"plain": {"subject error": 40.0}, "ours": {"subject error": 10.0}}
    assert reach(0, errors) == pytest.approx(chart.LENGTH, abs=2) and reach(1, errors) == pytest.approx(chart.LENGTH / 4, abs=2)
    assert reach(0, {"plain": {"scene": math.nan}, "ours": {"scene": 1.0}}) == 0
