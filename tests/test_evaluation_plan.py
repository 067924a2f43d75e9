"""A run's folder belongs to one plan: another one is refused, and more of the same goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from harness.library import ROOT

GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "reference"}},
         "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "one", "clip": ["9", 0]}, "_meta": {"title": "prompt"}},
         "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "negative", "clip": ["9", 0]}},
         "4": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20}},
         "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}}}


@pytest.fixture(scope="module")
def server():
    """A server that speaks ComfyUI's interface and gives the same picture for every graph; it counts them."""
    import io

    buffer, sent = io.BytesIO(), []
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/history/"):
                number = self.path.rpartition("/")[2]
                self.say(json.dumps({number: {"status": {"completed": True, "status_str": "success"}, "outputs": {
                    "5": {"images": [{"filename": "a.png"}]}}}}).encode())
            else:
                self.say(buffer.getvalue() if self.path.startswith("/view") else b"{}")

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/prompt":
                sent.append(json.loads(body)["prompt"])
            self.say(json.dumps({"name": "x.png", "prompt_id": str(len(sent))}).encode())

        def say(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", sent
    running.shutdown()


@pytest.fixture
def run(tmp_path, server):
    """Runs a plan into one folder; gives the number of pictures that were asked for and what was said."""
    address, sent = server

    def ran(graph: dict = GRAPH, identifier: str = "sks", *more: str, prompts=("a {} on grass",), photo: str = "blue",
            **protocol) -> tuple[int, str]:
        for name, said in (("graph.json", graph), ("mine.json", {"samples": 2, "prompts": list(prompts),
                                                                 "subjects": {"toy": "toy"}, **protocol})):
            (tmp_path / name).write_text(json.dumps(said))
        (tmp_path / "toy").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), photo).save(tmp_path / "toy" / "1.png")
        before = len(sent)
        done = subprocess.run(
            [sys.executable, "-m", "dreammatcher.evaluation", "run", str(tmp_path / "graph.json"), "--protocol",
             str(tmp_path / "mine.json"), "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--identifier", identifier,
             "--servers", address, *more], cwd=ROOT, capture_output=True, text=True, timeout=120)
        return len(sent) - before, done.stdout + done.stderr
    return ran


def changed(node: str, name: str, value: object) -> dict:
    return {**GRAPH, node: {**GRAPH[node], "inputs": {**GRAPH[node]["inputs"], name: value}}}


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_another_plan_in_the_same_folder_is_refused_by_what_differs_and_leaves_it_as_it_was(run, tmp_path):
    assert run()[0] == 2
    before = files(tmp_path / "out")
    for given, said in ((dict(graph=changed("4", "steps", 30)), "workflow differ"),
                        (dict(graph=changed("3", "text", "blurry")), "workflow differ"),
                        (dict(identifier="zwx"), "identifier differ"),
                        (dict(prompts=("a {} in the snow",)), "protocol or its data differ"),
                        (dict(subjects={"toy": "robot"}), "protocol or its data differ"),
                        (dict(photo="green"), "protocol or its data differ")):
        pictures, output = run(**given)
        assert pictures == 0 and "pictures of another plan" in output and said in output and "Traceback" not in output, output
        assert files(tmp_path / "out") == before
    pictures, output = run(GRAPH, "sks", "--set", "prompt=3.text")
    assert pictures == 0 and "places of reference, prompt and seed" in output


def test_more_of_the_same_plan_goes_on(run):
    assert run(GRAPH, "sks", "--limit", "1")[0] == 1
    assert run(GRAPH, "sks", "--shard", "0/2")[0] == 0 and run(GRAPH, "sks", "--shard", "1/2")[0] == 1
    assert run(GRAPH, "sks", "--prior", "3")[0] == 3
    assert run(GRAPH)[0] == 0


def test_what_each_case_sets_and_what_a_node_is_called_make_no_other_plan(run):
    assert run(GRAPH)[0] == 2
    named = json.loads(json.dumps(changed("4", "seed", 7)))
    named["4"]["_meta"] = {"title": "my sampler"}
    named["2"]["inputs"]["text"] = "something else"
    assert run(named)[0] == 0


def test_a_folder_of_an_earlier_version_goes_on_when_its_cases_are_this_plan_s(run, tmp_path):
    assert run(GRAPH, "sks", "--limit", "1")[0] == 1
    path = tmp_path / "out" / "plan.json"
    said = json.loads(path.read_text())
    earlier = {name: value for name, value in said.items() if name not in ("pictures", "identifier")}
    for given, different in ((dict(identifier="zwx"), "identifier"), (dict(graph=changed("4", "steps", 30)), "workflow"),
                             (dict(prompts=("a {} in the snow",)), "protocol")):
        path.write_text(json.dumps(earlier))
        pictures, output = run(**given)
        assert pictures == 0 and "of another plan" in output and different in output
    path.write_text(json.dumps(earlier))
    assert run(GRAPH)[0] == 1 and "pictures" in json.loads(path.read_text())


def test_pictures_without_a_plan_that_can_be_read_are_of_an_unknown_one(run, tmp_path):
    assert run(GRAPH)[0] == 2
    for damage in (lambda path: path.unlink(), lambda path: path.write_text("[]"), lambda path: path.write_text("{")):
        damage(tmp_path / "out" / "plan.json")
        pictures, output = run(GRAPH)
        assert pictures == 0 and "cannot be told of which plan" in output and "Traceback" not in output, output
