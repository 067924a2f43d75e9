"""Protocols, metrics and encoders by themselves: published files, closed forms, and the libraries' own pipelines."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import close
from PIL import Image

from benchmarks.tables import compared
from dreammatcher import devices
from dreammatcher.evaluation import encoders, metrics, protocols, report, scoring, workflow
from dreammatcher.evaluation.protocols import Case, Protocol, Subject, read_protocol, shard
from dreammatcher.evaluation.runner import Folder

PUBLISHED = """****************************************
Classes
****************************************

subject_name,class
backpack,backpack
dog,dog

****************************************
Prompts
****************************************

Object Prompts
****************************************

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
]

****************************************
Live Subject Prompts
****************************************

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
]
"""


def photo(path, size=(40, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def data(tmp_path):
    for name in ("backpack", "dog"):
        for number in range(2):
            photo(tmp_path / "dataset" / name / f"0{number}.jpg", seed=number)
    (tmp_path / "dataset" / "prompts_and_classes.txt").write_text(PUBLISHED)
    return tmp_path


def test_dreambooth_s_published_files_give_subjects_classes_and_the_prompts_of_their_kind(data):
    protocol = read_protocol("dreambooth", data)
    cases = list(protocol.cases())
    assert [subject.name for subject in protocol.subjects] == ["backpack", "dog"] and protocol.samples == 4
    assert len(cases) == 4 * (2 + 1) and len({case.key for case in cases}) == len(cases)
    assert cases[0].text("sks") == "a sks backpack in the jungle" and cases[0].plain_text() == "a backpack in the jungle"
    assert cases[-1].text("embedding:me") == "a embedding:me dog wearing a red hat" and len(cases[0].subject.pictures) == 2


def test_vico_s_files_give_prompts_without_a_class(tmp_path):
    for name in ("black_cat", "vase"):
        photo(tmp_path / "inputs" / name / "1.jpg")
    (tmp_path / "inputs" / "prompts_live_objects.txt").write_text("a {} wearing a hat\n\n")
    (tmp_path / "inputs" / "prompts_nonlive_objects.txt").write_text("a {} in the snow\na red {}\n")
    protocol = read_protocol("vico", tmp_path)
    assert [(one.name, one.prompts) for one in protocol.subjects] == [
        ("black_cat", ("a {} wearing a hat",)), ("vase", ("a {} in the snow", "a red {}"))]
    case = next(protocol.cases())
    assert protocol.samples == 8 and case.text("*") == "a * wearing a hat" and case.plain_text() == "a wearing a hat"


def test_a_protocol_of_one_s_own_is_a_json_file(tmp_path):
    photo(tmp_path / "my_dog" / "a.png")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"samples": 2, "prompts": ["a {} on the moon"], "subjects": {"my_dog": "dog"}}))
    assert [case.key for case in read_protocol(str(file), tmp_path).cases()] == ["my_dog-00-0", "my_dog-00-1"]
    for broken, said in (({"prompts": ["a dog"], "subjects": {}}, "has no {} in the subject's place"), ({}, "KeyError"),
                         ({"prompts": ["a {}"], "subjects": {"gone": "dog"}}, "'gone' has no pictures")):
        file.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=said):
            read_protocol(str(file), tmp_path)


def test_missing_and_changed_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"prompts_and_classes.txt cannot be read.*google/dreambooth"):
        read_protocol("dreambooth", tmp_path)
    (tmp_path / "prompts_and_classes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="has not the sections"):
        read_protocol("dreambooth", tmp_path)


def test_shards_are_all_cases_each_once():
    subject = Subject("a", "dog", ("x",), ("a {}",) * 5)
    cases = list(Protocol("p", (subject,), 3).cases())
    parts = [shard(cases, number, 4) for number in range(4)]
    assert sorted(case.key for part in parts for case in part) == sorted(case.key for case in cases)
    with pytest.raises(ValueError, match="4 is outside 0..3"):
        shard(cases, 4, 4)
    assert len({case.seed for case in cases}) == len(cases)


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
    found = metrics.estimate(list(values))
    assert found.low < values.mean() < found.high and found.high - found.low == pytest.approx(4 * 0.1 / 20, rel=0.15)
    alike = [0.1 * (number % 4) for number in range(400)]
    names = [str(number % 4) for number in range(400)]
    assert metrics.estimate(alike, names).high - metrics.estimate(alike, names).low > 4 * (
        metrics.estimate(alike).high - metrics.estimate(alike).low)
    with pytest.raises(ValueError, match="there is none"):
        metrics.estimate([])


def test_paired_differences_see_what_means_alone_do_not():
    hard = np.random.default_rng(0).normal(0.5, 0.3, 60)
    one = {str(number): float(value) for number, value in enumerate(hard)}
    other = {key: value + 0.02 for key, value in one.items()} | {"more": 9.0}
    found = metrics.difference(one, other)
    assert (found.mean, found.low, found.high) == pytest.approx((0.02,) * 3) and found.count == 60
    with pytest.raises(ValueError, match="share no case"):
        metrics.difference({"a": 1.0}, {"b": 1.0})


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

    own = Tokenizer(models.WordLevel(words, unk_token="a"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(single="<|startoftext|> $A <|endoftext|>", special_tokens=[
        ("<|startoftext|>", 4), ("<|endoftext|>", 5)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<|startoftext|>", eos_token="<|endoftext|>",
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
    own = transformers.ViTModel.from_pretrained(folder / encoders.DINO).eval()
    with torch.no_grad():
        expected = own(metrics.prepared(picture, metrics.DREAMBOOTH)[None]).last_hidden_state[:, 0]
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
    cases, own = run_of(tmp_path, protocols.with_prior(plain, 3))
    assert [case.text("sks") for case in cases] == 2 * ["a sks dog on grass"] + 3 * ["a photo of a dog"]
    assert len({case.key for case in cases}) == 5
    distance = encoders.Distance("mine", lambda one, other: float((one - other).abs().mean()))
    by = scoring.Scorers(encoders.load_encoder(folder, encoders.DINO), encoders.load_encoder(folder, encoders.CLIP_B32),
                         encoders.load_encoder(folder, encoders.DINO_2), distance)
    scores = scoring.score(cases, own, by)
    assert set(scores["dog-00-0"]) == {"DINO", "DINOv2", "CLIP-I", "CLIP-T"} == set(scores["dog-00-1"])
    drawn = [scoring.picture(own.picture(case)) for case in cases[2:]]
    for number, case in enumerate(cases[2:]):
        assert set(scores[case.key]) == {"PRES", "DIV"}
        features = by.dino.pictures([drawn[number], *map(scoring.picture, references)])
        assert scores[case.key]["PRES"] == pytest.approx(float(metrics.fidelity(features[:1], features[1:])), abs=1e-5)
        pairs = [distance.between(drawn[one], drawn[other]) for one, other in ((0, 1), (0, 2), (1, 2))]
        assert scores[case.key]["DIV"] == pytest.approx(sum(pairs) / 3, abs=1e-6)
    assert by.names()["DIV"] == "mine" and by.names()["PRES"].startswith("dino-vits16")
    without = scoring.score(cases, own, scoring.Scorers(by.dino))
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
    with pytest.raises(ValueError, match="cannot be read"):
        encoders.load_encoder(tmp_path, encoders.DINO)


GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
         "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "one", "clip": ["9", 0]}, "_meta": {"title": "Prompt"}},
         "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "negative", "clip": ["9", 0]}},
         "4": {"class_type": "KSampler", "inputs": {"seed": 1}}, "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}}}


def test_a_workflow_s_inputs_are_found_by_title_by_kind_or_as_told(tmp_path):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(GRAPH))
    read = workflow.read_workflow(file, {}, None)
    assert read.places == {"reference": ("1", "image"), "prompt": ("2", "text"), "seed": ("4", "seed")} and read.output == "5"
    made = read.with_case("dog.png", "a dog", 7)
    assert (made["1"]["inputs"]["image"], made["2"]["inputs"]["text"], made["4"]["inputs"]["seed"]) == ("dog.png", "a dog", 7)
    assert read.graph["2"]["inputs"]["text"] == "one"
    assert workflow.read_workflow(file, {"prompt": "3.text"}, None).places["prompt"] == ("3", "text")
    untitled = {key: {name: value for name, value in one.items() if name != "_meta"} for key, one in GRAPH.items()}
    file.write_text(json.dumps(untitled))
    with pytest.raises(ValueError, match=r"the prompt could be 2.text \(CLIPTextEncode\), 3.text"):
        workflow.read_workflow(file, {}, None)
    for given, output, said in (({"prompt": "8.text"}, None, "names no widget"), ({"prompt": "3.text"}, "8", "no node '8'")):
        with pytest.raises(ValueError, match=said):
            workflow.read_workflow(file, given, output)
    file.write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(ValueError, match="not in API format"):
        workflow.read_workflow(file, {}, None)


def arm(tmp_path, name: str, more: float) -> report.Measured:
    keys = [f"{subject}-00-{sample}" for subject in ("dog", "cat") for sample in range(3)]
    pictures = {key: photo(tmp_path / name / f"{key}.png", seed=number) for number, key in enumerate(keys)}
    return report.Measured(name, {key: {"DINO": 0.5 + 0.01 * number + more} for number, key in enumerate(keys)},
                           {key: key.split("-")[0] for key in keys}, pictures, {"DINO": "dino-vits16 (dreambooth)"})


def test_reports_hold_every_case_and_open_without_a_server(tmp_path):
    arms = [arm(tmp_path, "plain <b>", 0.0), arm(tmp_path, "ours", 0.1)]
    files = {path.name: path for path in report.write(arms, tmp_path / "out")}
    rows = files["scores.csv"].read_text().splitlines()
    assert rows[0] == "arm,case,subject,DINO" and len(rows) == 13
    assert json.loads(files["scores.json"].read_text())["ours"]["means"]["DINO"]["mean"] == pytest.approx(0.625)
    assert "| ours | 6 | 0.625" in files["table.md"].read_text() and "+0.100 [+0.100, +0.100]" in files["table.md"].read_text()
    page = files["report.html"].read_text()
    assert "plain &lt;b&gt;" in page and page.count("data:image/jpeg;base64,") == 12 and "http" not in page
    assert Image.open(files["sheet.png"]).size[1] == 2 * 180


def test_a_case_that_failed_is_tried_again_and_a_finished_one_is_not(tmp_path):
    folder, case = Folder(tmp_path), Case(Subject("dog", "dog", ("x",), ("a {}",)), 0, 0)
    assert not folder.done(case)
    folder.keep(case, {"error": "out of memory"}, None)
    assert not folder.done(case) and folder.described(case)["error"] == "out of memory"
    folder.keep(case, {"seconds": 1.0}, b"png")
    assert folder.done(case) and not list(tmp_path.glob("**/*.part"))


def test_toybox_s_own_protocol_scores_with_the_truth(tmp_path):
    from toybox import evaluation

    made = evaluation.protocol(tmp_path)
    own = list(made.cases())
    assert len(own) == evaluation.COUNT and own[3].plain_text() == evaluation.cases(1, evaluation.FIRST + 3)[0].prompt()
    assert own[3].seed == evaluation.cases(1, evaluation.FIRST + 3)[0].seed and own[3].text("sks").count("sks") == 1
    key, reference = own[0].key, own[0].subject.pictures[0]
    same = evaluation.judged({key: reference})[key]
    other = evaluation.judged({key: made.subjects[5].pictures[0]}, {key: reference})[key]
    assert same[evaluation.ERROR] < 3 < other.get(evaluation.ERROR, 99) and same[evaluation.CLASS] == 1
    assert evaluation.SILHOUETTE in other and evaluation.SILHOUETTE not in same
    assert evaluation.judged({key: reference}, {key: reference})[key][evaluation.SILHOUETTE] == 1


def test_benchmarks_compare_two_rows_subject_by_subject():
    figures = {"alone": (10.0, 20.0, 30.0), "matched": (8.0, 21.0, 22.0)}
    rows = [{"name": name, "subject": number, "error": value}
            for name, values in figures.items() for number, value in enumerate(values)]
    line = compared(rows, "error", [("alone", "matched")])
    assert line.startswith("alone -> matched: -3.00 [-8.00, +1.00]") and line.endswith("lower for 2 of 3")


def test_runs_in_folders_of_one_name_are_called_by_what_tells_them_apart(tmp_path):
    command = importlib.import_module("dreammatcher.evaluation.__main__")
    runs = [tmp_path / name for name in ("one/run", "two/run", "two/other/run", "last")]
    for run in runs:
        run.mkdir(parents=True)
    assert command.names_of(runs) == ["one/run", "two/run", "other/run", "last"]
    assert command.names_of(runs[:1]) == ["run"]
    with pytest.raises(ValueError, match="runs: .*run is given twice"):
        command.names_of([runs[0], runs[3], tmp_path / "two" / ".." / "one" / "run"])


def test_two_runs_in_folders_of_one_name_keep_their_scores_apart(tmp_path):
    command = importlib.import_module("dreammatcher.evaluation.__main__")
    said = {"protocol": "toybox", "data": ".", "limit": 2, "workflow": {}}
    cases = command.cases_of(said, command.protocol_of("toybox", tmp_path, tmp_path))
    runs = [tmp_path / name / "out" for name in ("plain", "matched")]
    for run, source in zip(runs, (cases[0], cases[1])):
        for case in cases:
            Folder(run).keep(case, {}, source.subject.pictures[0].read_bytes())
        (run / "plan.json").write_text(json.dumps(said))
    command.compare(runs, command.Choice(None, False), tmp_path / "report")
    said = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert set(said) == {"plain/out", "matched/out"}
    first, second = (said[name]["cases"][cases[0].key] for name in ("plain/out", "matched/out"))
    assert first != second
    rows = (tmp_path / "report" / "scores.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"plain/out", "matched/out"} and len(rows) == 5


def test_a_report_of_two_arms_of_one_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="arms: two are called 'ours'"):
        report.write([arm(tmp_path / "one", "ours", 0.0), arm(tmp_path / "two", "ours", 0.1)], tmp_path)


@pytest.mark.parametrize(("environment", "wanted"), [
    ({}, {}), ({"CUDA_VISIBLE_DEVICES": "4,6"}, {}),
    ({"LOCAL_RANK": "1"}, {"CUDA_VISIBLE_DEVICES": "1"}),
    ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,6"}, {"CUDA_VISIBLE_DEVICES": "6"}),
    ({"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": " GPU-aa , GPU-bb"}, {"CUDA_VISIBLE_DEVICES": "GPU-aa"}),
    ({"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "3,-1,5"}, {"CUDA_VISIBLE_DEVICES": "3"})])
def test_a_process_s_server_gets_the_card_of_those_that_it_sees_itself(environment, wanted):
    assert devices.device_of_process(environment) == wanted


@pytest.mark.parametrize("seen", ["4,6", "4,6,-1,7", ""])
def test_more_processes_than_cards_are_refused(seen):
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES: it shows . cards"):
        devices.device_of_process({"LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": seen})


def test_a_server_is_started_with_the_card_of_its_process(tmp_path, monkeypatch):
    command = importlib.import_module("dreammatcher.evaluation.__main__")
    (tmp_path / "main.py").write_text("import os, pathlib\npathlib.Path('seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'])")
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("LOCAL_RANK", "1")
    options = argparse.Namespace(servers=[], comfyui=tmp_path)
    with pytest.raises(ValueError, match="does not start"), command.servers_of(options):
        pass
    assert (tmp_path / "seen").read_text() == "6"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_the_command_are_read_in_the_encoding_that_their_mark_says(tmp_path, encoding):
    photo(tmp_path / "my_dog" / "0.png")
    own, graph = tmp_path / "own.json", tmp_path / "graph.json"
    own.write_text(json.dumps({"prompts": ["a {} on the beach"], "subjects": {"my_dog": "dog"}}), encoding=encoding)
    graph.write_text(json.dumps(GRAPH), encoding=encoding)
    assert protocols.read_protocol(str(own), tmp_path).subjects[0].class_word == "dog"
    assert workflow.read_workflow(graph, {}, None).output == "5"
    for path in (own, graph):
        path.write_bytes("{é".encode("cp1252"))
    with pytest.raises(ValueError, match=r"data: own\.json is no text in UTF-8"):
        protocols.read_protocol(str(own), tmp_path)
    with pytest.raises(ValueError, match=r"workflow: graph\.json is no text in UTF-8"):
        workflow.read_workflow(graph, {}, None)
