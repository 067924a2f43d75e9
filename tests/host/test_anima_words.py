"""Words in Anima's prompts: its text encoder is Qwen's, and its network reads them in columns of its own, one a token of T5."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from test_other_encoders import PROMPT, SMALL, random_clip, tokenizer_of
from transformers_world import SIGMA, SIZE, TRANSFORMERS, applied, bench_of, drawn, evaluated, made, reference_of

COLUMNS = 512  # that the network makes of shorter prompts


@pytest.fixture(scope="module")
def clip(host):
    """The host's text encoder of Anima; its vectors are as wide as the real ones."""
    tokenizer_of("anima", "AnimaTokenizer")
    from comfy.text_encoders import anima, llama

    return random_clip(anima.AnimaTokenizer, anima.AnimaTEModel, "qwen3_06b", llama.Qwen3_06B,
                       {**SMALL, "hidden_size": 1024, "intermediate_size": 64})


@pytest.fixture
def bench(pack, clip, monkeypatch):
    config = {**TRANSFORMERS["Cosmos-Predict2"][1], "crossattn_emb_channels": 1024, "image_model": "anima"}
    monkeypatch.setitem(TRANSFORMERS, "Anima", ("Anima", config, None))
    ready = bench_of(pack, "Anima")
    ready.positive, ready.subject = encoded(pack, clip, PROMPT, "robot")
    ready.negative, _ = encoded(pack, clip, "a castle", "castle")
    return ready


def encoded(pack, clip, prompt: str, words: str):
    module = pack.module("dreammatcher.host.text.conditioning")
    with torch.inference_mode():
        return module.encode_subject(clip, prompt, module.subject_of(clip, prompt, words))


def place_of(pack, subject, entry):
    """Where a subject stands in a prompt's entry as it is sampled."""
    prompts = pack.module("dreammatcher.host.text.prompts")
    cond, options = entry
    return prompts.Prompt.of({"cross_attn": cond, **options}, "name").encoded["name"].place(subject)


def test_a_words_columns_are_its_tokens_of_t5(pack, clip):
    conditioning, subject = encoded(pack, clip, PROMPT, "robot")
    tokens = conditioning[0][1]["t5xxl_ids"].tolist()
    vocabulary = clip.tokenizer.t5xxl.inv_vocab
    assert subject.tokens == COLUMNS and len(tokens) < COLUMNS
    robot, other = (n for n, token in enumerate(tokens) if vocabulary[token] == "\u2581robot")
    assert subject.columns == (robot,) and vocabulary[tokens[other + 1]] == "s", "the other one is of robots"
    assert len(tokens) != conditioning[0][0].shape[1], "or Qwen's columns could be taken for them"


def test_a_word_is_found_where_its_prompt_is_sampled_though_other_nodes_changed_its_values(pack, clip):
    (cond, options), = encoded(pack, clip, PROMPT, "robot")[0]
    subject = encoded(pack, clip, PROMPT, "robot")[1]
    bare = {name: value for name, value in options.items() if name != "dreammatcher_subject"}
    joined = torch.cat((torch.randn_like(cond), cond), 1)  # as Conditioning (Concat) does: it keeps the second one's tokens of T5
    for states in (cond, cond * 0.5 + 0.1, joined):
        for told in (options, bare):
            place, remark = place_of(pack, subject, (states, told))
            assert place.columns == subject.columns and place.tokens == COLUMNS and not remark
    (cond, other), = encoded(pack, clip, "a photo of a castle", "castle")[0]
    other = {name: value for name, value in other.items() if name != "dreammatcher_subject"}
    place, remark = place_of(pack, subject, (cond, other))
    assert place is None and "does not hold the subject 'robot'" in remark
    reference = pack.module("dreammatcher.host.text.conditioning").from_host([[joined, options]], "positive")
    assert reference[1].columns == subject.columns and torch.equal(reference[0].text[subject.columns[0]], subject.vectors[0])


