"""The user's choices for a training. Every default has its source beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..files import check_file_name
from .details import Details, Noise
from .parallel import ALONE, Share
from .ranges import check

#: that random generators take
LARGEST_SEED = 2**64 - 1
CONSTANT, COSINE, LINEAR = "constant", "cosine", "linear"
#: of a field that came later: with its default it does not count in the name of a training, which older ones have as well
LATER = {"later": True}
SCHEDULES = (CONSTANT, COSINE, LINEAR)
ADAMW, ADAFACTOR, PRODIGY, ADAMW_8BIT = "AdamW", "Adafactor", "Prodigy", "AdamW 8-bit"
LION, SCHEDULE_FREE, CAME = "Lion", "Schedule-free AdamW", "CAME"
OPTIMISERS = (ADAMW, ADAFACTOR, PRODIGY, ADAMW_8BIT, LION, SCHEDULE_FREE, CAME)


@dataclass(frozen=True)
class OptimiserSettings:
    """Settings of the optimiser. The numbers are those of the DreamBooth scripts (diffusers, train_dreambooth.py)."""

    name: str = ADAMW
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float = 1.0  # norm of all gradients together; 0 leaves them as they are
    schedule: str = CONSTANT
    warmup: int = 0  # steps from a rate of 0 to the full one

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise ValueError(f"optimiser: {self.name!r} is unknown; choose one of {', '.join(OPTIMISERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: {self.schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
        check("weight_decay", self.weight_decay, 0, 1)
        check("clip", self.clip, 0, 1e6)
        check("warmup", self.warmup, 0, 10_000_000)
        for beta in self.betas:
            check("betas", beta, 0, 0.99999)
        if self.name == SCHEDULE_FREE and self.schedule != CONSTANT:
            raise ValueError(f"schedule: {SCHEDULE_FREE} needs no schedule and learns little under one, {self.schedule!r}; "
                             f"choose {CONSTANT}, or another optimiser")


@dataclass(frozen=True)
class TrainingSettings:
    """Length of a training, and the portions it works in."""

    steps: int = 800  # DreamBooth with prior preservation (diffusers, README)
    batch: int = 1
    accumulate: int = 1  # batches per step
    seed: int = 0
    average: float = 0.0  # decay of the moving average of the weights; 0 keeps none
    bfloat16: bool = False  # the model computes in bfloat16, the weights that learn stay in float32
    optimiser: OptimiserSettings = OptimiserSettings()

    def __post_init__(self) -> None:
        check("steps", self.steps, 1, 10_000_000)
        check("batch", self.batch, 1, 1024)
        check("accumulate", self.accumulate, 1, 1024)
        check("average", self.average, 0, 0.99999, "0 keeps no average")
        check("seed", self.seed, 0, LARGEST_SEED)
        if self.average and self.optimiser.name == SCHEDULE_FREE:
            raise ValueError(f"average: {SCHEDULE_FREE} gives an average of the weights by itself; set {self.average:g} to 0, or "
                             "choose another optimiser")


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of the training objective."""

    prior_weight: float = 1.0  # lambda of DreamBooth, Sec. 3.3
    min_snr_gamma: float = 0.0  # 5 in Hang et al. 2023; 0 weighs every noise level the same, as the scripts do by default
    masked: bool = False  # only what the subject's masks cover counts
    noise: Noise = field(default=Noise(), metadata=LATER)

    def __post_init__(self) -> None:
        check("prior_weight", self.prior_weight, 0, 100)
        check("min_snr_gamma", self.min_snr_gamma, 0, 1000, "0 turns it off, the paper's value is 5")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank differences (Hu et al. 2021), with the defaults of train_dreambooth_lora.py."""

    rank: int = 4
    alpha: float | None = None  # the difference is scaled by alpha / rank; None means rank, a scale of 1

    def __post_init__(self) -> None:
        check("rank", self.rank, 1, 1024)
        if self.alpha is not None:
            check("alpha", self.alpha, 1e-3, 1e4)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


#: where a run of the same name differs: what is done about it
ASK, GO_ON, ANEW = "ask", "go on", "begin anew"
ANSWERS = (ASK, GO_ON, ANEW)


@dataclass(frozen=True)
class Running:
    """Settings for running a training. They change nothing of what it learns, but for the step that it goes on from."""

    keep_when_stopped: bool = False  # a stopped run gives what it has learned so far
    keep_minutes: float = 10.0  # between two states on disk; 0 keeps one only when the run is stopped
    #: activations are made again for the gradient (Chen et al. 2016): less memory, more time; None: where memory needs it
    checkpointing: bool | None = None
    planned: bool = False  # memory was found to suffice before pictures were drawn for it: it is not refused any more
    splits: bool = False  # a batch that does not fit is learned from in parts, with the same pictures in a step
    chosen: str = ""  # what stands for the numbers that were left open, to be told with the plan
    share: Share = ALONE
    differs: str = ANEW  # one of ANSWERS

    def __post_init__(self) -> None:
        check("keep_minutes", self.keep_minutes, 0, 100_000, "0 keeps a state only when the run is stopped")
        if self.differs not in ANSWERS:
            raise ValueError(f"when_it_differs: {self.differs!r} is unknown; choose one of {', '.join(ANSWERS)}")


#: where the course of a training is written: loss, rate, norm of the gradient and steps per second
NO_RECORDS, CSV, BOARD = "none", "CSV", "CSV and TensorBoard"
RECORDS = (NO_RECORDS, CSV, BOARD)

#: letters of a run's name: its files bear the step besides
LONGEST_RUN = 80


@dataclass(frozen=True)
class Keeping:
    """Files of what is learned on the way, and the sheet of samples beside them. They change nothing of what is learned."""

    every: int = 0  # steps; 0 keeps none
    run: str = ""  # name of the files; empty: the subject's word
    prompts: tuple[str, ...] = ()  # a sample of each at every step that is kept; none: the sample's prompt, or a caption
    state: bool = False  # the state at the end, from which more steps go on as if the run had not ended
    records: str = NO_RECORDS  # one of RECORDS

    def __post_init__(self) -> None:
        if self.records not in RECORDS:
            raise ValueError(f"records: {self.records!r} is unknown; choose one of {', '.join(RECORDS)}")
        check("keep_every", self.every, 0, 10_000_000, "0 keeps nothing on the way")
        if self.run:
            check_file_name("run_name", self.run)
            check("run_name's length", len(self.run), 1, LONGEST_RUN, "files are named after it")


@dataclass(frozen=True)
class TrainingOptions:
    """Options that are seldom changed, the same for every method."""

    optimiser: OptimiserSettings = OptimiserSettings()
    accumulate: int = 0  # 0: as often as memory needs it, once where it does not
    average: float = 0.0
    min_snr_gamma: float = 0.0
    alpha: float | None = None  # of LoRAs
    sample_prompt: str = ""  # drawn while it trains
    sample_every: int | None = None  # steps; 0 draws nothing; None: now and then, a caption where there is no prompt
    running: Running = Running()
    keeping: Keeping = Keeping()
    details: Details = Details()

    def __post_init__(self) -> None:
        check("accumulate", self.accumulate, 0, 1024, "0 leaves it to memory")
        check("sample_every", self.sample_every or 0, 0, 10_000_000)

    def training(self, steps: int, batch: int, seed: int, bfloat16: bool) -> TrainingSettings:
        return TrainingSettings(steps, batch, self.accumulate or 1, seed, self.average, bfloat16, self.optimiser)

    def objective(self, prior_weight: float = 1.0, masked: bool = False) -> ObjectiveSettings:
        return ObjectiveSettings(prior_weight, self.min_snr_gamma, masked, self.details.noise)
