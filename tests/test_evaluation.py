"""Protocols, workflows, reports and the command by themselves."""

from __future__ import annotations

import importlib
import json

import pytest
from PIL import Image
from small_photos import photo

from benchmarks.tables import compared
from dreammatcher import devices
from dreammatcher.evaluation import report, server, workflow
from dreammatcher.evaluation.protocols import Case, Protocol, Subject, cases_of, dreambooth, protocol_file, shard, vico
from dreammatcher.evaluation.runner import Folder
from dreammatcher.evaluation.statistics import Measured, summary

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


@pytest.fixture
def data(tmp_path):
    for name in ("backpack", "dog"):
        for number in range(2):
            photo(tmp_path / "dataset" / name / f"0{number}.jpg", seed=number)
    (tmp_path / "dataset" / "prompts_and_classes.txt").write_text(PUBLISHED)
    return tmp_path


def test_dreambooth_s_published_files_give_subjects_classes_and_the_prompts_of_their_kind(data):
    protocol = dreambooth(data)
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
    protocol = vico(tmp_path)
    assert [(one.name, one.prompts) for one in protocol.subjects] == [
        ("black_cat", ("a {} wearing a hat",)), ("vase", ("a {} in the snow", "a red {}"))]
    case = next(protocol.cases())
    assert protocol.samples == 8 and case.text("*") == "a * wearing a hat" and case.plain_text() == "a wearing a hat"


def test_a_protocol_of_one_s_own_is_a_json_file(tmp_path):
    photo(tmp_path / "my_dog" / "a.png")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"samples": 2, "prompts": ["a {} on the moon"], "subjects": {"my_dog": "dog"}}))
    assert [case.key for case in protocol_file(file, tmp_path).cases()] == ["my_dog-00-0", "my_dog-00-1"]
    for broken, said in (({"prompts": ["a dog"], "subjects": {}}, "has no {} in the subject's place"), ({}, "KeyError"),
                         ({"prompts": ["a {}"], "subjects": {"gone": "dog"}}, "'gone' has no pictures")):
        file.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=said):
            protocol_file(file, tmp_path)


def test_missing_and_changed_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"prompts_and_classes.txt cannot be read.*google/dreambooth"):
        dreambooth(tmp_path)
    (tmp_path / "prompts_and_classes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="has not the sections"):
        dreambooth(tmp_path)


def test_shards_are_all_cases_each_once():
    subject = Subject("a", "dog", ("x",), ("a {}",) * 5)
    cases = list(Protocol("p", (subject,), 3).cases())
    parts = [shard(cases, number, 4) for number in range(4)]
    assert sorted(case.key for part in parts for case in part) == sorted(case.key for case in cases)
    with pytest.raises(ValueError, match="4 is outside 0..3"):
        shard(cases, 4, 4)
    assert len({case.seed for case in cases}) == len(cases)


GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
         "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "one", "clip": ["9", 0]}, "_meta": {"title": "Prompt"}},
         "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "negative", "clip": ["9", 0]}},
         "4": {"class_type": "KSampler", "inputs": {"seed": 1}}, "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}}}


def test_a_workflow_s_inputs_are_found_by_title_by_kind_or_as_told(tmp_path):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(GRAPH))
    read = workflow.read_workflow(file, {}, None)
    assert read.places == {"reference": ("1", "image"), "prompt": ("2", "text"), "seed": ("4", "seed")} and read.output == "5"
    graph = read.with_case("dog.png", "a dog", 7)
    assert (graph["1"]["inputs"]["image"], graph["2"]["inputs"]["text"], graph["4"]["inputs"]["seed"]) == ("dog.png", "a dog", 7)
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


def arm(tmp_path, name: str, more: float) -> Measured:
    keys = [f"{subject}-00-{sample}" for subject in ("dog", "cat") for sample in range(3)]
    pictures = {key: photo(tmp_path / name / f"{key}.png", seed=number) for number, key in enumerate(keys)}
    return Measured(name, {key: {"DINO": 0.5 + 0.01 * number + more} for number, key in enumerate(keys)},
                    {key: key.split("-")[0] for key in keys}, pictures, {"DINO": "dino-vits16 (dreambooth)"})


