"""The subject is matched where it stands in the conditioning that is sampled, whatever other nodes did to the prompt."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from test_two_text_encoders import WIDTHS, two_encoders

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

TEXT, WORD, OTHER = "a photo of a robot", "robot", "in the snow at night"


@pytest.fixture(scope="module")
def clip(host):
    """Toybox's CLIP, and embeddings: of another width (three vectors, and one), and of its own."""
    folder = host.folder / "models" / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    host.folder_paths.add_model_folder_path("embeddings", str(folder))
    for name, shape in (("other3", (3, 64)), ("other1", (1, 128)), ("mine2", (2, 96))):
        save_file({"emb_params": torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))},
                  folder / f"{name}.safetensors")
    with torch.inference_mode():
        return host.nodes["ToyboxLoader"]().load()[1]


@pytest.fixture(scope="module")
def subject(host, clip):
    """CONDITIONING, DM_SUBJECT and remarks of Subject (DreamMatcher)."""
    def encoded(text=TEXT, words=WORD, clip=clip):
        with torch.inference_mode():
            done = host.nodes["DreamMatcherSubject"]().encode(clip, text, words)
        return *done["result"], done["ui"]["text"]
    return encoded


@pytest.fixture(scope="module")
def encode(host, clip):
    def encoded(text):
        with torch.inference_mode():
            return host.nodes["CLIPTextEncode"]().encode(clip, text)[0]
    return encoded


@pytest.fixture(scope="module")
def joined(host):
    def concatenated(*texts):
        for text in texts[1:]:
            texts = (host.nodes["ConditioningConcat"]().concat(texts[0], text)[0], *texts[1:])
        return texts[0]
    return concatenated


@pytest.fixture(scope="module")
def averaged(host):
    return lambda to, other, share=0.6: host.nodes["ConditioningAverage"]().addWeighted(to, other, share)[0]


@pytest.fixture(scope="module")
def match(host, pack, toybox, subject, encode):
    """Draws with a prompt and a target subject: the picture's latent, and what the run left to look at."""
    nodes, (model, _, vae) = host.nodes, toybox
    with torch.inference_mode():
        photo = vae.encode(nodes["ToyboxReference"]().draw(1, "robot", 1, "grass")[0])
        positive, reference_subject, _ = subject("a photo of a robot on grass")
        reference = nodes["DreamMatcherInvert"]().invert(
            model, positive, encode(""), 6, "ddim_uniform", reference={"samples": photo})[0]

    def drawn(prompt, target, negative="", steps=5):
        mask = nodes["DreamMatcherMask"]().make(reference_subject, target, 0.4, "otsu")[0]
        matched, trace = nodes["DreamMatcherApply"]().apply(model, reference, mask, 1.0, 0.0, 1.0, "")
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        latents = nodes["KSampler"]().sample(matched if target is not None else model, 3, steps, 5.0, "euler", "normal", prompt,
                                             encode(negative), latent)[0]["samples"]
        return latents, trace

    def plain(prompt, negative="", steps=5):
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        return nodes["KSampler"]().sample(model, 3, steps, 5.0, "euler", "normal", prompt, encode(negative), latent)[0]["samples"]

    drawn.plain = plain
    return drawn


@pytest.fixture(scope="module")
def at(pack):
    """A subject that stands at some columns of a prompt, whatever is there."""
    Subject = pack.module("dreammatcher.subject").Subject
    return lambda *columns, tokens=77: Subject(WORD, TEXT, columns, tokens)


def unmarked(prompt):
    return [[tensor, {name: value for name, value in options.items() if not name.startswith("dreammatcher")}]
            for tensor, options in prompt]


