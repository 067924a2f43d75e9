"""What is installed on a model, and who holds its sampling sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import ref

from .session import Session

#: where the installed plans of a model stand in its transformer options, for each other's patches and for guidance
INSTALLED_KEY = "dreammatcher"
#: in the transformer options of a call: the latent that the host hands to the model, [K * B, C, H, W]
INPUT_KEY = "dreammatcher_input"
#: in the transformer options of a call: the name of the conditioning entry of each chunk, where the host has none of its own
NAMES_KEY = "dreammatcher_names"
#: set in the transformer options of a forward that another pack makes of a picture of its own
FOREIGN_KEY = "dreammatcher_foreign"


class SessionHolder:
    """The current session of one patched model, or nothing between runs. A copy of a holder is the holder itself."""

    def __init__(self) -> None:
        self._session: Callable[[], Session | None] = lambda: None

    def __deepcopy__(self, memo: dict) -> SessionHolder:
        return self

    def content_identity(self) -> None:
        """Changes nothing of what a model computes."""

    def session(self) -> Session | None:
        return self._session()

    def hold(self, session: Session) -> None:
        self._session = lambda: session

    def watch(self, session: Session) -> None:
        """Holds a session for as long as someone else does."""
        self._session = ref(session)

    def release(self) -> None:
        self._session = lambda: None


@dataclass(frozen=True, eq=False)
class Installed:
    """A plan on a model, and who holds its session."""

    plan: object
    holder: SessionHolder

    def __deepcopy__(self, memo: dict) -> Installed:
        return self


def installed_on(options: dict) -> tuple[Installed, ...]:
    """Every plan in some transformer options, in the order they were applied."""
    return options.get(INSTALLED_KEY, ())
