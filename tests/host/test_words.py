"""Which tokens a subject word means, in CLIP's real tokenizers: the obvious is taken and said, the unclear refused."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from harness.examples import full_control, node
from harness.library import ROOT

NODE = shutil.which("node")


class Tokens:
    """What the search for words needs of the host's CLIP."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def tokenize(self, text, return_word_ids=False, **_):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)

    def spelled(self, text: str, columns: tuple[int, ...]) -> str:
        """The tokens in some columns of a text, without the ends of words."""
        chunks = next(iter(self.tokenize(text).values()))
        tokens = [entry for chunk in chunks for entry in chunk]
        return "".join(piece.removesuffix("</w>") for _, piece in self.tokenizer.untokenize([tokens[c] for c in columns]))


def alone(clip: Tokens, word: str) -> str:
    return clip.spelled(word, tuple(range(1, 77))).split("<|endoftext|>")[0]


@pytest.fixture(scope="module", params=["SD1", "SDXL"])
def clip(host, request) -> Tokens:
    import comfy.sd1_clip
    import comfy.sdxl_clip

    return Tokens({"SD1": comfy.sd1_clip.SD1Tokenizer, "SDXL": comfy.sdxl_clip.SDXLTokenizer}[request.param]())


@pytest.fixture(scope="module")
def find(pack):
    return pack.module("dreammatcher.host.conditioning").subject_and_remarks


@pytest.mark.parametrize("text, word", [
    ("a photo of a robot", "robot"), ("a photo of a Robot, on (GRASS:1.2)", "grass"), ("a t-shirt", "t-shirt"),
    ("two robots and a robot", "robot"), ("a photo of 猫 at night", "猫"), ("a wonderdog and a dog", "dog"),
    ("the robots' toy", "robots"), ("1girl, red hair", "1girl")])
def test_a_word_that_stands_in_the_prompt_is_taken_alone_and_nothing_is_said(clip, find, text, word):
    subject, remarks = find(clip, text, word)
    assert remarks == () and subject.columns
    assert clip.spelled(text, subject.columns) == alone(clip, word)


@pytest.mark.parametrize("text, word, taken", [
    ("robots on grass", "robot", "robots"), ("a robot on grass", "robots", "robot"), ("the ROBOTS", "Robot", "robots"),
    ("(foxes:1.3) in snow", "fox", "foxes"), ("two cities", "city", "cities"), ("a city", "cities", "city"),
    ("three wolves", "wolf", "wolves"), ("many dishes", "dish", "dishes"), ("a photo of dogs, dogs", "dog", "dogs"),
    ("t-shirts and boxes", "box", "boxes")])
def test_a_plural_is_taken_for_its_singular_and_the_other_way_round_and_it_is_said(clip, find, text, word, taken):
    subject, remarks = find(clip, text, word)
    count = text.lower().count(taken)
    assert clip.spelled(text, subject.columns) == taken * count
    assert len(remarks) == 1 and repr(word) in remarks[0] and repr(taken) in remarks[0]
    assert (subject.words, subject.prompt) == (word, text)


@pytest.mark.parametrize("text, word", [
    ("a cat", "as"), ("the glass", "glas"), ("a robotic arm", "robot"), ("a party", "art"), ("concatenated", "cat"),
    ("a photo", "photograph"), ("Кошки на снегу", "кошка")])
def test_what_only_looks_alike_is_refused_with_the_words_that_are_there(clip, find, text, word):
    with pytest.raises(ValueError, match=f"subject_words: '{word}' is not in the prompt; its words are: {text.split()[0]}"):
        find(clip, text, word)


def test_a_word_that_could_be_two_of_the_prompt_is_refused_with_both(clip, find):
    with pytest.raises(ValueError, match="'leaves' could be 'leaf' or 'leave' of the prompt; write the one that you mean"):
        find(clip, "a leaf on leave", "leaves")
    assert clip.spelled("a leaf on leave", find(clip, "a leaf on leave", "leaf")[0].columns) == "leaf"


@pytest.mark.parametrize("text, word", [
    ("一只猫在雪地里", "猫"), ("一只猫和一只小猫", "猫"), ("雪の中の子猫", "子猫"), ("ロボットが二体", "ロボット"),
    ("두 고양이가 눈밭에", "고양이"), ("แมวในหิมะ", "แมว"), ("แมวในหิมะ", "หิมะ"), ("照片：(一只猫:1.2)在雪地里", "猫")])
