"""The finer choices of a training: what learns how fast, and what it is shown. With the defaults nothing of them is at work."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .ranges import check

SQUARED, HUBER, SMOOTH_L1 = "squared", "Huber", "smooth L1"
LOSSES = (SQUARED, HUBER, SMOOTH_L1)
SNR, EXPONENTIAL, CONSTANT = "snr", "exponential", "constant"
HUBER_SCHEDULES = (SNR, EXPONENTIAL, CONSTANT)
UNIFORM, EARLY, LATE, LOGIT_NORMAL = "uniform", "early", "late", "logit-normal"
TIMES = (UNIFORM, EARLY, LATE, LOGIT_NORMAL)
#: forms of a LoRA
PLAIN, DORA, LOHA, LOKR = "LoRA", "DoRA", "LoHa", "LoKr"
ALGORITHMS = (PLAIN, DORA, LOHA, LOKR)


@dataclass(frozen=True)
class TextEncoder:
    """Choices for a text encoder that learns: its own rate, and the share of the steps up to which it does."""

    rate: float = 0.0  # 0: as the rest
    until: float = 1.0

    def __post_init__(self) -> None:
        check("text_rate", self.rate, 0, 1, "0 is the rate of the node")
        check("text_until", self.until, 0.001, 1, "1 never stops the text encoder; to leave it alone, turn text_encoder off")


@dataclass(frozen=True)
class Layers:
    """The layers of UNet or transformer and of the text encoder that a LoRA changes.

    The default is diffusers': attention in UNets (train_dreambooth_lora.py), and feed-forward too in transformers
    (train_dreambooth_lora_flux.py). kohya's networks/lora.py takes attention, feed-forward and projections, and convolutions with
    its ``conv_dim``.
    """

    attention: bool = True  # the text encoder's too
    feed_forward: bool | None = None  # the text encoder's too; None: in transformers, not in UNets
    convolutions: bool = False
    projections: bool = False
    blocks: tuple[str, ...] = ()  # kohya's names of the UNet's blocks, as IN04; none: all

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the kinds of layers that learn."""
        return tuple(name for name in ("attention", "feed_forward", "convolutions", "projections") if getattr(self, name))

    @property
    def usual(self) -> bool:
        """True where nothing but a UNet's default is chosen."""
        return replace(self, feed_forward=bool(self.feed_forward)) == Layers(feed_forward=False)


def block_names(text: str) -> tuple[str, ...]:
    """Names of blocks, divided by commas or spaces, as IN04, M00 or OUT11. Raises ValueError for anything else."""
    names = tuple(re.split(r"[,;\s]+", text.strip().upper())) if text.strip() else ()
    names = tuple("M00" if name == "MID" else name for name in names if name)
    wrong = next((name for name in names if not re.fullmatch(r"(IN|M|OUT)\d\d", name)), None)
    if wrong is not None:
        raise ValueError(f"blocks: {wrong!r} is no block's name; write names as IN04, M00 and OUT11, with commas between")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Noise:
    """Choices for the noise that is added, and for how the error in predicting it counts."""

    offset: float = 0.0  # 0.05 to 0.1 is usual
    loss: str = SQUARED
    huber_c: float = 0.1  # kohya's default
    huber_schedule: str = SNR  # kohya's default
    times: str = UNIFORM

    def __post_init__(self) -> None:
        check("noise_offset", self.offset, 0, 1, "0.05 to 0.1 is usual, 0 turns it off")
        check("huber_c", self.huber_c, 1e-4, 1, "0.1 is usual")
        for name, value, known in (("loss", self.loss, LOSSES), ("huber_schedule", self.huber_schedule, HUBER_SCHEDULES),
                                   ("timesteps", self.times, TIMES)):
            if value not in known:
                raise ValueError(f"{name}: {value!r} is unknown; choose one of {', '.join(known)}")


