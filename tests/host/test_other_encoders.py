"""Subject words in prompts of T5, Qwen and their like: their place is that of their tokens in what the text encoder makes."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 152064}
PROMPT = "A photo of a red robot, and a watchdog beside two robots"


def tokenizer_of(module: str, name: str):
    """The host's tokenizer of a family. Skips the test where the host has none, or not its files."""
    try:
        return getattr(import_module(f"comfy.text_encoders.{module}"), name)()
    except (ImportError, AttributeError):
        pytest.skip(f"this host has no {name}")


class Words:
    """A CLIP as far as finding words needs one."""

    def __init__(self, tokenizer, model=None):
        self.tokenizer, self.cond_stage_model = tokenizer, model

    def tokenize(self, text: str, return_word_ids: bool = False, **options):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **options)


TOKENIZERS = {"Flux": ("flux", "FluxTokenizer"), "Chroma": ("pixart_t5", "PixArtTokenizer"), "Klein": ("flux", "KleinTokenizer"),
              "Z-Image": ("z_image", "ZImageTokenizer"), "Qwen-Image": ("qwen_image", "QwenImageTokenizer"),
              "Krea 2": ("krea2", "Krea2Tokenizer"), "Cosmos": ("cosmos", "CosmosT5Tokenizer"),
              "SD3": ("sd3_clip", "SD3Tokenizer"), "Anima": ("anima", "AnimaTokenizer")}


@pytest.fixture(params=list(TOKENIZERS))
def clip(request, host):
    return Words(tokenizer_of(*TOKENIZERS[request.param]))


def read(pack, clip, prompt: str, words: str):
    return pack.module("dreammatcher.host.text.conditioning").read(clip, prompt, words).subject


def spelled(pack, clip, prompt: str, columns) -> str:
    """What the tokenizer's own vocabulary spells at some columns of the text that the network reads last."""
    others = pack.module("dreammatcher.host.text.other_encoders")
    cut = clip.tokenize(prompt, return_word_ids=True)
    tower, begin = list(others.starts(clip, cut).items())[-1]
    every = [entry[0] for chunk in cut[tower] for entry in chunk]
    own = next(each for name in (tower, f"clip_{tower}") if (each := getattr(clip.tokenizer, name, None)) is not None)
    return "".join(own.inv_vocab[every[column - begin]] for column in columns if column >= begin)


def bare(text: str) -> str:
    return text.replace("\u2581", "").replace("\u0120", "").lower()


def test_a_word_is_its_tokens_wherever_it_stands(pack, clip):
    """At the beginning, with a capital, in front of a comma, as its plural; the template around the prompt is no part of it."""
    for prompt, words, found in ((PROMPT, "robot", "robot"), (PROMPT, "Robot", "robot"), ("robot", "robot", "robot"),
                                 ("Robot. A robot!", "robot", "robotrobot"), (PROMPT, "photo red", "photored"),
                                 ("two robots", "robot", "robots"), ("a tea-pot", "tea-pot", "tea-pot"),
                                 ("red_robot", "red", "red"), ("a red robot", "red_robot", "redrobot")):
        subject = read(pack, clip, prompt, words)
        assert bare(spelled(pack, clip, prompt, subject.columns)) == found, (prompt, words)


def test_a_word_inside_of_a_longer_one_is_taken_with_a_remark(pack, clip):
    reading = pack.module("dreammatcher.host.text.conditioning").read(clip, "a watchdog", "watch")
    assert "watch" in bare(spelled(pack, clip, "a watchdog", reading.subject.columns))


def test_words_that_are_not_in_the_prompt_are_refused_also_those_of_the_template(pack, clip):
    for word in ("castle", "assistant", "user", "describe"):
        with pytest.raises(ValueError, match=f"'{word}' is not in the prompt; its words are: A, photo"):
            read(pack, clip, PROMPT, word)


def test_without_words_those_that_show_something_are_taken(pack, clip):
    prompt = "a photo of a red robot in the snow"
    subject = read(pack, clip, prompt, "")
    assert subject.words == "red robot" and bare(spelled(pack, clip, prompt, subject.columns)) == "redrobot"
    assert bare(spelled(pack, clip, prompt, subject.limited({"robot"}).columns)) == "robot"


def test_other_scripts_and_markup_are_read(pack, clip):
    subject = read(pack, clip, "caf\u00e9 au lait", "caf\u00e9")
    assert "caf" in bare(spelled(pack, clip, "caf\u00e9 au lait", subject.columns))
    reading = pack.module("dreammatcher.host.text.conditioning").read(clip, "a robot <lora:castle:1>", "")
    assert reading.subject.words == "robot"


