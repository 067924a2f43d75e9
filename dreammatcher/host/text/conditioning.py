"""From the host's CONDITIONING to tensors, and from prompts to the columns of a subject."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...finite import finite
from ...subject import READ, Conditioning, Subject, text_read
from .markup import Markup, advice_on, embeddings_of, words_asked_for, words_of
from .other_encoders import UnknownEncoder, is_clip, starts
from .subject_words import subject_words
from .words import Text, find

log = logging.getLogger(__name__)

#: says what an artist must not overlook
Warn = Callable[[str], None]

#: key under which DreamMatcherSubject leaves its columns in a CONDITIONING, for nodes further down
SUBJECT_KEY = "dreammatcher_subject"

#: key under which a prompt carries texts that stand in for it at some noise levels
TEXTS_KEY = "dreammatcher_texts"

#: what else belongs to a prompt in some families: tokens of a second encoder, its layers, padding, guidance that was distilled
TOLD = (READ, "t5xxl_weights", "conditioning_llama3", "attention_mask", "guidance")


def in_the_log(text: str) -> None:
    """A warning in the console alone."""
    log.warning("DreamMatcher: %s", text)


def from_host(conditioning: list, name: str, warn: Warn = in_the_log, pooled: bool = True) -> tuple[Conditioning, Subject | None]:
    """The first entry of a CONDITIONING as a value, and the subject it carries, if any, where it stands there.

    Without ``pooled`` its pooled embedding is left out, for a model that does not read it. Raises ValueError, naming the input,
    when it is empty or not finite.
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
    summary = options.get("pooled_output") if pooled else None
    others = {key: value if torch.is_tensor(value) else torch.tensor(float(value))
              for key in TOLD if (value := options.get(key)) is not None}
    if not all(finite(part) for part in (tensor, summary, *others.values()) if part is not None):
        raise ValueError(f"{name}: this CONDITIONING holds NaN or infinity; check the text encoder and embeddings")
    subject, remark = options.get(SUBJECT_KEY), ""
    if subject is not None:
        subject, remark = subject.located(text_read(tensor[0], options), True)
    if remark:
        warn(f"{name}: {remark}")
    kept = {key: (value[:1] if value.ndim > 1 else value).detach().clone() for key, value in others.items()}
    return Conditioning(tensor[:1].detach().clone(), None if summary is None else summary[:1].detach().clone(), kept), subject


class NotInPrompt(ValueError):
    """A subject word that a prompt does not have."""

    def __init__(self, message: str, word: str):
        super().__init__(message)
        self.word = word


@dataclass(frozen=True)
class Reading:
    """A prompt and its subject words as they were read."""

    subject: Subject
    about: tuple[str, ...]  # remarks on how the host reads the prompt
    remarks: tuple[str, ...]  # on what was taken for the words
    doubtful: bool = False  # nobody named words, and the prompt names no subject


def subject_of(clip, prompt: str, words: str, warn: Warn = in_the_log) -> Subject:
    """:func:`subject_and_remarks` without the remarks."""
    return subject_and_remarks(clip, prompt, words, warn)[0]


def subject_and_remarks(clip, prompt: str, words: str, warn: Warn = in_the_log) -> tuple[Subject, tuple[str, ...]]:
    """:func:`read`, with its remarks in the log; ``warn`` says the one that an artist must not overlook."""
    reading = read(clip, prompt, words)
    for remark in reading.about:
        in_the_log(remark)
    for remark in reading.remarks:
        if reading.doubtful:
            warn(remark)
        else:
            log.info("DreamMatcher: %s", remark)
    return reading.subject, (*reading.about, *reading.remarks)


def read(clip, prompt: str, words: str) -> Reading:
    """The columns of ``words`` in the conditioning of ``prompt``, with remarks. Nothing is logged.

    Every piece of every occurrence of every word counts. The remarks are about the words, and about parts of the prompt that the
    host leaves out or does not replace. Words are compared as tokens, so case, weights like ``(dog:1.2)`` and embeddings work;
    there is a remark for each that is taken although it does not stand there as it is. With two text encoders a column counts
    where either has the word. Without ``words`` those of the prompt that show something are the subject, but for medium and
    scene, with a remark; it is doubtful where only those are there. Raises NotInPrompt listing the prompt's words when one of
    ``words`` is not among them, and ValueError when one could mean two of them, or when the prompt has no word to take.
    """
    wanted, texts = words_asked_for(words), Text.all_of(clip, prompt)
    about = _about_the_prompt(clip, prompt, texts)
    if not wanted:
        return _whole_content(texts, prompt, about)
    columns, remarks = set(), []
    for word in wanted:
        places = [place for text in texts if (place := find(clip, text, prompt, word)) is not None]
        if not places:
            raise NotInPrompt(_missing(clip, prompt, word), word)
        columns |= {column for place in places for column in place.columns}
        remarks += [f"subject_words: {place.remark}" for place in places[:1] if place.remark]
    return Reading(Subject(words, prompt, tuple(sorted(columns)), _length(texts)), about, tuple(remarks))


