"""``python -m harness.thumbnails``: the pictures beside the example workflows.

A Toybox workflow is run and shows its reference and what became of it; one that needs a checkpoint shows its graph.
"""

from __future__ import annotations

import json

from PIL import Image

from .boot import Host
from .browser import LOAD_AND_FIT, browsing, open_host, run
from .examples import EXAMPLES, FOLDER, save_and_load
from .library import ROOT
from .serving import running

SIDE, GAP = 256, 8


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
    made = Image.new("RGB", (len(shown) * (SIDE + GAP) - GAP, SIDE), "white")
    for number, picture in enumerate(shown):
        made.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.LANCZOS), (number * (SIDE + GAP), 0))
    return made


def main() -> None:
    host = Host(ROOT / "build" / "host")
    for name, (make, _) in EXAMPLES.items():
        if "toybox" not in name:
            continue
        prompt = make()
        if prompt["7"]["class_type"] == "DreamMatcherLoadReference":
            prompt["7"]["inputs"]["file"] = host.run(save_and_load()).ui["15"]["text"][0].replace("\\", "/").rsplit("/", 1)[1]
        strip(pictures(host, prompt)).save(FOLDER / f"{name}.jpg", quality=90)
        print(name, flush=True)
    with running(ROOT / "build" / "thumbnails") as address, browsing() as browser:
        tab = browser.new_page(viewport={"width": 1600, "height": 800})
        open_host(tab, address)
        tab.add_style_tag(content=".comfy-menu { display: none !important }")
        for name in EXAMPLES:
            if "toybox" in name:
                continue
            run(tab, LOAD_AND_FIT, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
            tab.wait_for_timeout(800)
            file = ROOT / "build" / "thumbnails" / f"{name}.png"
            tab.screenshot(path=file)
            picture = Image.open(file).convert("RGB")
            picture.resize((800, 400), Image.LANCZOS).save(FOLDER / f"{name}.jpg", quality=88)
            print(name, flush=True)


if __name__ == "__main__":
    main()
