"""Finding a subject word's tokens in CLIP's real tokenizers: the obvious is taken with a remark, the unclear refused."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from harness.examples import full_control, node
from harness.library import ROOT

NODE = shutil.which("node")


class Tokens:
    """The part of the host's CLIP that the search for words needs."""

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
    return pack.module("dreammatcher.host.text.conditioning").subject_and_remarks


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


NAMES = r"1girl, saber \(fate\), k-on!, (hatsune miku:1.3), re:zero, long_hair, (what?), solo"


@pytest.mark.parametrize("word, taken", [
    (r"\(fate\)", "(fate),"), (r"saber \(fate\)", "saber(fate),"), ("saber (fate)", "saberfate"), ("k-on!", "k-on!,"),
    ("k-on!,", "k-on!,"), ("k-on", "k-on"), ("re:zero", "re:zero"), ("(hatsune miku:1.3)", "hatsunemiku"), ("miku:1.3", "miku"),
    ("((hatsune))", "hatsune"), ("[hatsune]", "hatsune"), ("long_hair", "long_hair"), ("what?", "what?"), ("(solo)", "solo")])
def test_names_with_punctuation_brackets_and_weights_are_found_as_people_write_them_and_nothing_is_said(clip, find, word, taken):
    subject, remarks = find(clip, NAMES, word)
    assert remarks == () and clip.spelled(NAMES, subject.columns) == taken


@pytest.mark.parametrize("text, word, taken, as_what", [
    ("a k-on poster", "k-on!", "k-on", "k-on"), ("hatsune miku, solo", "hatsune_miku", "hatsunemiku", "hatsune miku")])
def test_a_name_without_its_punctuation_is_taken_and_it_is_said(clip, find, text, word, taken, as_what):
    subject, remarks = find(clip, text, word)
    assert clip.spelled(text, subject.columns) == taken
    assert remarks == (f"subject_words: {word!r} is taken as {as_what!r}, which is in the prompt",)


@pytest.mark.parametrize("text, word", [("a day, 3 d", ":d"), ("a robot", "()"), ("a robot", "!!!"), ("fatex", r"\(fate\)")])
def test_punctuation_alone_names_nothing(clip, find, text, word):
    with pytest.raises(ValueError, match="is not in the prompt; its words are: "):
        find(clip, text, word)


def test_the_words_that_a_refusal_lists_are_without_weights_brackets_and_what_is_no_word(clip, find):
    with pytest.raises(ValueError, match="its words are: a, robot, red, hat, k-on!$"):
        find(clip, "a (robot:1.3), <lora:x:1> [[red]] hat:1.2 BREAK k-on!", "zebra")


@pytest.mark.parametrize("text", [
    "(robot:1.3) x", "((robot)) x", "((robot) x", "(robot)) x", "[[robot]] x", "{robot} x", "robot:1.3 x", "(a (robot:0.8):1.2)",
    "robot!!! x", "'robot', x", '"robot" x', "a-robot"])
def test_a_word_is_found_in_brackets_of_every_kind_open_ones_too(clip, find, text):
    subject, _ = find(clip, text, "robot")
    assert clip.spelled(text, subject.columns) == "robot"


MEAN = "the words that you mean"
FOREIGN = {"<lora:robot_v2:0.8>": "Load LoRA", "<lyco:robot:1>": "Load LoRA", "BREAK": "Conditioning", "__robot__": MEAN,
           "{robot|robot}": MEAN, "{a|{robot|b}}": MEAN, "[robot:cat:0.5]": MEAN}


@pytest.mark.parametrize("around", [
    "{0} a red cat, forest", "a red cat {0}", "a red cat, {0}, in the snow", "(a red cat {0}:1.2) on grass",
    "a red cat,{0},forest", "((a red cat) {0} forest", "{0}, {0} a red cat {0}"])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_other_programs_would_replace_is_no_subject_and_it_is_said_what_to_do(clip, find, around, foreign):
    text = around.replace("{0}", foreign)
    subject, remarks = find(clip, text, "")
    assert clip.spelled(text, subject.columns) == "redcat" and subject.words == "red cat"
    assert remarks[0].startswith(f"prompt: ComfyUI reads {foreign!r} as words") and FOREIGN[foreign] in remarks[0]


def test_a_named_word_counts_outside_of_what_other_programs_would_replace_and_inside_only_with_a_remark(clip, find):
    text = "<lora:robot:1> a robot BREAK take a break"
    for word in ("robot", "break"):
        subject, remarks = find(clip, text, word)
        assert len(subject.columns) == 1 and len(remarks) == 1
        assert clip.spelled(text, tuple(range(subject.columns[0] - 1, subject.columns[0] + 1))) == f"a{word}"
    subject, remarks = find(clip, "a {robot|cat} at night", "robot")
    assert clip.spelled("a {robot|cat} at night", subject.columns) == "robot" and "stands only in what" in remarks[1]


