"""From the host's CONDITIONING to the tensors a UNet call takes, and from prompts to the columns of a subject."""

from __future__ import annotations

import logging

import torch

from ..finite import finite
from ..subject import Conditioning, Subject
from .content import content_words
from .words import Text, find

log = logging.getLogger(__name__)

#: key under which DreamMatcherSubject leaves its columns in a CONDITIONING, for nodes further down
SUBJECT_KEY = "dreammatcher_subject"

#: key under which a prompt carries texts that stand in for it at some noise levels
TEXTS_KEY = "dreammatcher_texts"


def from_host(conditioning: list, name: str) -> tuple[Conditioning, Subject | None]:
    """The first entry of a CONDITIONING as a value, and the subject it carries, if any.

    Raises ValueError, naming the input, when it is empty.
    """
    if not conditioning or conditioning[0][0] is None:
        raise ValueError(f"{name}: this CONDITIONING is empty; connect the output of a text encoder")
    if len(conditioning) > 1:
        log.warning("DreamMatcher: %s has %d parts (combined or regional prompts, or a schedule); the first one is used",
                    name, len(conditioning))
    tensor, options = conditioning[0]
    if options.get("hooks") is not None:
        log.warning("DreamMatcher: %s carries hooks; their change of the text is used, their change of the model is not. To "
                    "invert with a LoRA, load it in front of this node", name)
    pooled = options.get("pooled_output")
    if not all(finite(part) for part in (tensor, pooled) if part is not None):
        raise ValueError(f"{name}: this CONDITIONING holds NaN or infinity; check the text encoder and embeddings")
    return Conditioning(tensor[:1].detach().clone(), None if pooled is None else pooled[:1].detach().clone()), \
        options.get(SUBJECT_KEY)


def model_arguments(base: torch.nn.Module, conditioning: Conditioning, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keyword arguments of ``base.apply_model`` for one prompt, made by the host's own ``extra_conds``.

    An inpainting model is told that everything is to be painted, which makes it a plain one. Raises ValueError when the
    model needs a pooled text embedding and the prompt has none.
    """
    options = {} if conditioning.pooled is None else {"pooled_output": conditioning.pooled}
    if (getattr(base, "adm_channels", 0) or 0) > 0 and conditioning.pooled is None:
        raise ValueError("positive and negative: this model needs a pooled text embedding and these CONDITIONINGs have "
                         "none; encode the prompts with the model's own CLIP")
    if base.concat_keys:
        options["latent_image"] = torch.zeros_like(x)
    extra = type(base).extra_conds(
        base, cross_attn=conditioning.cross_attention, noise=x, device=x.device, prompt_type="positive",
        width=x.shape[3] * 8, height=x.shape[2] * 8, **options)
    return {name: value.process_cond(batch_size=x.shape[0], device=x.device, area=None).cond
            for name, value in extra.items()}


def subject_of(clip, prompt: str, words: str) -> Subject:
    """:func:`subject_and_remarks` without the remarks."""
    return subject_and_remarks(clip, prompt, words)[0]


def subject_and_remarks(clip, prompt: str, words: str) -> tuple[Subject, tuple[str, ...]]:
    """The token columns of ``words`` in ``prompt``, every piece of every occurrence of every word, and what to say about them.

    Words are compared as tokens, so case, weights like ``(dog:1.2)`` and embeddings work; there is a remark for each that is
    taken although it does not stand there as it is. Without ``words`` the content words of the prompt are the subject, with a
    remark. Raises ValueError listing the prompt's words when one of ``words`` is not among them, when one could mean two of
    them, or when the prompt has no word to take.
    """
    wanted, text = words.replace(",", " ").split(), Text.of(clip, prompt)
    if not wanted:
        return _whole_content(text, prompt)
    places = {word: find(clip, text, prompt, word) for word in wanted}
    for word in wanted:
        if places[word] is None:
            listed = ", ".join(prompt.split()) or "(the prompt is empty)"
            raise ValueError(f"subject_words: {word!r} is not in the prompt; its words are: {listed}")
    remarks = tuple(f"subject_words: {place.remark}" for place in places.values() if place.remark)
    for remark in remarks:
        log.info("DreamMatcher: %s", remark)
    columns = {column for place in places.values() for column in place.columns}
    return Subject(words, prompt, tuple(sorted(columns)), text.length), remarks


def _whole_content(text: Text, prompt: str) -> tuple[Subject, tuple[str, ...]]:
    content = content_words(text)
    if not content:
        raise ValueError("subject_words: none given, and the prompt has no words to take; describe the subject in the prompt")
    words = " ".join(dict.fromkeys(word.spelling or "(embedding)" for word in content))
    remark = f"subject_words: none given; these words of the prompt are taken: {words}"
    log.info("DreamMatcher: %s", remark)
    return Subject(words, prompt, tuple(column for word in content for column in word.columns), text.length), (remark,)


def encode(clip, prompt: str, subject: Subject | None = None) -> list:
    """CONDITIONING of a prompt as the host's CLIPTextEncode makes it; every entry carries the subject when given.

    Newer hosts encode with the hooks of the CLIP: it gets an entry for each span of their schedule.
    """
    tokens = clip.tokenize(prompt)
    if hasattr(clip, "encode_from_tokens_scheduled"):
        entries = clip.encode_from_tokens_scheduled(tokens)
    else:
        cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        entries = [[cond, {"pooled_output": pooled}]]
    mark = {} if subject is None else {SUBJECT_KEY: subject}
    return [[cond, {**options, **mark}] for cond, options in entries]
