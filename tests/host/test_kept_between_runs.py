"""Values that one run keeps for the next: dropped when the model computes something else, used again when it does not."""

from __future__ import annotations

import pytest
import torch
from test_records import sampler

from harness.examples import node


@pytest.fixture
def inversions(pack, monkeypatch) -> list[int]:
    """Counts how often Easy (DreamMatcher) has inverted a reference, with few steps."""
    easy, calls = pack.module("dreammatcher.host.matching.easy"), []
    invert = easy.invert_reference
    monkeypatch.setattr(easy, "STEPS", 6)
    monkeypatch.setattr(easy, "invert_reference", lambda *arguments: calls.append(1) or invert(*arguments))
    return calls


def easy(*patches: tuple[str, dict]) -> dict:
    """Easy (DreamMatcher) behind some nodes that patch its model, and its picture."""
    graph, model = {"1": node("ToyboxLoader")}, ["1", 0]
    for number, (name, inputs) in enumerate(patches):
        graph[f"patch{number}"] = node(name, model=model, **inputs)
        model = [f"patch{number}", 0]
    graph |= {
        "2": node("ToyboxReference", subject=1, kind="robot", pose=1, background="grass"),
        "3": node("DreamMatcherEasy", model=model, clip=["1", 1], vae=["1", 2], reference=["2", 0], prompt="a robot in the snow",
                  reference_prompt="a photo of a robot on grass", negative="", subject_words="robot"),
        "10": node("EmptyLatentImage", width=128, height=128, batch_size=1), "s": sampler(["3", 0], ["10", 0]),
        "d": node("VAEDecode", samples=["s", 0], vae=["1", 2]), "o": node("SaveImage", images=["d", 0], filename_prefix="kept")}
    graph["s"]["inputs"] |= {"positive": ["3", 1], "negative": ["3", 2]}
    return graph


VELOCITY = ("ModelSamplingDiscrete", dict(sampling="v_prediction", zsnr=False))
FEW = ("ModelSamplingDiscrete", dict(sampling="lcm", zsnr=False))
FREE_U = ("FreeU_V2", dict(b1=1.3, b2=1.4, s1=0.9, s2=0.2))


@pytest.mark.parametrize("first, then", [((VELOCITY,), ()), ((), (FEW,)), ((VELOCITY,), (FEW,)), ((FREE_U,), ())],
                         ids=["v-prediction, plain", "plain, lcm", "v-prediction, lcm", "FreeU, plain"])
def test_a_picture_is_that_of_a_fresh_run_whatever_the_model_was_before(host, inversions, first, then):
    executor = host.executor()
    assert host.run(easy(*first), executor).success
    warm, cold = host.run(easy(*then), executor), host.run(easy(*then))
    assert host.images(warm, "o")[0].tobytes() == host.images(cold, "o")[0].tobytes()
    again = host.run(easy(*then), host.executor())
    assert host.images(again, "o")[0].tobytes() == host.images(cold, "o")[0].tobytes()


def test_a_new_prompt_inverts_nothing_anew_with_any_cache_that_keeps_nodes(host, executor, inversions):
    for prompt in ("a robot in the snow", "a robot at night"):
        graph = easy(VELOCITY)
        graph["3"]["inputs"]["prompt"] = prompt
        assert host.run(graph, executor).success
    whole = getattr(getattr(executor, "caches", None), "objects", None)
    assert len(inversions) == (2 if type(whole).__name__ == "NullCache" else 1)


def test_a_patch_that_the_inversion_does_not_use_inverts_nothing_anew(host, inversions):
    executor = host.executor()
    for patches in ((), (FREE_U,), ()):
        assert host.run(easy(*patches), executor).success
    assert len(inversions) == 1


def test_features_of_a_run_are_used_by_the_next_though_all_nodes_ran_anew(pack, host, toybox, monkeypatch):
    from world import Bench, random_unet

    references, bench = pack.module("dreammatcher.host.matching.references"), Bench(pack, random_unet())
    passes, run = [], references.reference_pass
    monkeypatch.setattr(references, "reference_pass", lambda *arguments: passes.append(1) or run(*arguments))
    kind = host.nodes["ModelSamplingDiscrete"]

    def matched(sampling: str):
        patched = kind().patch(bench.model, sampling, False)
        return bench.apply((patched.args if hasattr(patched, "args") else patched)[0])[0]

    with torch.inference_mode():
        first = bench.sample(matched("eps"))
        first_passes = len(passes)
        assert torch.equal(bench.sample(matched("eps")), first) and len(passes) == first_passes > 0
        bench.sample(matched("x0" if host.upstream else "lcm"))
        assert len(passes) > first_passes


def test_a_training_gives_the_same_with_every_cache_and_runs_again_only_without_one(host, pack, executor, monkeypatch):
    learn, trained = pack.module("dreammatcher.host.training.learn"), []
    run = learn.run
    monkeypatch.setattr(learn, "run", lambda *arguments: trained.append(run(*arguments)) or trained[-1])
    graph = {
        "1": node("ToyboxLoader"),
        "a": node("ToyboxReference", subject=1, kind="robot", pose=0, background="grass"),
        "b": node("ToyboxReference", subject=1, kind="robot", pose=1, background="grass"),
        "2": node("ImageBatch", image1=["a", 0], image2=["b", 0]),
        "3": node("DreamMatcherTrainingSet", identifier="sks", class_word="robot", template="photo", resolution=128,
                  images=["2", 0]),
        "4": node("DreamMatcherDreamBooth", model=["1", 0], clip=["1", 1], vae=["1", 2], training_set=["3", 0], kind="LoRA",
                  steps=2, rate=1e-4, seed=0),
        "o": node("PreviewImage", images=["4", 3])}
    later = {**graph, "5": node("PreviewImage", images=["2", 0])}
    assert host.run(graph, executor).success and host.run(later, executor).success
    assert len(trained) == (2 if type(getattr(getattr(executor, "caches", None), "outputs", None)).__name__ == "NullCache" else 1)
    assert all(losses == trained[0] and len(losses) == 2 for losses in trained)