def test_the_map_is_softmax_over_all_columns_that_the_host_hands_over(bench):
    x, seen, calls = made(bench)[2], {}, {}
    (column,) = bench.subject.columns

    def hold(func, q, k, v, *rest, **named):
        number = named["transformer_options"].get("block_index")
        if number is not None and q.shape[-2] != k.shape[-2]:
            calls[number] = q, k
        return func(q, k, v, *rest, **named)

    watched = bench.model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = hold
    evaluated(watched, bench.positive, bench.negative, [(x, SIGMA)])
    module, points = (bench.pack.module(f"dreammatcher.host.model.{each}") for each in ("capture", "patch_points"))
    reader = module.SubjectMaps(bench.backbone.prompt_attention(None, bench.backbone.readers), bench.backbone, bench.subject)

    def keep(site, query, prompt, keys, options):
        seen[site] = reader.read(site, query, prompt, keys, SIZE)
        return query, prompt, keys

    conditioning = bench.pack.module("dreammatcher.host.text.conditioning").from_host(bench.positive, "positive")[0]
    with torch.inference_mode():
        module.ode_derivative(bench.model.model, conditioning, x[:, :, 0], SIGMA, points.Points(prompt=keep))
    assert {site[1] for site in seen} == set(calls) and len(calls) == bench.backbone.blocks
    for site, found in seen.items():
        query, key = calls[site[1]]
        assert key.shape[-2] == COLUMNS
        wanted = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)[..., column].mean(1)
        assert close(found.flatten(), wanted.flatten(), RUN) and wanted.std() > 0


def planted(monkeypatch, places: dict[int, torch.Tensor]) -> None:
    """Queries of each column's cells [h, w] that look at the column."""
    from comfy.ldm.cosmos import predict2

    real = predict2.optimized_attention

    def looking(q, k, v, *rest, **named):
        if "block_index" not in named.get("transformer_options", {}) or k.shape[-2] != COLUMNS:
            return real(q, k, v, *rest, **named)
        q, k = q.clone(), k.clone()
        kinds = torch.linalg.qr(torch.randn(q.shape[-1], len(places), generator=torch.Generator().manual_seed(4)))[0].T
        for kind, (column, place) in zip(6 * q.shape[-1] ** 0.5 * kinds.to(q), places.items()):
            k[..., column, :] += kind
            q[..., place.flatten(), :] += kind
        return real(q, k, v, *rest, **named)

    monkeypatch.setattr(predict2, "optimized_attention", looking)


@pytest.mark.parametrize("carried", [True, False])
def test_with_a_word_alone_its_cells_are_matched(bench, clip, monkeypatch, carried):
    """The watchdog is looked at everywhere else."""
    robot = torch.zeros(bench.backbone.grid(bench.backbone.matched[0], SIZE), dtype=torch.bool)
    robot[:, 2:5] = True
    _, dog = encoded(bench.pack, clip, PROMPT, "watchdog")
    planted(monkeypatch, {bench.subject.columns[0]: robot, dog.columns[0]: ~robot})
    clean, noise, x = made(bench)
    for subject, cells in ((bench.subject, robot), (dog, ~robot)):
        matched, trace = applied(bench, reference_of(bench, clean, noise, bench.positive), {
            "reference_subject": subject, "target_subject": subject, "carried": carried})
        evaluated(matched, bench.positive, bench.negative, [(x, SIGMA)] * 3)
        assert torch.equal(trace.last().target_mask[0, 0] > 0.5, cells) and trace.layers and not trace.skipped


def test_a_whole_run_with_guidance_and_a_reference_from_a_file(bench, clip, tmp_path):
    module = bench.pack.module("dreammatcher.matching.reference")
    clean, noise, _ = made(bench, 9)
    module.save(reference_of(bench, clean, noise, bench.positive), tmp_path / "reference.safetensors")
    reference = module.load(tmp_path / "reference.safetensors")
    plain = drawn(bench.model, bench.positive, bench.negative, cfg=3.0, batch=2)
    for mask in ({"carried": True}, {"otsu": False}):
        matched, trace = applied(bench, reference, {"reference_subject": bench.subject, "target_subject": bench.subject, **mask})
        result = drawn(matched, bench.positive, bench.negative, cfg=3.0, batch=2)
        assert torch.isfinite(result).all() and not close(result, plain, RUN) and trace.layers and not trace.skipped
    other = encoded(bench.pack, clip, "a photo of a castle", "castle")[1]
    mask = {"reference_mask": torch.ones(1, 1, *SIZE), "target_subject": other, "carried": True}
    matched, trace = applied(bench, reference, mask)
    assert torch.equal(drawn(matched, bench.positive, bench.negative, cfg=3.0, batch=2), plain)
    assert any("does not hold the subject 'castle'" in reason for reason in trace.skipped)
