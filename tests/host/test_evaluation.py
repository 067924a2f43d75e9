"""Evaluation in the host: the nodes, and a run over real servers that is killed, shared and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graph_around import TestList, linked
from PIL import Image

from harness.examples import node, sampler
from harness.library import ROOT
from harness.serving import running

GRAPH = {
    "1": node("ToyboxLoader"),
    "2": {**node("LoadImage", image="example.png"), "_meta": {"title": "reference"}},
    "3": {**node("CLIPTextEncode", clip=["1", 1], text=""), "_meta": {"title": "prompt"}},
    "4": node("CLIPTextEncode", clip=["1", 1], text=""),
    "5": node("EmptyLatentImage", width=128, height=128, batch_size=1),
    "6": sampler(["1", 0], ["3", 0], ["4", 0], ["5", 0]),
    "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
    "8": node("SaveImage", images=["7", 0], filename_prefix="evaluation"),
}
CASES = 5


@pytest.fixture(scope="module")
def servers():
    with running(ROOT / "build" / "server-evaluation-1") as one, running(ROOT / "build" / "server-evaluation-2") as two:
        yield [one, two]


@pytest.fixture
def graph(tmp_path) -> Path:
    changed = json.loads(json.dumps(GRAPH))
    changed["6"]["inputs"]["steps"] = 2
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(changed))
    return path


def run(graph: Path, out: Path, servers: list[str], *more: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "dreammatcher.evaluation", "run", str(graph), "--protocol", "toybox", "--out",
                           str(out), "--identifier", "", "--limit", str(CASES), "--servers", *servers, *more], cwd=ROOT,
                          capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def pictures(out: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (out / "cases").glob("*.png")}


def test_a_protocol_runs_over_two_servers_is_scored_and_nothing_is_done_twice(graph, tmp_path, servers):
    done = run(graph, tmp_path / "out", servers)
    assert done.returncode == 0, done.stderr
    assert "subject error" in done.stdout and "about" in done.stdout and (tmp_path / "out" / "report.html").is_file()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cases").iterdir()}
    assert len(first) == 2 * CASES
    again = run(graph, tmp_path / "out", servers[:1])
    assert again.returncode == 0 and {path: path.stat().st_mtime_ns for path in first} == first
    (gone := next(path for path in first if path.suffix == ".png")).unlink()
    assert run(graph, tmp_path / "out", servers[:1]).returncode == 0
    assert [path for path in first if path.stat().st_mtime_ns != first[path]].__len__() == 2 and gone.is_file()


def test_another_plan_is_refused_in_the_folder_of_a_run_and_sends_nothing(graph, tmp_path, servers):
    first = run(graph, tmp_path / "out", servers, "--limit", "1")
    assert first.returncode == 0, first.stderr
    before = pictures(tmp_path / "out")
    other = run(graph, tmp_path / "out", servers, "--limit", "1", "--identifier", "sks")
    assert other.returncode and "pictures of another plan, whose identifier differ" in other.stderr
    changed = json.loads(graph.read_text())
    changed["6"]["inputs"]["steps"] = 3
    graph.write_text(json.dumps(changed))
    other = run(graph, tmp_path / "out", servers, "--limit", "1")
    assert other.returncode and "pictures of another plan, whose workflow differ" in other.stderr
    assert pictures(tmp_path / "out") == before


def test_a_run_with_pictures_of_the_class_alone_is_scored_for_drift(graph, tmp_path, servers):
    done = run(graph, tmp_path / "out", servers, "--prior", "1", "--limit", "42")
    assert done.returncode == 0, done.stderr
    assert "distance of the class" in done.stdout and len(pictures(tmp_path / "out")) == 42
    said = json.loads((tmp_path / "out" / "cases" / f"{min(key for key in pictures(tmp_path / 'out') if '-class-' in key)}.json"
                       ).read_text())
    assert said["prompt"].startswith("a photo of a ") and said["prompt"] == said["plain_prompt"]


def test_two_parts_give_the_pictures_of_one(graph, tmp_path, servers):
    assert run(graph, tmp_path / "whole", servers).returncode == 0
    first = run(graph, tmp_path / "parts", servers[:1], "--shard", "0/2")
    assert first.returncode == 0 and f"{(CASES + 1) // 2} of {CASES} cases are done" in first.stdout
    assert run(graph, tmp_path / "parts", servers[1:], RANK="1", WORLD_SIZE="2").returncode == 0
    whole, parts = (pictures(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and len(whole) == CASES
    for key in whole:
        one, two = (Image.open(tmp_path / name / "cases" / f"{key}.png").convert("RGB") for name in ("whole", "parts"))
        assert one.tobytes() == two.tobytes()
    both = subprocess.run([sys.executable, "-m", "dreammatcher.evaluation", "compare", str(tmp_path / "whole"),
                           str(tmp_path / "parts"), "--out", str(tmp_path / "both")], cwd=ROOT, capture_output=True, text=True)
    assert both.returncode == 0 and "+0.000 [+0.000, +0.000]" in both.stdout


def test_what_fails_is_reported_and_the_others_go_on(graph, tmp_path, servers):
    changed = json.loads(graph.read_text())
    changed["6"]["inputs"]["sampler_name"] = "nonsense"
    graph.write_text(json.dumps(changed))
    done = run(graph, tmp_path / "out", servers)
    assert done.returncode == 1 and "FAILED" in done.stdout and "nonsense" in done.stdout
    assert f"0 of {CASES} cases are done; the same command makes the others" in done.stdout
    for wrong, said in ((("--shard", "1"), "shard: '1' is not as 0/4"),
                        (("--set", "prompt"), "set: 'prompt' is not as prompt=6.text")):
        refused = run(graph, tmp_path / "out", servers, *wrong)
        assert refused.returncode == 1 and said in refused.stderr and "Traceback" not in refused.stderr
    silent = run(graph, tmp_path / "out", ["http://127.0.0.1:9"])
    assert silent.returncode == 1 and "http://127.0.0.1:9 does not answer" in silent.stderr and "Traceback" not in silent.stderr


@pytest.fixture
def encoders(pack, host, tmp_path_factory):
    """The small random encoders of tests/test_evaluation_scores.py in models/evaluation."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_evaluation_scores import folder

    root = pack.module("dreammatcher.host.scoring.scores").encoders_folder()
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.symlink_to(folder.__wrapped__(tmp_path_factory), target_is_directory=True)
    yield root
    root.unlink()