def _length(texts: list[Text]) -> int:
    """Columns of the longest text; what a host cuts off is known when the prompt is encoded."""
    return max(text.length for text in texts)


def _missing(clip, prompt: str, word: str) -> str:
    if _is_left_out(clip, word):
        return (f"subject_words: {word!r} is an embedding of another kind of model, which ComfyUI leaves out of the prompt; use "
                "one that was made for this model")
    listed = ", ".join(words_of(prompt)) or "(the prompt is empty)"
    return f"subject_words: {word!r} is not in the prompt; its words are: {listed}"


def _is_left_out(clip, embedding: str) -> bool:
    return all(text.left_out and not text.pieces for text in Text.all_of(clip, embedding))


def _about_the_prompt(clip, prompt: str, texts: list[Text]) -> tuple[str, ...]:
    """Remarks on how the host reads the words, which an artist may not know."""
    remarks = []
    if parts := tuple(dict.fromkeys(Markup.of(prompt).parts)):
        remarks.append(f"prompt: ComfyUI reads {', '.join(map(repr, parts))} as words, as they stand; {advice_on(parts)}")
    for name in embeddings_of(prompt):
        embedded = Text.all_of(clip, name)
        lost = [text.tower for text in embedded if text.left_out]
        if lost and len(texts) > len(lost):
            remarks.append(f"prompt: {name!r} does not fit the text encoder {', '.join(lost)}, which leaves it out, so that "
                           "words behind it stand in other places there")
        elif lost:
            remarks.append(f"prompt: {name!r} is of another kind of model; ComfyUI leaves it out")
        elif not any(text.pieces for text in embedded):
            remarks.append(f"prompt: {name!r} is not among ComfyUI's embeddings and is left out")
    return tuple(remarks)


def _whole_content(texts: list[Text], prompt: str, about: tuple[str, ...]) -> Reading:
    contents = [(content, said) for content, said in map(subject_words, texts) if content]
    if not contents:
        raise ValueError("subject_words: none given, and the prompt has no words to take; describe the subject in the prompt")
    places: dict[str, set[int]] = {}
    for content, _ in contents:
        known = set().union(*places.values())
        for word in content:
            if word.spelling in places or not known.issuperset(word.columns):  # an embedding has a name for each text encoder
                places.setdefault(word.spelling, set()).update(word.columns)
    choices = tuple((word, tuple(sorted(columns))) for word, columns in places.items())
    words, said = " ".join(places), contents[0][1]
    remark = (f"subject_words: none given, and {said}; name the subject. These words are taken: {words}" if said else
              f"subject_words: none given; these words of the prompt are taken: {words}")
    columns = sorted({column for _, word_columns in choices for column in word_columns})
    subject = Subject(words, prompt, tuple(columns), _length(texts), choices)
    return Reading(subject, about, (remark,), bool(said))


def encode(clip, prompt: str, subject: Subject | None = None) -> list:
    """CONDITIONING of a prompt as the host's CLIPTextEncode makes it; every entry carries the subject when given, with what the
    text encoder made of it there.

    Newer hosts encode with the hooks of the CLIP: it gets an entry for each span of their schedule.
    """
    tokens = clip.tokenize(prompt)
    if hasattr(clip, "encode_from_tokens_scheduled"):
        entries = clip.encode_from_tokens_scheduled(tokens)
    else:
        cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        entries = [[cond, {"pooled_output": pooled}]]
    if subject is None:
        return [[cond, {**options}] for cond, options in entries]
    return [[cond, {**options, SUBJECT_KEY: encoded_as(clip, subject, tokens, [cond, options])}] for cond, options in entries]


def encoded_as(clip, subject: Subject, tokens: dict[str, list], entry: list) -> Subject:
    """The subject with its tokens' vectors from an ``entry`` of its encoded prompt, at its columns there.

    Text encoders with a template leave the front of it out. Raises ValueError for a text that is longer or shorter than that.
    """
    text = text_read(entry[0][0], entry[1])
    front = subject.tokens - len(text)
    if front and not all(map(is_clip, starts(clip, tokens))):
        if front < 0 or len(tokens) > 1 or min(subject.columns) < front:
            raise UnknownEncoder(tokens)
        subject = subject.behind(front)
    return subject.encoded_as(text)


def encode_subject(clip, prompt: str, subject: Subject) -> tuple[list, Subject]:
    """:func:`encode` and the subject as its first entry carries it."""
    entries = encode(clip, prompt, subject)
    return entries, entries[0][1][SUBJECT_KEY]
