"""The host's progress bar, and its interrupt, for loops of ours."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils

try:
    from comfy.model_management import InterruptProcessingException as Interrupted
except ImportError:
    from comfy.interruption import InterruptProcessingException as Interrupted  # the packaged host

__all__ = ["Interrupted", "progress"]


def progress(total: int) -> Callable[[int, int], None]:
    """Moves the host's progress bar and stops when the user interrupts."""
    bar = comfy.utils.ProgressBar(total)

    def step(done: int, _: int) -> None:
        bar.update_absolute(done, total)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return step