def test_a_word_inside_a_text_without_spaces_is_found_wherever_its_letters_stand(clip, find, text, word):
    subject, remarks = find(clip, text, word)
    wanted = alone(clip, word)
    assert wanted * text.count(word) in clip.spelled(text, subject.columns), "no token of the word is missing"
    assert len(clip.spelled(text, subject.columns)) <= (len(wanted) + 3) * text.count(word), "and little else is taken"
    assert len(remarks) == 1 and f"{word!r} is taken inside" in remarks[0]


def test_a_tokenizer_that_does_not_spell_its_tokens_still_finds_words(clip, find):
    text = "a photo of two robots, a cat"
    bare = Tokens(None)
    bare.tokenize = clip.tokenize
    for word in ("cat", "robot"):
        assert find(bare, text, word)[0] == find(clip, text, word)[0]
    with pytest.raises(ValueError, match="is not in the prompt"):
        find(bare, "一只猫在雪地里", "狗")


def test_a_word_across_the_border_of_two_chunks_is_found_whole(toybox, find):
    """Toybox spells words it does not know letter by letter; hosts may cut such a word where 77 tokens are full."""
    text = "grass " * 70 + "zebrazebrazebra"
    subject, _ = find(toybox[1], text, "zebrazebrazebra")
    assert len(subject.columns) == 15 and subject.tokens == 154


def test_what_is_taken_is_logged_and_shown_on_the_node(host, caplog):
    prompt = {number: entry for number, entry in full_control().items() if number in ("1", "5")}
    prompt["5"]["inputs"].update(prompt="robots in the snow", subject_words="robot")
    prompt["6"] = node("CLIPTextEncode", clip=["1", 1], text="")
    prompt["10"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    prompt["11"] = node("KSampler", model=["1", 0], positive=["5", 0], negative=["6", 0], latent_image=["10", 0], seed=1, steps=1,
                        cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    prompt["13"] = node("VAEDecode", samples=["11", 0], vae=["1", 2])
    prompt["15"] = node("PreviewImage", images=["13", 0])
    with caplog.at_level("INFO"):
        result = host.run(prompt)
    assert result.success, result.error()
    assert result.ui["5"]["text"] == ["subject_words: 'robot' is taken as 'robots', which is in the prompt"]
    assert any("'robot' is taken as 'robots'" in record.getMessage() for record in caplog.records)
    prompt["5"]["inputs"]["subject_words"] = "robots"
    assert not list(host.run(prompt).ui.get("5", {}).get("text", ()))


TAGS = "(masterpiece:1.2), best quality, 1girl, solo, long_hair, red eyes, looking at viewer, on the beach, score_9, :d"


def test_without_a_word_the_content_words_of_a_tag_prompt_are_the_subject(clip, find):
    subject, remarks = find(clip, TAGS, " ")
    assert clip.spelled(TAGS, subject.columns) == "girlsololonghairredeyeslookingviewerbeach"
    assert len(remarks) == 1 and "none given" in remarks[0] and "girl solo long hair red eyes looking viewer beach" in remarks[0]
    assert subject.words == remarks[0].rpartition(": ")[2]


def test_a_tokenizer_that_does_not_spell_gives_every_word(clip, find):
    bare = Tokens(None)
    bare.tokenize = clip.tokenize
    assert find(bare, "a cat on the beach", "")[0].columns == (1, 2, 3, 4, 5)


def test_a_prompt_without_content_is_refused(clip, find):
    for empty in ("", "on the, 3 !!", "best quality, masterpiece"):
        with pytest.raises(ValueError, match="none given, and the prompt has no words to take"):
            find(clip, empty, "")


def test_two_prompts_share_their_subject(clip, pack):
    module = pack.module("dreammatcher.host.content")
    texts = [pack.module("dreammatcher.host.words").Text.of(clip, text) for text in (
        "1girl, red hair, sitting, school, masterpiece", "masterpiece, 1girl, red hair, standing, beach")]
    assert module.shared_words(texts) == ["girl", "red", "hair"]


@pytest.mark.skipif(NODE is None, reason="no node here")
def test_the_words_on_the_node_follow_the_same_rules_as_the_node(pack):
    words = ["robot", "robots", "City", "cities", "fox", "foxes", "leaf", "leaves", "knife", "glass", "gas", "as", "a", "t-shirt",
             "buses", "café", "猫", "3d", "tomato", "axes"]
    script = (f"import {{ otherNumbers }} from {json.dumps((ROOT / 'web/js/words.js').as_uri())};"
              f"console.log(JSON.stringify({json.dumps(words)}.map(otherNumbers)))")
    shown = subprocess.run([NODE, "--input-type=module", "-e", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == [pack.module("dreammatcher.host.words").other_numbers(word) for word in words]
