"""A prompt as a UNet takes it, and the tokens in it that name a subject."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

import torch
import torch.nn.functional as F

#: how far a token may be from itself, relative to its size: bfloat16 makes 0.0014; on Toybox the same word of another text is
#: 0.04 away, and the nearest other word 0.07
NEAR = 0.01
#: what a prompt of Anima tells beside one encoder's states: the numbers of the tokens whose columns its network reads, and the
#: columns that these become at least
READ, READ_COLUMNS = "t5xxl_ids", 512
CHANGED = ("the prompt that is sampled is not as it was encoded for the subject {words!r} (averaged, or changed by another "
           "node); its words are looked for where they stood")
ELSEWHERE = ("the prompt that is sampled does not hold the subject {words!r} of the text {prompt!r}; connect the conditioning "
             "of the same Subject (DreamMatcher)")
UNKNOWN = ("the prompt that is sampled has {length} tokens, and the subject {words!r} is known in a text of {tokens}; it was "
           "joined with another text, so nothing says where the subject stands. Encode the prompt with Subject (DreamMatcher)")


@dataclass(frozen=True)
class Subject:
    """The tokens of a prompt that name the subject. Raises ValueError for columns outside the conditioning."""

    words: str
    prompt: str
    columns: tuple[int, ...]  # token positions in the conditioning
    tokens: int  # length of the conditioning
    #: where nobody named words: each that was taken, and its columns; their order is the prompt's
    choices: tuple[tuple[str, tuple[int, ...]], ...] = ()
    #: [len(columns), C], what the text encoder made of the columns: they are found by it in a prompt that other nodes changed
    vectors: torch.Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.columns or min(self.columns) < 0 or max(self.columns) >= self.tokens:
            raise ValueError(f"subject {self.words!r}: columns {self.columns} do not fit {self.tokens} tokens")

    @property
    def named(self) -> bool:
        """True if the user said which words are the subject."""
        return not self.choices

    def is_about(self, other: Subject) -> bool:
        """True if ``other``, whose words count, is the same subject."""
        if self.words == other.words:
            return True
        mine, theirs = ({word for word, _ in subject.choices} for subject in (self, other))
        return bool(theirs) and theirs <= mine

    def limited(self, words: Collection[str]) -> Subject:
        """The subject with only those choices that are among ``words``; itself if that changes nothing or leaves none."""
        kept = tuple((word, columns) for word, columns in self.choices if word in words)
        if not kept or kept == self.choices:
            return self
        columns = tuple(sorted({column for _, word_columns in kept for column in word_columns}))
        vectors = None if self.vectors is None else self.vectors[[self.columns.index(column) for column in columns]]
        return replace(self, words=" ".join(word for word, _ in kept), columns=columns, choices=kept, vectors=vectors)

    def behind(self, front: int) -> Subject:
        """The subject in a conditioning whose text encoder leaves out the ``front`` tokens of its prompt."""
        def moved(columns: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(column - front for column in columns if column >= front)

        choices = tuple((word, moved(columns)) for word, columns in self.choices)
        return replace(self, columns=moved(self.columns), tokens=self.tokens - front, choices=choices)

    def encoded_as(self, text: torch.Tensor) -> Subject:
        """The subject with its tokens' vectors from its encoded prompt ``text`` [T, C].

        Columns behind the text's end are left out: some hosts cut two encoders' texts to the shorter. Raises ValueError when
        all of them are.
        """
        length = len(text)
        columns = tuple(column for column in self.columns if column < length)
        if not columns:
            raise ValueError(f"subject_words: {self.words!r} stands behind token {length}, where the text encoder cuts the "
                             "prompt; write it further in front")
        vectors = text[list(columns)].detach().float().cpu().clone()
        choices = tuple((word, kept) for word, word_columns in self.choices
                        if (kept := tuple(column for column in word_columns if column < length)))
        return replace(self, columns=columns, tokens=length, choices=choices, vectors=vectors)

    def located(self, text: torch.Tensor, marked: bool) -> tuple[Subject | None, str]:
        """The subject at its place in a conditioning ``text`` [T, C] that is sampled, and a remark for the user.

        Its tokens are found by what the text encoder made of them: a text that other nodes joined with another one, in any
        order, is known by itself. Where they are not found, ``marked`` tells that the conditioning comes from the subject's
        own: other nodes changed its values, not its order. None when nothing tells where it stands.
        """
        length = len(text)
        if self.vectors is None:
            return self._by_length(text)
        vectors = self.vectors if self.vectors.shape[1] == text.shape[1] else self.vectors[:0]
        if columns := tuple(sorted({column for vector in vectors for column in _alike(text, vector)})):
            moved = columns != self.columns or length != self.tokens
            return (replace(self, columns=columns, tokens=length, choices=(), vectors=None) if moved else self), ""
        if marked and len(vectors) and length == self.tokens:
            return self, CHANGED.format(words=self.words)
        return None, ELSEWHERE.format(words=self.words, prompt=self.prompt)

    def _by_length(self, text: torch.Tensor) -> tuple[Subject | None, str]:
        """The place of a subject without its text: at the front, since other packs append the tokens that lengthen a text."""
        length, first = len(text), text[:self.tokens]
        joined = length % self.tokens == 0 and not torch.equal(text, first.repeat(length // self.tokens, 1))
        if length < self.tokens or joined:
            return None, UNKNOWN.format(length=length, words=self.words, tokens=self.tokens)
        return self, ""


def _alike(text: torch.Tensor, vector: torch.Tensor) -> list[int]:
    """Rows of ``text`` [T, C] that are ``vector`` [C] in another precision or at another scale."""
    text = text.detach().to(vector)
    scale = (text @ vector) / vector.square().sum().clamp_min(torch.finfo(vector.dtype).tiny)
    scaled = scale[:, None] * vector
    apart, size = (text - scaled).abs().mean(1), scaled.abs().mean(1)
    return torch.nonzero((scale > 0) & (apart <= NEAR * size)).flatten().tolist()


def text_starts(whole: torch.Tensor, text: torch.Tensor) -> list[int]:
    """Positions at which a ``whole`` text [T, C] begins in a conditioning ``text`` [L, C] that nodes may have joined it into."""
    if whole.shape[1] != text.shape[1]:
        return []
    whole, text = whole.detach().float().cpu(), text.detach().float().cpu()
    sizes = whole.abs().mean(1)
    return [start for start in range(len(text) - len(whole) + 1)
            if bool(((text[start:start + len(whole)] - whole).abs().mean(1) <= NEAR * sizes).all())]


def text_read(states: torch.Tensor, told: Mapping) -> torch.Tensor:
    """The text [T, C] in whose columns a network reads words: a prompt's ``states`` [T, C] themselves, or, where tokens are
    ``told`` beside them, what the columns of these tokens are known by: each its own place in a text of these very tokens."""
    tokens = told.get(READ)
    if tokens is None:
        return states
    numbers = torch.as_tensor(tokens).flatten().long().tolist()
    whole = int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:6], "big")
    rows = [[bit == "1" for bit in f"{whole:048b}{column:016b}"] for column in range(len(numbers))]
    text = torch.tensor(rows, dtype=torch.float32).reshape(len(numbers), 64) * 2 - 1
    return F.pad(text, (0, 0, 0, max(0, READ_COLUMNS - len(numbers))))


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoded prompt."""

    cross_attention: torch.Tensor  # [1, T, C]; [B, T, C] where a batch is learned from
    pooled: torch.Tensor | None = None  # [1, P] or [B, P], models with a pooled text input
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)  # what else some families are told
    lengths: tuple[int, ...] = ()  # tokens of each prompt of a batch, where zeros fill up the shorter ones

    @property
    def text(self) -> torch.Tensor:
        """The first prompt's text [T, C], in which a subject's columns stand."""
        return text_read(self.cross_attention[0], self.others)

    @staticmethod
    def stacked(each: Sequence[Conditioning]) -> Conditioning:
        """Conditionings of one length as a batch."""
        pooled = [one.pooled for one in each if one.pooled is not None]
        others = {name: torch.cat([one.others[name] for one in each]) for name in each[0].others}
        return Conditioning(torch.cat([one.cross_attention for one in each]), torch.cat(pooled) if pooled else None, others)

    @staticmethod
    def filled_up(each: Sequence[Conditioning]) -> Conditioning:
        """Conditionings [1, T, C] of any lengths as a batch, which :meth:`in_parts` gives at their own lengths again."""
        lengths = tuple(one.cross_attention.shape[1] for one in each)
        longest = max(lengths)
        filled = Conditioning.stacked([replace(one, cross_attention=F.pad(one.cross_attention, (0, 0, 0, longest - length)))
                                       for one, length in zip(each, lengths)])
        return replace(filled, lengths=lengths) if len(set(lengths)) > 1 else filled

    def in_parts(self, call: Callable[[torch.Tensor, Conditioning], torch.Tensor]) -> torch.Tensor:
        """The results [B, ...] of ``call`` for the rows of each length and their conditioning, in the rows' order."""
        results, order = [], []
        for length in sorted(set(self.lengths)):
            rows = [row for row, one in enumerate(self.lengths) if one == length]
            shorter = replace(self, cross_attention=self.cross_attention[:, :length], lengths=())
            own = shorter.each(itemgetter(rows))
            results.append(call(torch.tensor(rows), own))
            order += rows
        return torch.cat(results)[torch.tensor(order).argsort()]

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        """With ``change`` done to all tensors."""
        return replace(self, cross_attention=change(self.cross_attention),
                       pooled=None if self.pooled is None else change(self.pooled),
                       others={name: change(value) for name, value in self.others.items()})