@dataclass(frozen=True)
class CaptionChanges:
    """Changes to a caption each time that it is drawn."""

    dropout: float = 0.0  # share of captions that are left empty, so that the model learns without words too
    shuffle: bool = False  # tags, which commas divide, come in another order
    keep: int = 1  # but so many first ones stay in front

    def __post_init__(self) -> None:
        check("caption_dropout", self.dropout, 0, 0.9, "0.05 to 0.1 is usual, 0 turns it off")
        check("keep_tags", self.keep, 0, 1000)

    def tags(self, caption: str) -> tuple[list[str], list[str]]:
        """Tags of a caption that stay in front, and those that are shuffled."""
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
        return tags[:self.keep], tags[self.keep:]


@dataclass(frozen=True)
class Details:
    """All finer choices."""

    text: TextEncoder = TextEncoder()
    layers: Layers = Layers()
    rank_dropout: float = 0.0  # share of a LoRA's ranks that are left out of a step
    noise: Noise = Noise()
    captions: CaptionChanges = CaptionChanges()
    one_picture: bool = False  # a set of a single picture is learned from
    algorithm: str = field(default=PLAIN, metadata={"later": True})  # one of ALGORITHMS

    def __post_init__(self) -> None:
        check("rank_dropout", self.rank_dropout, 0, 0.9, "0.1 to 0.3 is usual, 0 turns it off")
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: {self.algorithm!r} is unknown; choose one of {', '.join(ALGORITHMS)}")
        if self.rank_dropout and self.algorithm in (LOHA, LOKR):
            raise ValueError(f"rank_dropout: {self.rank_dropout:g} leaves out ranks of a LoRA or a DoRA, and algorithm is "
                             f"{self.algorithm}; set it to 0, or choose one of these")

    def on(self, transformer: bool) -> Details:
        """These choices with what they leave to the kind of network."""
        if self.layers.feed_forward is not None:
            return self
        return replace(self, layers=replace(self.layers, feed_forward=transformer))

    def described(self) -> dict[str, Any]:
        """All choices as JSON knows them, which :func:`details_of` reads; empty for the defaults."""
        if self == Details():
            return {}
        return {**asdict(self), "layers": {**asdict(self.layers), "blocks": list(self.layers.blocks)}}


def details_of(said: dict[str, Any]) -> Details:
    """The choices that :meth:`Details.described` gave. Raises KeyError and TypeError for anything else."""
    if not said:
        return Details()
    layers = replace(Layers(**said["layers"]), blocks=tuple(said["layers"]["blocks"]))
    return Details(TextEncoder(**said["text"]), layers, said["rank_dropout"], Noise(**said["noise"]),
                   CaptionChanges(**said["captions"]), said["one_picture"], said.get("algorithm", PLAIN))


@dataclass(frozen=True)
class Uses:
    """The finer choices that a method can honour; the others are refused."""

    method: str
    lora: bool = False  # a LoRA learns
    text: bool = False  # the text encoder learns
    wordless: bool = True  # a picture without a caption teaches it something

    def check(self, details: Details) -> None:
        """Raises ValueError, naming the input and what to do, for a choice that would do nothing here."""
        for name, chosen, usable, why in (
                ("text_rate", details.text.rate, self.text, "the text encoder does not learn here: set it to 0, or turn "
                                                            "text_encoder on in DreamBooth (DreamMatcher)"),
                ("text_until", details.text.until < 1, self.text, "the text encoder does not learn here: set it to 1, or turn "
                                                                  "text_encoder on in DreamBooth (DreamMatcher)"),
                ("attention, feed_forward, convolutions, projections and blocks", not details.layers.usual, self.lora,
                 "they choose what a LoRA changes, and none learns here: set them back, or take DreamBooth (DreamMatcher) with "
                 "kind LoRA"),
                ("rank_dropout", details.rank_dropout, self.lora, "no LoRA learns here: set it to 0, or take DreamBooth "
                                                                  "(DreamMatcher) with kind LoRA"),
                ("algorithm", details.algorithm != PLAIN, self.lora, f"no LoRA learns here: set it to {PLAIN}, or take "
                                                                     "DreamBooth (DreamMatcher) with kind LoRA"),
                ("caption_dropout", details.captions.dropout, self.wordless, "only a word learns here, which an empty caption "
                                                                             "does not hold: set it to 0")):
            if chosen and not usable:
                raise ValueError(f"{name}: {self.method} cannot use this option of Training Details (DreamMatcher), since {why}")
