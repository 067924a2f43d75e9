"""The start of a run: what the host says then, what is installed on a model, and who holds the run's session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import ref

import torch

from ...backbones.base import Grid
from ...uncopied import Bystander, Uncopied
from .session import NoiseSchedule, Session

S = TypeVar("S", bound=Session)
P = TypeVar("P")

#: where the installed plans of a model stand in its transformer options, for each other's patches and for guidance
INSTALLED_KEY = "dreammatcher"
#: where those stand that lock a picture to others in the model's sequence
LOCKED_KEY = "dreammatcher_locked"
#: in the transformer options of a call: the latent that the host hands to the model, [K * B, C, H, W]
INPUT_KEY = "dreammatcher_input"
#: in the transformer options of a call: the name of the conditioning entry of each chunk, where the host has none of its own
NAMES_KEY = "dreammatcher_names"
#: set in the transformer options of a forward that another pack makes of a picture of its own
FOREIGN_KEY = "dreammatcher_foreign"


@dataclass(frozen=True, eq=False)
class Start:
    """The start of a sampling run."""

    base: Any  # the host's BaseModel that samples
    identity: Callable[[], str]  # of its network with everything patched into it
    sampling: NoiseSchedule
    size: Grid | None  # of the latent; None where the host does not tell

    @staticmethod
    def of(base: Any, identity: Callable[[], str], sampling: NoiseSchedule, noise: torch.Tensor | None) -> Start:
        size = (noise.shape[-2], noise.shape[-1]) if torch.is_tensor(noise) and noise.ndim in (4, 5) else None
        return Start(base, identity, sampling, size)


#: makes the session of a run
Begin = Callable[[Start], S]


class SessionHolder(Bystander, Generic[S]):
    """The current session of one patched model, or nothing between runs. A copy of a holder is the holder itself."""

    def __init__(self) -> None:
        self._session: Callable[[], S | None] = lambda: None

    def session(self) -> S | None:
        return self._session()

    def hold(self, session: S) -> None:
        self._session = lambda: session

    def watch(self, session: S) -> None:
        """Holds a session for as long as someone else does."""
        self._session = ref(session)

    def release(self) -> None:
        self._session = lambda: None


@dataclass(frozen=True, eq=False)
class Installed(Uncopied, Generic[P, S]):
    """A plan on a model, and who holds its session."""

    plan: P
    holder: SessionHolder[S]


def installed_on(options: dict[str, Any]) -> tuple[Installed[Any, Any], ...]:
    """Every plan in some transformer options, in the order they were applied."""
    return options.get(INSTALLED_KEY, ())


def locked_on(options: dict[str, Any]) -> tuple[Installed[Any, Any], ...]:
    """Every plan in some transformer options that locks a picture to others in the sequence, in the order they were applied."""
    return options.get(LOCKED_KEY, ())