LONG = "grass " * 80
PROMPTS = {
    "in front": "a photo of embedding:other3 robot in the snow",
    "two in front": "embedding:other1 a photo of embedding:other3 robot in the snow",
    "behind": "a photo of a robot embedding:other3 in the snow",
    "around two places": "a robot embedding:other3 and a robot",
    "with weights": "a photo of (embedding:other3:1.2) a ((robot)) in the snow",
    "beside one that fits": "a embedding:mine2 photo embedding:other3 of a robot",
    "in the first of two chunks": f"embedding:other3 robot {LONG} robot",
    "in the second of two chunks": f"{LONG} embedding:other3 robot",
    "at the border of two chunks": "grass " * 72 + "embedding:other3 robot",
    "one that is not there": "a photo of embedding:nosuchfile a robot",
}


@pytest.mark.parametrize("place", PROMPTS)
def test_columns_are_those_of_the_word_in_what_the_text_encoder_made_beside_embeddings_that_do_not_fit(subject, clip, place):
    """An end token in the word's place changes its columns and those behind it in the chunk, and nothing in front of it."""
    prompt = PROMPTS[place]
    conditioning, marked, remarks = subject(prompt)
    text = conditioning[0][0]
    assert marked.tokens == text.shape[1] and torch.equal(marked.vectors, text[0, list(marked.columns)])
    expected = set()
    for number in range(prompt.split().count("robot") + prompt.count("((robot))")):
        parts = prompt.split("robot")
        swapped = "robot".join(parts[:number + 1]) + "cat" + "robot".join(parts[number + 1:])
        changed = (subject(swapped, "cat")[0][0][0] - text)[0].abs().amax(1) > 1e-6
        expected.add(int(changed.nonzero()[0]))
    assert set(marked.columns) == expected
    missing = "nosuchfile" in prompt
    assert any(("is not among" if missing else "ComfyUI leaves it out") in remark for remark in remarks)


def test_an_embedding_that_fits_moves_nothing_and_nothing_is_said(subject):
    _, place, remarks = subject("a photo of embedding:mine2 robot in the snow")
    assert place.columns == (6,) and remarks == []


def test_an_embedding_that_the_host_leaves_out_cannot_be_the_subject(subject):
    with pytest.raises(ValueError, match="'embedding:other3' is an embedding of another kind of model"):
        subject("a photo of embedding:other3 on grass", "embedding:other3")
    _, place, _ = subject("a photo of embedding:mine2 on grass", "embedding:mine2")
    assert place.columns == (4, 5)


def test_where_only_one_of_two_text_encoders_takes_an_embedding_both_places_of_the_word_count_and_it_is_said(
        host, subject, tmp_path):
    save_file({"emb_params": torch.randn(3, WIDTHS["l"])}, tmp_path / "half.safetensors")
    clip = two_encoders(tmp_path)
    _, place, remarks = subject("a embedding:half robot in the snow", WORD, clip)
    assert place.columns == (2, 5) and place.tokens == 77
    assert len(remarks) == 1 and "'embedding:half' does not fit the text encoder g" in remarks[0]
    _, alone, remarks = subject("a embedding:half on grass", "embedding:half", clip)
    assert alone.columns == (2, 3, 4) and len(remarks) == 1
    save_file({"clip_l": torch.randn(2, WIDTHS["l"]), "clip_g": torch.randn(2, WIDTHS["g"])}, tmp_path / "both.safetensors")
    _, unnamed, _ = subject("a embedding:both robot on grass", "", clip)
    assert unnamed.columns == (1, 2, 3, 4, 5, 6)
    assert [columns for _, columns in unnamed.choices] == [(one,) for one in unnamed.columns]


@pytest.mark.parametrize("negative", ["", LONG])
@pytest.mark.parametrize("order, columns", [("so", (5,)), ("os", (82,)), ("oso", (82,)), ("lso", (159,)), ("ss", (5, 82))])
def test_in_joined_prompts_the_subject_is_matched_in_its_own_text_in_any_order(
        match, subject, encode, joined, at, order, columns, negative):
    marked, target, _ = subject()
    prompt = joined(*({"s": marked, "o": encode(OTHER), "l": encode(LONG)}[one] for one in order))
    drawn, trace = match(prompt, target, negative)
    expected, _ = match(unmarked(prompt), at(*columns, tokens=prompt[0][0].shape[1]), negative)
    assert torch.equal(drawn, expected) and not trace.skipped
    wrong, _ = match(unmarked(prompt), at(9, tokens=prompt[0][0].shape[1]), negative)
    assert not torch.equal(drawn, wrong)


