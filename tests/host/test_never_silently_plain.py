"""A run that matched nothing never looks like one that did: compiled models, other packs' calls, several devices, messages."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from test_nodes import quick
from world import Bench, family_unet, picture, random_unet

from harness.examples import full_control


@pytest.fixture
def bench(pack) -> Bench:
    return Bench(pack, random_unet())


def compiled(model):
    """Compiles as the host's TorchCompileModel does: without guards on transformer options."""
    helpers = pytest.importorskip("comfy_api.torch_helpers", reason="this host compiles with guards")
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    clone = model.clone()
    helpers.set_torch_compile_wrapper(model=clone, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    return clone


def test_a_model_compiled_plain_and_then_matched_is_matched_and_the_other_way_round(bench, no_graphs):
    plain, expected = bench.sample(), bench.sample(bench.apply()[0])
    for _ in range(2):
        assert torch.equal(bench.sample(compiled(bench.model)), plain)
        matched, trace = bench.apply()
        assert torch.equal(bench.sample(compiled(matched)), expected) and not trace.skipped


@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
@pytest.mark.parametrize("plain_first", [False, True])
def test_a_graph_that_serves_several_blocks_leaves_no_layer_out(pack, family, plain_first, no_graphs):
    """Without guards on transformer options one block's graph is used for every block of its shape."""
    bench = Bench(pack, family_unet(family), height=32, width=32, pooled=1280 if family == "SDXL" else None)
    plain, expected = bench.sample(steps=2), bench.sample(bench.apply()[0], steps=2)
    assert not torch.equal(plain, expected)
    if plain_first:
        assert close(bench.sample(compiled(bench.model), steps=2), plain, RUN)
    matched, trace = bench.apply()
    assert close(bench.sample(compiled(matched), steps=2), expected, RUN) and not trace.skipped


def test_a_graph_without_our_patches_is_noticed_and_the_run_goes_on_uncompiled(bench, pack, monkeypatch, no_graphs):
    """The mark is taken away, so that the stale graph is used again."""
    import contextlib

    expected = bench.sample(bench.apply()[0])
    bench.sample(compiled(bench.model))
    monkeypatch.setattr(pack.module("dreammatcher.host.sampling.model_calls"), "marked", contextlib.nullcontext)
    matched, trace = bench.apply()
    assert torch.equal(bench.sample(compiled(matched)), expected)
    assert any("made without DreamMatcher" in reason for reason in trace.skipped)


def test_a_call_that_another_pack_makes_of_its_own_picture_is_left_alone_and_the_rest_is_matched(bench):
    """Advanced-ControlNet's reference attention does this: its reference goes through the UNet first, in the same call."""
    extension = pytest.importorskip("comfy.patcher_extension", reason="this host has no wrappers")

    def with_a_reference(executor, x, *rest):
        executor(picture(50).to(x).expand_as(x), *rest)
        return executor(x, *rest)

    expected = bench.sample(bench.apply()[0])
    matched, trace = bench.apply()
    matched.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "pack", with_a_reference)
    assert torch.equal(bench.sample(matched), expected)
    assert not trace.skipped and trace.last() is not None


def test_a_pack_that_changes_the_picture_in_front_of_the_unet_is_still_matched(bench):
    extension = pytest.importorskip("comfy.patcher_extension", reason="this host has no wrappers")
    matched, trace = bench.apply()
    matched.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "pack",
                                 lambda executor, x, *rest: executor(x * 1.01, *rest))
    bench.sample(matched)
    assert trace.last() is not None and any("changes the picture" in reason for reason in trace.skipped)


def test_a_run_on_several_devices_is_matched_on_one(bench, host):
    """The host's own split of the guidance pair, with the CPU as both devices."""
    if not host.upstream or not hasattr(__import__("comfy.samplers").samplers, "_calc_cond_batch_multigpu"):
        pytest.skip("this host samples on one device")
    expected = bench.sample(bench.apply()[0])
    matched, trace = bench.apply()
    matched.model_options["multigpu_clones"] = {torch.device("cpu"): matched, torch.device("cpu", 0): matched}
    assert torch.equal(bench.sample(matched), expected) and trace.last() is not None


@pytest.mark.parametrize("settings, options, reason", [
    ({}, {"steps": 1}, "only one step"),
    ({"start": 0.0, "end": 0.01}, {"steps": 4}, "only one step"),
    ({"start": 0.98}, {"steps": 2, "scheduler": "simple"}, "no step lies between start and end"),
])
def test_a_run_that_matched_nothing_says_so_with_the_reason(bench, caplog, settings, options, reason):
    matched, trace = bench.apply(**settings)
    bench.sample(matched, **options)
    assert reason in trace.why_nothing_matched()
    assert [record for record in caplog.records if "nothing was matched" in record.message and reason in record.message]


def test_a_run_that_matched_says_nothing_and_strength_0_is_the_users_wish(bench, caplog):
    matched, trace = bench.apply()
    bench.sample(matched)
    off, off_trace = bench.apply(strength=0.0)
    bench.sample(off)
    assert trace.why_nothing_matched() == "" and off_trace.why_nothing_matched() == "strength is 0"
    assert not [record for record in caplog.records if "nothing was matched" in record.message]


def test_matches_that_nobody_trusts_are_told(bench, pack):
    matched, trace = bench.apply()
    bench.sample(matched)
    for level, known in list(trace.snapshots.items()):
        trace.snapshots[level] = pack.module("dreammatcher.matching.settings").Snapshot(
            **{**vars(known), "confidence": torch.zeros_like(known.confidence)})
    assert "no match was trusted" in trace.why_nothing_matched()


def test_the_node_that_ran_shows_the_message(bench, pack, monkeypatch):
    """Reads the messages that the host's server is asked to send."""
    class Server:
        client_id, last_node_id, sent = "someone", "12", []

        def send_progress_text(self, text, node, client):
            self.sent.append((text, node, client))

    running = Server()
    monkeypatch.setattr(pack.module("dreammatcher.host.graph.notes"), "server", lambda: running)
    bench.sample(bench.apply()[0], steps=1)
    assert len(running.sent) == 1 and "only one step" in running.sent[0][0] and running.sent[0][1:] == ("12", "someone")


def test_the_preview_shows_the_reason_as_a_picture_and_a_text(host):
    result = host.run(quick(full_control(), DreamMatcherApply={"strength": 0.0}))
    assert result.success, result.error()
    assert result.ui["17"]["text"] == ["Nothing was matched: strength is 0."]
    shown = host.images(result, "17")
    assert len(shown) == 1 and len(shown[0].convert("L").getcolors()) > 2
