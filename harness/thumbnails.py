"""``python -m harness.thumbnails``: the pictures beside the example workflows, and those of the nodes' help pages.

A Toybox workflow is run and shows its references and what became of them; one that needs a checkpoint shows its graph. A help
page shows its node, that of the preview after a run. On a current ComfyUI: those workflows that the packaged host does not know.
Names of example workflows and of nodes behind the command leave out the others.
"""

from __future__ import annotations

import io
import json
import sys

from PIL import Image

from .boot import Host
from .browser import LOAD_AND_FIT, browsing, open_host, run
from .examples import EXAMPLES, FOLDER, save_and_load
from .examples_transformers import NEWER
from .library import ROOT
from .serving import running

SIDE, GAP = 256, 8
#: what is seen of the page: a graph is wider than high, Preview after a run is high
GRAPH, NODE = {"width": 1600, "height": 560}, {"width": 1600, "height": 800}


def pictures(host: Host, prompt: dict) -> list[Image.Image]:
    """References, then the pictures that the prompt saves."""
    sources = [key for key, entry in prompt.items() if entry["class_type"] == "ToyboxReference"]
    for number, source in enumerate(sources, 900):
        prompt[str(number)] = {"class_type": "SaveImage", "inputs": {"images": [source, 0], "filename_prefix": "thumbnails/a"}}
    result = host.run(prompt)
    if not result.success:
        raise RuntimeError(result.error())
    saved = [key for key, entry in prompt.items() if entry["class_type"] == "SaveImage"]
    saved.sort(key=lambda key: (int(key) < 900, int(key)))
    return [host.images(result, key)[0] for key in saved]


def strip(shown: list[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (len(shown) * (SIDE + GAP) - GAP, SIDE), "white")
    for number, picture in enumerate(shown):
        page.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (number * (SIDE + GAP), 0))
    return page


def run_toybox_workflows(host: Host, examples: dict) -> None:
    for name, (make, _) in examples.items():
        if "toybox" not in name:
            continue
        prompt = make()
        if prompt.get("7", {}).get("class_type") == "DreamMatcherLoadReference":
            prompt["7"]["inputs"]["file"] = host.run(save_and_load()).ui["15"]["text"][0].replace("\\", "/").rsplit("/", 1)[1]
        strip(pictures(host, prompt)).save(FOLDER / f"{name}.jpg", quality=90)
        print(name, flush=True)


def show_graphs(tab, examples: dict) -> None:
    tab.set_viewport_size(GRAPH)
    for name in examples:
        if "toybox" not in name:
            run(tab, LOAD_AND_FIT, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
            shown = shot(tab, {"x": 0, "y": 0, **GRAPH})
            shown.resize((800, 280), Image.Resampling.LANCZOS).save(FOLDER / f"{name}.jpg", quality=88)


#: a new node at the top left, or the one of a class that is there; returns its box in the page
PLACE = """
    let node = app.graph._nodes.find((own) => own.type === given);
    if (!node) { app.graph.clear(); node = LiteGraph.createNode(given); app.graph.add(node); }
    node.size = node.size.map((side, index) => Math.max(side, index ? node.computeSize()[1] : 340));
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [20 - node.pos[0], 50 - node.pos[1]];
    node.onResize?.(node.size);
    app.canvas.setDirty(true, true);
    await new Promise((done) => setTimeout(done, 600));
    return { x: 12, y: 12, width: node.size[0] + 16, height: node.size[1] + 46 };
"""


def show_nodes(tab, names: list[str]) -> None:
    tab.set_viewport_size(NODE)
    folder = ROOT / "web" / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    if "DreamMatcherPreview" in names:
        run(tab, "await app.loadGraphData(given); await app.queuePrompt(0, 1)",
            json.loads((FOLDER / "dreammatcher_04_toybox.json").read_text(encoding="utf-8")))
        tab.wait_for_function("() => document.querySelector('.dreammatcher.inspector').dataset.cell", timeout=300_000)
    for name in sorted(names, key=lambda node: node != "DreamMatcherPreview"):
        shot(tab, run(tab, PLACE, name)).save(folder / f"{name}.jpg", quality=90)


def shot(tab, clip: dict) -> Image.Image:
    tab.wait_for_timeout(600)
    return Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB")


def main(chosen: list[str]) -> None:
    host = Host(ROOT / "build" / "host")
    known = {*EXAMPLES, *NEWER, *host.pack().module("nodes").NODE_CLASS_MAPPINGS}
    if unknown := sorted(set(chosen) - known):
        raise SystemExit(f"no example workflow or node is called {', '.join(unknown)}; files are named as in {FOLDER.name}/")
    examples = {name: made for name, made in (NEWER if host.upstream else EXAMPLES).items() if not chosen or name in chosen}
    nodes = [] if host.upstream else [name for name in host.pack().module("nodes").NODE_CLASS_MAPPINGS
                                      if not chosen or name in chosen]
    run_toybox_workflows(host, examples)
    with running(ROOT / "build" / "thumbnails") as address, browsing() as browser:
        tab = browser.new_page()
        open_host(tab, address)
        tab.add_style_tag(content=".comfy-menu { display: none !important }")
        show_graphs(tab, examples)
        show_nodes(tab, nodes)


if __name__ == "__main__":
    main(sys.argv[1:])
