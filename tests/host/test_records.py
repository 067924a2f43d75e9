"""The match that is shown is that of the run which made the pictures, whatever else has run or was in the host's cache."""

from __future__ import annotations

import copy
import json

import pytest

from harness.examples import full_control, node


def sampler(model: list, latent: list, seed: int = 1, denoise: float = 1.0, steps: int = 5) -> dict:
    return node("KSampler", model=model, positive=["5", 0], negative=["6", 0], latent_image=latent, seed=seed, steps=steps,
                cfg=5.0, sampler_name="euler", scheduler="normal", denoise=denoise)


def preview(images: list, pose: int = 1) -> dict:
    return {"p": node("DreamMatcherPreview", trace=["9", 1], images=images, reference=["r", 0]),
            "r": node("ToyboxReference", subject=1, kind="robot", pose=pose, background="grass")}


def graph(**more) -> dict:
    """Apply ("9") with one sampler ("s") and its picture ("d")."""
    nodes = {number: entry for number, entry in full_control().items() if int(number) <= 10}
    nodes["7"]["inputs"]["steps"], nodes["9"]["inputs"]["start"] = 6, 0.0
    return {**nodes, "s": sampler(["9", 0], ["10", 0]), "d": node("VAEDecode", samples=["s", 0], vae=["1", 2]), **more}


#: the same with a second pass of the same model at a larger size
UP = {"up": node("LatentUpscale", samples=["s", 0], upscale_method="nearest-exact", width=192, height=192, crop="disabled"),
      "s2": sampler(["9", 0], ["up", 0], denoise=0.6), "d2": node("VAEDecode", samples=["s2", 0], vae=["1", 2]),
      "keep": node("PreviewImage", images=["d", 0]), "keep2": node("PreviewImage", images=["d2", 0])}


def match(host, result) -> list:
    """The noise level and match of every step, as the inspector shows them."""
    assert result.success, result.error()
    shown = result.ui["p"]
    assert "text" not in shown, shown["text"]
    return [[step["sigma"], json.loads(host.file(step).read_text())] for step in shown["dreammatcher"][0]["steps"]]


def said(result) -> str:
    assert result.success, result.error()
    return result.ui["p"]["text"][0]


@pytest.fixture(scope="module")
def alone(host) -> dict[str, list]:
    """The match of each picture, from graphs in which nothing else is sampled after it."""
    first = match(host, host.run(graph(**preview(["d", 0]))))
    second = match(host, host.run(graph(**UP, **preview(["d2", 0]))))
    assert len(first) == 4 and second and first != second
    return {"d": first, "d2": second}


@pytest.mark.parametrize("shown", ["d", "d2"])
def test_two_samplers_behind_one_apply_are_told_apart(host, alone, executor, shown):
    assert match(host, host.run(graph(**UP, **preview([shown, 0])), executor)) == alone[shown]


@pytest.mark.parametrize("shown", ["d", "d2"])
def test_a_preview_that_is_added_after_sampling_finds_the_run(host, alone, executor, shown):
    assert host.run(graph(**UP), executor).success
    assert match(host, host.run(graph(**UP, **preview([shown, 0])), executor)) == alone[shown]


def test_going_back_to_an_earlier_seed_shows_its_match_again(host, alone, executor):
    changed = graph(**preview(["d", 0]))
    changed["s"] = sampler(["9", 0], ["10", 0], seed=2)
    assert match(host, host.run(graph(**preview(["d", 0])), executor)) == alone["d"]
    assert match(host, host.run(changed, executor)) != alone["d"]
    assert match(host, host.run(graph(**preview(["d", 0], pose=2)), executor)) == alone["d"], "with another reference picture"


def test_a_sampler_from_the_cache_is_found_when_the_model_was_dropped(host, alone):
    """Short of memory, the default cache drops models first and keeps latents."""
    if "lru" not in host.caches():
        pytest.skip("this host drops nothing that is in use")
    import comfy.model_patcher

    executor = host.executor("lru")
    assert host.run(graph(**preview(["d", 0])), executor).success
    kept = executor.caches.outputs.cache
    for key in [key for key, entry in kept.items() if any(isinstance(value, comfy.model_patcher.ModelPatcher)
                                                         for output in entry.outputs or () for value in output)]:
        del kept[key]
    result = host.run(graph(**preview(["d", 0], pose=2)), executor)
    cached = next(data["nodes"] for event, data in result.messages if event == "execution_cached")
    assert "s" in cached and "9" not in cached
    assert match(host, result) == alone["d"]


def test_pictures_that_another_model_made_have_no_match(host, executor):
    more = {"s3": sampler(["1", 0], ["10", 0]), "d3": node("VAEDecode", samples=["s3", 0], vae=["1", 2]),
            "keep": node("PreviewImage", images=["d", 0])}
    result = host.run(graph(**more, **preview(["d3", 0])), executor)
    assert "no record of a run that made these pictures" in said(result) and "another seed" in said(result)
    assert len(host.images(result, "p")) == 1


def test_pictures_of_another_apply_have_no_match_of_this_one(host, executor):
    other = copy.deepcopy(graph()["9"])
    other["inputs"]["strength"] = 0.5
    more = {"9b": other, "sb": sampler(["9b", 0], ["10", 0]), "db": node("VAEDecode", samples=["sb", 0], vae=["1", 2]),
            "keep": node("PreviewImage", images=["d", 0])}
    assert "no record" in said(host.run(graph(**more, **preview(["db", 0])), executor))


def test_pictures_of_two_runs_in_one_batch_are_named(host):
    more = {"s3": sampler(["9", 0], ["10", 0], seed=4), "d3": node("VAEDecode", samples=["s3", 0], vae=["1", 2]),
            "both": node("ImageBatch", image1=["d", 0], image2=["d3", 0])}
    assert "from 2 runs (nodes s, s3)" in said(host.run(graph(**more, **preview(["both", 0]))))