def images(seed: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 96, 80, 3, generator=torch.Generator().manual_seed(seed))


def test_pictures_are_most_alike_to_themselves_and_ways_are_set_side_by_side(host, encoders):
    evaluate, known = host.nodes["DreamMatcherEvaluate"]().measure, images(1, 1)
    choice = "DINO and CLIP, as DreamBooth"
    same = evaluate(known.repeat(2, 1, 1, 1), known, "a dog", choice)
    other = evaluate(images(2), known, "a dog", choice)
    scores, text, dino, clip_i, clip_t, chart = same["result"]
    assert dino == pytest.approx(1, abs=1e-5) and clip_i == pytest.approx(1, abs=1e-5) and -1 <= clip_t <= 1
    assert other["result"][2] < 1 and "DINO: 1.000" in text and same["ui"]["text"] == [text] and chart.shape[-1] == 3
    sheet = host.nodes["DreamMatcherScoreSheet"]().compare(other["result"][0], "plain", scores, "ours")
    table, picture = sheet["result"]
    assert table.splitlines()[2].startswith("| plain |") and "| ours | 1.000 (+" in table and picture.shape[0] == 1
    with pytest.raises(ValueError, match="two of the arms are called 'plain'"):
        host.nodes["DreamMatcherScoreSheet"]().compare(scores, "plain", scores, "plain")
    third = evaluate(images(2), known, "", "DINO and CLIP, as ViCo")["result"]
    assert torch.isnan(torch.tensor(third[4]))
    with pytest.raises(ValueError, match="different encoders"):
        host.nodes["DreamMatcherScoreSheet"]().compare(scores, "one", third[0], "two")


def test_without_encoders_the_node_says_what_belongs_where(host):
    with pytest.raises(ValueError, match=r"dino-vits16 is missing; put .*huggingface.co/facebook/dino-vits16 into .*evaluation"):
        host.nodes["DreamMatcherEvaluate"]().measure(images(1), images(2), "", "DINO and CLIP, as DreamBooth")
    with pytest.raises(ValueError, match="connect Load CLIP Vision"):
        host.nodes["DreamMatcherEvaluate"]().measure(images(1), images(2), "", "CLIP Vision of the graph")


def said_when_queued(host, **inputs) -> str:
    """What the host says when a graph with Evaluate is queued; empty where it takes it."""
    prompt = {"1": node("ToyboxLoader"), "2": node("ToyboxReference", subject=1, kind="cat", pose=1, background="sky"),
              "3": node("EmptyLatentImage", width=128, height=128, batch_size=1),
              "4": node("CLIPTextEncode", clip=["1", 1], text=""),
              "5": sampler(["1", 0], ["4", 0], ["4", 0], ["3", 0]), "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
              "7": node("DreamMatcherEvaluate", results=["6", 0], references=["2", 0], prompt="a cat", **inputs)}
    try:
        host.check(prompt)
    except ValueError as refused:
        return str(refused)
    return ""


def test_all_missing_encoders_are_named_when_the_graph_is_queued_before_anything_is_sampled(host, pack):
    said = said_when_queued(host, encoders="DINO and CLIP, as DreamBooth")
    assert "dino-vits16 is missing; put" in said and "clip-vit-base-patch32 is missing; put" in said
    assert "dinov2-small is missing" in said_when_queued(host, encoders="DINOv2 and CLIP")
    assert "connect Load CLIP Vision" in said_when_queued(host, encoders="CLIP Vision of the graph")
    assert "'nonsense' is unknown; choose one of" in said_when_queued(host, encoders="nonsense")
    assert said_when_queued(host, encoders="Toybox's judge") == ""


def test_what_is_there_is_not_refused_when_the_graph_is_queued(host, encoders):
    assert said_when_queued(host, encoders="DINO and CLIP, as ViCo") == ""