def test_a_prompt_that_the_host_repeats_for_a_longer_negative_one_is_matched_in_every_repeat(match, subject, at):
    marked, target, _ = subject()
    drawn, trace = match(marked, target, LONG)
    assert torch.equal(drawn, match(unmarked(marked), at(5), LONG)[0]) and not trace.skipped


@pytest.mark.parametrize("change", [torch.Tensor.bfloat16, torch.Tensor.half, lambda text: 0.9 * text,
                                    lambda text: torch.cat([text, torch.ones(1, 4, 96)], 1)],
                         ids=["bfloat16", "half", "scaled", "with tokens of a pack behind it"])
def test_a_prompt_that_another_pack_casts_scales_or_lengthens_is_matched_where_the_subject_stands(match, subject, at, change):
    (tensor, options), = subject()[0]
    prompt, target = [[change(tensor), options]], subject()[1]
    drawn, trace = match(prompt, target)
    assert torch.equal(drawn, match(unmarked(prompt), at(5))[0]) and not trace.skipped


def test_an_averaged_prompt_is_matched_where_the_words_stood_and_the_node_says_so(
        pack, match, subject, encode, averaged, at, monkeypatch):
    marked, target, _ = subject()
    prompt, said = averaged(marked, encode("a cat in the snow at night")), []
    monkeypatch.setattr(pack.module("dreammatcher.host.sampling.session"), "tell", said.append)
    drawn, trace = match(prompt, target)
    assert said == trace.skipped
    assert torch.equal(drawn, match(unmarked(prompt), at(5))[0])
    assert len(trace.skipped) == 1 and "averaged" in trace.skipped[0]


def test_a_prompt_of_another_dreammatcher_subject_with_the_same_words_is_matched_where_that_one_says(
        match, subject, encode, averaged, at):
    target, (other, place, _) = subject()[1], subject("a robot and a cat in the snow")
    drawn, trace = match(other, target)
    assert place.columns == (2,) and torch.equal(drawn, match(unmarked(other), at(2))[0]) and not trace.skipped
    mixed = averaged(other, encode("a cat at night"))
    drawn, trace = match(mixed, target)
    assert torch.equal(drawn, match(unmarked(mixed), at(2))[0]) and "averaged" in trace.skipped[0]
    drawn, trace = match(subject("a photo of a cat", "cat")[0], target)
    assert trace.layers == 0 and "does not hold the subject 'robot'" in trace.why_nothing_matched()


@pytest.mark.parametrize("kind", ["another text", "averaged into another", "averaged and joined"])
def test_a_prompt_that_does_not_hold_the_subject_is_drawn_plain_and_the_node_says_why(
        match, subject, encode, averaged, joined, caplog, kind):
    marked, target, _ = subject()
    other = encode("a cat in the snow at night")
    prompt = {"another text": other, "averaged into another": averaged(other, marked),
              "averaged and joined": joined(averaged(marked, other), other)}[kind]
    with caplog.at_level("WARNING"):
        drawn, trace = match(prompt, target)
    assert torch.equal(drawn, match.plain(prompt)) and trace.layers == 0
    assert "connect the conditioning of the same Subject (DreamMatcher)" in trace.why_nothing_matched()
    assert any("nothing was matched in this run" in record.getMessage() for record in caplog.records)


def test_the_same_text_from_clip_text_encode_is_as_good_as_the_marked_one(match, subject, encode):
    marked, target, _ = subject()
    drawn, trace = match(encode(TEXT), target)
    assert torch.equal(drawn, match(marked, target)[0]) and not trace.skipped