def test_reports_hold_every_case_and_open_without_a_server(tmp_path):
    arms = [arm(tmp_path, "plain <b>", 0.0), arm(tmp_path, "ours", 0.1)]
    files = {path.name: path for path in report.write(summary(arms), tmp_path / "out")}
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

    protocol = evaluation.protocol(tmp_path)
    cases = list(protocol.cases())
    assert len(cases) == evaluation.COUNT and cases[3].plain_text() == evaluation.cases(1, evaluation.FIRST + 3)[0].prompt()
    assert cases[3].seed == evaluation.cases(1, evaluation.FIRST + 3)[0].seed and cases[3].text("sks").count("sks") == 1
    key, reference = cases[0].key, cases[0].subject.pictures[0]
    same = evaluation.judged({key: reference})[key]
    other = evaluation.judged({key: protocol.subjects[5].pictures[0]}, {key: reference})[key]
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
    command = importlib.import_module("dreammatcher.cli.evaluate")
    runs = [tmp_path / name for name in ("one/run", "two/run", "two/other/run", "last")]
    for run in runs:
        run.mkdir(parents=True)
    assert command.names_of(runs) == ["one/run", "two/run", "other/run", "last"]
    assert command.names_of(runs[:1]) == ["run"]
    with pytest.raises(ValueError, match="runs: .*run is given twice"):
        command.names_of([runs[0], runs[3], tmp_path / "two" / ".." / "one" / "run"])


def test_two_runs_in_folders_of_one_name_keep_their_scores_apart(tmp_path):
    command = importlib.import_module("dreammatcher.cli.evaluate")
    said = {"protocol": "toybox", "data": ".", "limit": 2, "workflow": {}}
    cases = cases_of(command.benchmark("toybox").protocol_in(tmp_path, tmp_path), limit=2)
    runs = [tmp_path / name / "out" for name in ("plain", "matched")]
    for run, source in zip(runs, (cases[0], cases[1])):
        for case in cases:
            Folder(run).keep(case, {}, source.subject.pictures[0].read_bytes())
        (run / "plan.json").write_text(json.dumps(said))
    command.compare([command.reopened(run, command.Choice(None, False)) for run in runs], tmp_path / "report")
    said = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert set(said) == {"plain/out", "matched/out"}
    first, second = (said[name]["cases"][cases[0].key] for name in ("plain/out", "matched/out"))
    assert first != second
    rows = (tmp_path / "report" / "scores.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"plain/out", "matched/out"} and len(rows) == 5


def test_a_report_of_two_arms_of_one_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="arms: two are called 'ours'"):
        summary([arm(tmp_path / "one", "ours", 0.0), arm(tmp_path / "two", "ours", 0.1)])


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
    (tmp_path / "main.py").write_text("import os, pathlib\npathlib.Path('seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'])")
    monkeypatch.setattr(server.torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="does not start"), server.serving([], tmp_path):
        pass
    assert (tmp_path / "seen").read_text() == "6"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_the_command_are_read_in_the_encoding_that_their_mark_says(tmp_path, encoding):
    photo(tmp_path / "my_dog" / "0.png")
    given, graph = tmp_path / "own.json", tmp_path / "graph.json"
    given.write_text(json.dumps({"prompts": ["a {} on the beach"], "subjects": {"my_dog": "dog"}}), encoding=encoding)
    graph.write_text(json.dumps(GRAPH), encoding=encoding)
    assert protocol_file(given, tmp_path).subjects[0].class_word == "dog"
    assert workflow.read_workflow(graph, {}, None).output == "5"
    for path in (given, graph):
        path.write_bytes("{é".encode("cp1252"))
    with pytest.raises(ValueError, match=r"data: own\.json is no text in UTF-8"):
        protocol_file(given, tmp_path)
    with pytest.raises(ValueError, match=r"workflow: graph\.json is no text in UTF-8"):
        workflow.read_workflow(graph, {}, None)