def test_sd3_has_t5_behind_its_clips_or_alone(pack, host):
    from types import SimpleNamespace

    tokenizer = tokenizer_of("sd3_clip", "SD3Tokenizer")
    both = read(pack, Words(tokenizer), PROMPT, "robot")
    model = SimpleNamespace(clip_l=None, clip_g=None, t5xxl=torch.nn.Identity())
    alone = read(pack, Words(tokenizer, model), PROMPT, "robot")
    assert tuple(column - 77 for column in both.columns if column >= 77) == alone.columns
    assert [column for column in both.columns if column < 77] and both.tokens == 77 + alone.tokens
    model = SimpleNamespace(clip_l=torch.nn.Identity(), clip_g=torch.nn.Identity(), t5xxl=None)
    assert read(pack, Words(tokenizer, model), PROMPT, "robot").columns == tuple(c for c in both.columns if c < 77)


def test_of_hidreams_prompts_that_of_t5_is_read(pack, host):
    from types import SimpleNamespace

    tokenizer = tokenizer_of("sd3_clip", "SD3Tokenizer")  # HiDream's holds the same three, and Llama's, a large file
    alone = read(pack, Words(tokenizer, SimpleNamespace(clip_l=None, clip_g=None, t5xxl=torch.nn.Identity())), PROMPT, "robot")
    cut = tokenizer.tokenize_with_weights
    clip = Words(tokenizer)
    clip.tokenize = lambda text, **options: (lambda towers: {**towers, "llama": towers["t5xxl"]})(cut(text, **options))
    assert read(pack, clip, PROMPT, "robot").columns == alone.columns


def test_text_encoders_that_do_not_tell_are_refused_and_a_mask_is_asked_for(pack, host):
    """As those of HunyuanVideo, of which nothing says which of them makes which column."""
    clip = Words(tokenizer_of("flux", "FluxTokenizer"))
    cut = clip.tokenize
    clip.tokenize = lambda text, **options: (lambda towers: {"l": towers["l"], "llama": towers["t5xxl"]})(cut(text, **options))
    with pytest.raises(ValueError, match="l, llama. do not tell where a word stands.*reference_mask"):
        read(pack, clip, PROMPT, "robot")


def random_clip(tokenizer, encoder: type, name: str, network: type, small: dict):
    """The host's CLIP of a text encoder around one of Qwen's networks, with a small one and random weights."""
    import comfy.sd
    from comfy import sd1_clip
    from comfy.supported_models_base import ClipTarget

    class Tower(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, **_):
            super().__init__(device=device, layer="last", textmodel_json_config=small, dtype=dtype,
                             special_tokens={"pad": 151643}, layer_norm_hidden_state=False, model_class=network,
                             enable_attention_masks=True, return_attention_masks=True, model_options=model_options or {})

    class Model(encoder):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            sd1_clip.SD1ClipModel.__init__(self, device=device, dtype=dtype, name=name, clip_model=Tower,
                                           model_options=model_options or {})

    with torch.no_grad():
        made = comfy.sd.CLIP(ClipTarget(tokenizer, Model))
        generator = torch.Generator().manual_seed(0)
        for value in made.cond_stage_model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    return made


def small_qwen(host):
    """The host's text encoder of Qwen-Image."""
    tokenizer_of("qwen_image", "QwenImageTokenizer")
    from comfy.text_encoders import llama, qwen_image

    return random_clip(qwen_image.QwenImageTokenizer, qwen_image.QwenImageTEModel, "qwen25_7b", llama.Qwen25_7BVLI, SMALL)


def test_columns_are_counted_behind_the_template_that_the_encoder_leaves_out(host, pack):
    """A causal text encoder: what it makes of two prompts differs from the token on that differs."""
    clip = small_qwen(host)
    with torch.inference_mode():
        encode = pack.module("dreammatcher.host.text.conditioning")
        (conditioning, subject), (other, _) = (
            encode.encode_subject(clip, text, encode.subject_of(clip, text, word))
            for word in ("robot", "castle") for text in (f"a photo of a {word} at sea",))
    first, second = conditioning[0][0][0], other[0][0][0]
    differ = (first[:, None] != second[:, None]).any(-1).flatten().nonzero().flatten() if first.shape == second.shape else None
    assert differ is not None and subject.columns == (int(differ[0]),) and subject.tokens == len(first)
    assert torch.equal(subject.vectors[0], first[subject.columns[0]].float().cpu())