def test_each_span_of_a_schedule_is_matched_where_its_own_prompt_has_the_subject(
        host, pack, match, subject, encode, joined, monkeypatch):
    span = host.nodes["ConditioningSetTimestepRange"]().set_range
    marked, target, _ = subject()
    texts = joined(marked, encode(OTHER)), joined(encode(OTHER), marked)
    schedule = [entry for ((tensor, options),), share in zip(texts, (0.0, 0.5))
                for entry in span([[tensor, {**options, "dreammatcher_subject": target}]], share, share + 0.5)[0]]
    capture, seen = pack.module("dreammatcher.host.model.capture"), []
    read = capture.attention_columns

    def noted(query, key, heads, columns):
        if len(key[0]) == 154:
            seen.append(tuple(columns))
        return read(query, key, heads, columns)

    monkeypatch.setattr(capture, "attention_columns", noted)
    _, trace = match(schedule, target, steps=8)
    assert list(dict.fromkeys(seen)) == [(5,), (82,)] and not trace.skipped


def test_of_combined_prompts_each_is_matched_where_it_has_the_subject(host, match, subject, encode, joined):
    marked, target, _ = subject()
    combine = host.nodes["ConditioningCombine"]().combine
    (tensor, options), = joined(encode(OTHER), marked)
    second = [[tensor, {**options, "dreammatcher_subject": target}]]
    drawn, trace = match(combine(marked, second)[0], target)
    assert trace.layers and not trace.skipped and not torch.equal(drawn, match.plain(combine(marked, second)[0]))
    other, trace = match(combine(marked, encode(OTHER))[0], target)
    assert trace.layers and not trace.skipped


@pytest.mark.parametrize("order, columns", [("so", (5,)), ("os", (82,))])
def test_a_reference_of_a_joined_prompt_keeps_where_the_subject_stands_there(
        host, pack, toybox, subject, encode, joined, tmp_path, order, columns):
    conditioning, marked, _ = subject()
    prompt = joined(*({"s": conditioning, "o": encode(OTHER)}[one] for one in order))
    prompt = [[prompt[0][0], {**prompt[0][1], "dreammatcher_subject": marked}]]
    photo = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))}
    inverted = host.nodes["DreamMatcherInvert"]().invert(toybox[0], prompt, encode(""), 2, "ddim_uniform", photo)[0]
    assert (inverted.subject.columns, inverted.subject.tokens) == (columns, 154)
    files, plans = pack.module("dreammatcher.matching.reference"), pack.module("dreammatcher.matching.plan")
    files.save(inverted, tmp_path / "one.safetensors")
    again = files.load(tmp_path / "one.safetensors")
    masks = pack.module("dreammatcher.matching.settings").MaskSettings(marked, marked)
    for reference in (inverted, again):
        (_, located), = plans.members_in_use(reference, masks)
        assert (located.columns, located.tokens) == (columns, 154), "also where Mask names the subject"


def test_a_reference_whose_prompt_does_not_hold_the_subject_has_no_map_and_it_is_said(
        host, pack, toybox, subject, encode, joined, averaged, caplog):
    conditioning, marked, _ = subject()
    (tensor, options), = joined(averaged(conditioning, encode(LONG[:30])), encode(OTHER))
    photo = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))}
    with caplog.at_level("WARNING"):
        inverted = host.nodes["DreamMatcherInvert"]().invert(
            toybox[0], [[tensor, options]], encode(""), 2, "ddim_uniform", photo)[0]
    assert inverted.subject is None and any("positive: the prompt" in record.getMessage() for record in caplog.records)


def test_two_subjects_at_the_same_column_of_two_joined_texts_are_rivals(pack, subject):
    plans, settings = pack.module("dreammatcher.matching.plan"), pack.module("dreammatcher.matching.settings")
    robot, cat = subject(TEXT, "robot")[1], subject("a photo of a cat", "cat")[1]
    assert robot.columns == cat.columns

    def plan(target):
        return plans.Plan(None, None, (), (), settings.MaskSettings(robot, target), settings.ApplySettings(), settings.Trace())

    assert plan(robot).rivals(plan(cat)) and not plan(robot).rivals(plan(subject(TEXT, "robot")[1]))