def test_toyboxs_judge_sees_in_the_node_what_its_protocol_measures_of_the_same_picture(host, pack):
    from toybox import evaluation
    from toybox.judge import load_judge

    case, other = evaluation.cases(2, 5)
    picture, labels = case.reference()
    known = pack.module("toybox.scores").judged_pictures
    result = torch.from_numpy(other.reference()[0] / 255).float()[None]
    drawn = torch.from_numpy(picture / 255).float()[None]
    of_result = evaluation.measured(load_judge(), other.reference()[0], other.truth())
    scored = host.nodes["DreamMatcherEvaluate"]().measure(
        torch.cat((drawn, result)), drawn, case.reference_prompt(), "Toybox's judge")
    scores, text, dino, *_, chart = scored["result"]
    same = float(other.subject.kind == case.subject.kind)
    assert scores.values["subject error"][0] == 0 and scores.values["class"] == [1.0, same]
    assert scores.values["scene"][0] == 1 and torch.isnan(torch.tensor(dino)) and chart.shape[-1] == 3
    assert of_result["class"] == 1, "the judge itself sees the other picture's class"
    large = torch.nn.functional.interpolate(drawn.movedim(-1, 1), scale_factor=4.0).movedim(1, -1)
    assert known([large[0].permute(2, 0, 1)], [drawn[0].permute(2, 0, 1)], [""])["subject error"][0] < 2, "size matters little"
    assert "subject error: " in text and "lower is better" in text


def test_an_example_on_toybox_is_scored_with_the_reference_nearer_than_the_plain_picture(host):
    from harness.examples import EXAMPLES

    prompt = EXAMPLES["dreammatcher_24_evaluate_toybox"][0]()
    prompt["4"]["inputs"]["batch_size"] = 2
    for number in ("5", "6"):
        prompt[number]["inputs"]["steps"] = 10
    result = host.run(prompt)
    assert result.success, result.error()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.ui["11"]["text"][0].splitlines()[:4]]
    assert rows[0] == ["", "subject error", "class", "scene"] and [row[0] for row in rows[2:]] == ["plain", "DreamMatcher"]
    plain, ours = float(rows[2][1]), float(rows[3][1].split()[0])
    assert ours < 0.6 * plain and "(-" in rows[3][1], rows


def test_toyboxs_judge_refuses_photos_and_leaves_out_what_the_prompt_does_not_name(host, pack):
    known = pack.module("toybox.scores").judged_pictures
    cat, fish = (host.nodes["ToyboxReference"]().draw(1, kind, 1, "sky")[0][0].permute(2, 0, 1) for kind in ("cat", "fish"))
    assert "scene" not in known([cat], [cat], ["a photo of a cat"])
    assert known([fish], [cat], ["a photo"])["class"] == [0.0], "the class is the reference's where the prompt names none"
    assert torch.tensor(known([fish, cat], [cat], ["a cat", "a cat"])["subject error"]).isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="references: Toybox's judge sees no robot in them"):
        known([cat], [cat], ["a robot in the snow"])


def test_results_and_references_in_lists_are_scored_as_in_a_batch(host, encoders):
    def graph(sources):
        return {**sources, "5": node("DreamMatcherEvaluate", results=["1", 0], references=["2", 0], prompt="a dog",
                                    encoders="DINO and CLIP, as DreamBooth")}

    pictures = [images(seed, 1) for seed in range(3)]
    photos = [torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(9)) for size in ((96, 80), (70, 120), (100, 100))]
    listed = host.run(graph({"1": linked(host, pictures, "results", TestList), "2": linked(host, photos, "photos", TestList)}))
    assert listed.success, listed.error()
    text, = listed.ui["5"]["text"]
    assert text.splitlines()[0].count(",") == 2, "a score for each of three results"
    known = [photos[0], photos[0]]
    batch = graph({"1": linked(host, torch.cat(pictures), "batch"), "2": linked(host, torch.cat(known), "same")})
    split = graph({"1": linked(host, pictures, "results", TestList), "2": linked(host, known, "known", TestList)})
    assert host.run(batch).ui["5"]["text"] == host.run(split).ui["5"]["text"]


def test_each_result_of_a_list_follows_its_own_prompt(host, pack, encoders):
    score_pictures = pack.module("dreammatcher.host.scoring.scores").score_pictures
    pictures = [images(seed, 1) for seed in range(2)]
    choice = "DINO and CLIP, as DreamBooth"
    alone = [score_pictures(picture, pictures, said, choice).values["CLIP-T"][0]
             for picture, said in zip(pictures, ("a dog", "a cat"))]
    assert score_pictures(pictures, pictures, ["a dog", "a cat"], choice).values["CLIP-T"] == pytest.approx(alone, rel=1e-4)
    with pytest.raises(ValueError, match="prompt: there are 3 texts for 2 results"):
        score_pictures(pictures, pictures, ["a", "b", "c"], choice)
    with pytest.raises(ValueError, match="prompt: text 2 of 2 is empty"):
        score_pictures(pictures, pictures, ["a", ""], choice)