@pytest.mark.parametrize("text, taken", [
    ("a photo of a cat in the desert", "cat"), ("an oil painting of a red robot on a beach at sunset", "red robot"),
    ("a close-up photograph of a dog wearing a hat, 8k, bokeh", "dog wearing hat"),
    ("in the snowy desert a cat sits", "cat sits"),
    ("a castle in front of a mountain and a lake", "castle"), ("cat, outdoors, forest, sky, day", "cat"),
    ("1girl, red hair, white background, looking at viewer", "girl red hair looking"), ("a cat next to a tree", "cat"),
    ("a cat in the park with a red ball", "cat red ball"), ("a robot on grass, a cat at night", "robot cat"),
    ("a k-on girl, close-up of her face", "girl face"),
    ("robot in the style of van gogh", "robot"), ("[[robot]] (snow:1.3)", "robot"), ("robot:1.3, night", "robot"),
    ("1.3 robot", "robot"),
    ("Photo of a CAT In The Desert", "cat")])
def test_without_a_word_medium_and_scene_are_left_out(clip, find, text, taken):
    subject, remarks = find(clip, text, "")
    assert subject.words == taken and remarks == (f"subject_words: none given; these words of the prompt are taken: {taken}",)
    assert clip.spelled(text, subject.columns) == taken.replace(" ", "")
    assert tuple(word for word, _ in subject.choices) == tuple(taken.split())


@pytest.mark.parametrize("text, taken, said", [
    ("a photo of the desert at night", "desert night", "names a place and no subject"),
    ("an oil painting", "oil painting", "kind of picture")])
def test_where_only_medium_or_scene_is_there_it_is_taken_with_a_warning(clip, find, text, taken, said, caplog):
    with caplog.at_level("WARNING"):
        subject, remarks = find(clip, text, "")
    assert subject.words == taken and len(remarks) == 1 and said in remarks[0] and "name the subject" in remarks[0]
    assert any(said in record.getMessage() for record in caplog.records)


TAGS = "(masterpiece:1.2), best quality, 1girl, solo, long_hair, red eyes, looking at viewer, on the beach, score_9, :d"


def test_without_a_word_the_content_words_of_a_tag_prompt_are_the_subject(clip, find):
    subject, remarks = find(clip, TAGS, " ")
    assert clip.spelled(TAGS, subject.columns) == "girlsololonghairredeyeslooking"
    assert len(remarks) == 1 and "none given" in remarks[0] and "girl solo long hair red eyes looking" in remarks[0]
    assert subject.words == remarks[0].rpartition(": ")[2]


def test_a_tokenizer_that_does_not_spell_gives_every_word(clip, find):
    bare = Tokens(None)
    bare.tokenize = clip.tokenize
    assert find(bare, "a cat on the beach", "")[0].columns == (1, 2, 3, 4, 5)


def test_a_prompt_without_content_is_refused(clip, find):
    for empty in ("", "on the, 3 !!", "best quality, masterpiece"):
        with pytest.raises(ValueError, match="none given, and the prompt has no words to take"):
            find(clip, empty, "")


REFERENCE_TAGS, TARGET_TAGS = ("1girl, red hair, sitting, school, masterpiece",
                               "masterpiece, 1girl, red hair, standing, on a beach, school")


@pytest.fixture
def mask(pack):
    return pack.module("dreammatcher.host.matching.masks").shared_subjects


def test_two_prompts_without_named_words_share_their_subject(clip, find, mask):
    reference, target, remarks = mask(find(clip, REFERENCE_TAGS, "")[0], find(clip, TARGET_TAGS, "")[0])
    assert reference.words == target.words == "girl red hair school" and len(remarks) == 1 and target.words in remarks[0]
    for subject, text in ((reference, REFERENCE_TAGS), (target, TARGET_TAGS)):
        assert clip.spelled(text, subject.columns) == "girlredhairschool"


def test_one_of_two_prompts_may_say_it_in_the_plural(clip, find, mask):
    reference, target, _ = mask(find(clip, "a photo of a robot, sitting", "")[0], find(clip, "two robots in the snow", "")[0])
    assert (reference.words, target.words) == ("robot", "robots")


def test_where_words_are_named_in_either_both_prompts_stay_as_they_are(clip, find, mask):
    named, other = find(clip, "a red cat", "cat")[0], find(clip, "a red dog", "")[0]
    assert mask(named, other) == (named, other, ()) and mask(other, named) == (other, named, ()) and mask(named, named)[2] == ()
    assert mask(None, other) == (None, other, ())


def test_two_prompts_that_share_nothing_stay_as_they_are_with_a_warning(clip, find, mask, caplog):
    one, other = find(clip, "a red cat", "")[0], find(clip, "a photo of a dog in the snow", "")[0]
    with caplog.at_level("WARNING"):
        assert mask(one, other)[:2] == (one, other)
    assert any("share no word: 'red cat' and 'dog'; name the subject in both" in record.getMessage() for record in caplog.records)


@pytest.mark.skipif(NODE is None, reason="no node here")
def test_the_words_on_the_node_follow_the_same_rules_as_the_node(pack):
    words = ["robot", "robots", "City", "cities", "fox", "foxes", "leaf", "leaves", "knife", "glass", "gas", "as", "a", "t-shirt",
             "buses", "café", "猫", "3d", "tomato", "axes"]
    script = (f"import {{ otherNumbers }} from {json.dumps((ROOT / 'web/js/words.js').as_uri())};"
              f"console.log(JSON.stringify({json.dumps(words)}.map(otherNumbers)))")
    shown = subprocess.run([NODE, "--input-type=module", "-e", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == [pack.module("dreammatcher.host.text.words").other_numbers(word) for word in words]