def test_a_run_that_fell_out_of_the_records_is_not_replaced_by_another(host, pack, monkeypatch):
    records = pack.module("dreammatcher.host.graph.records")
    monkeypatch.setattr(records.RECORDS, "room", 1)  # for the last one alone
    executor = host.executor("classic" if "classic" in host.caches() else "")
    assert host.run(graph(**UP), executor).success
    assert "no record" in said(host.run(graph(**UP, **preview(["d", 0])), executor))


def test_records_are_bounded_and_the_oldest_goes_first(pack):
    records = pack.module("dreammatcher.host.graph.records")

    class Kept:
        def __init__(self, size: int):
            self.size = size

        def bytes(self) -> int:
            return self.size

    store, runs = records.Records(room=100), [Kept(40) for _ in range(4)]
    prompt = {"show": {"class_type": "Show", "inputs": {"images": ["2", 0]}},
              **{str(number): {"class_type": "Sample", "inputs": {"latent": [str(number - 1), 0]}} for number in range(1, 3)}}
    for number, run in enumerate(runs):
        store.keep("apply", records.Place(str(number)), run)
    assert store.kept.bytes() == 80
    left = store.find("apply", records.Viewer(prompt, "show", "images"))
    assert left.records == (runs[2],) and left.nodes == ("2",)
    assert store.find("another", records.Viewer(prompt, "show", "images")).records == ()
    store.keep("apply", records.Place("2"), runs[3])
    assert store.find("apply", records.Viewer(prompt, "show", "images")).records == (runs[3],) and store.kept.bytes() == 80


class Latents:
    """Two latents as a list, for each of which the host runs the nodes behind it."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_IS_LIST = ("LATENT",), "give", "tests", (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def give(self, samples):
        return ([samples, {**samples, "samples": samples["samples"][..., :12]}],)


def test_every_picture_of_a_list_has_the_match_of_its_own_run(host, alone, monkeypatch):
    if "lru" not in host.caches():
        pytest.skip("this host does not say which thing of a list it works on")
    monkeypatch.setitem(host.nodes, "Latents", Latents)
    prompt = graph(many=node("Latents", samples=["10", 0]), **preview(["d", 0]))
    prompt["s"] = sampler(["9", 0], ["many", 0])
    result = host.run(prompt)
    runs = result.ui["p"]["dreammatcher"]
    steps = [[json.loads(host.file(step).read_text()) for step in run["steps"]] for run in runs]
    assert [steps[item][0][0]["size"] for item in range(2)] == [[16, 16], [12, 16]]
    assert [[step["sigma"], data] for step, data in zip(runs[0]["steps"], steps[0])] == alone["d"]


@pytest.mark.parametrize(("size", "firsts"), [(2, [0, 2]), (3, [0, 3])])
def test_a_batch_that_comes_as_a_list_keeps_its_order(host, monkeypatch, size, firsts):
    if "lru" not in host.caches():
        pytest.skip("this host does not say which thing of a list it works on")
    seen = []
    module = host.pack().module("dreammatcher.host.matching.preview")
    cells = module.cells
    monkeypatch.setattr(module, "cells", lambda snapshot, item: seen.append(item) or cells(snapshot, item))
    prompt = graph(list=node("RebatchImages", images=["d", 0], batch_size=size), **preview(["list", 0]))
    prompt["10"]["inputs"]["batch_size"] = 4
    assert host.run(prompt).success
    assert sorted(set(seen)) == [0, 1, 2, 3] and [seen.index(first) for first in firsts] == sorted(map(seen.index, firsts))


class Several:
    """Each picture of a batch three times, as a list: no one can tell which picture of the run one is."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_IS_LIST = ("IMAGE",), "give", "tests", (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def give(self, images):
        return ([images[:1]] * 3,)


def test_pictures_whose_place_in_the_run_nobody_knows_show_no_match(host, monkeypatch):
    if "lru" not in host.caches():
        pytest.skip("this host does not say which thing of a list it works on")
    monkeypatch.setitem(host.nodes, "Several", Several)
    prompt = graph(list=node("Several", images=["d", 0]), **preview(["list", 0]))
    prompt["10"]["inputs"]["batch_size"] = 2
    result = host.run(prompt)
    assert result.success and all("a list that does not hold those of its run" in text for text in result.ui["p"]["text"])


def test_masks_of_vico_are_those_of_the_run_that_made_the_latent(host, executor):
    from harness.examples_vico import vico

    def prompt(samples: list) -> dict:
        graph = {number: entry for number, entry in vico().items() if int(number) < 16 or number in ("18", "19")}
        graph["10"]["inputs"] |= {"steps": 1, "batch": 1}
        graph["15"]["inputs"] |= {"steps": 2, "sampler_name": "euler", "scheduler": "normal"}
        graph |= {"more": copy.deepcopy(graph["15"]), "plain": copy.deepcopy(graph["15"])}
        graph["more"]["inputs"]["steps"] = 3
        graph["plain"]["inputs"]["model"] = ["1", 0]
        for number in ("15", "more"):
            graph |= {f"{number}d": node("VAEDecode", samples=[number, 0], vae=["1", 2]),
                      f"{number}o": node("PreviewImage", images=[f"{number}d", 0])}
        graph["18"]["inputs"]["samples"] = samples
        return graph

    for samples, levels in ((["15", 0], 2), (["more", 0], 3), (["15", 0], 2)):
        result = host.run(prompt(samples), executor)
        assert result.success, result.error()
        assert len(host.images(result, "19")) == levels
    result = host.run(prompt(["plain", 0]), executor)
    assert not result.success and "no record of a run that made these pictures" in result.error()
