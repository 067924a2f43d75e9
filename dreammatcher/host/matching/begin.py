"""The start and the end of a plan's sampling session."""

from __future__ import annotations

from functools import partial

from ...matching.matcher import Matcher
from ...matching.plan import Plan
from ...matching.settings import Trace
from ..graph.notes import tell
from ..graph.records import RECORDS, Place, here
from ..model.compiling import hide
from ..model.memory import share_of_memory
from ..sampling.rows import RowBook
from ..sampling.runs import Start
from ..sampling.session import CallWatch, Clock
from .patches import points_heard
from .references import References
from .session import MatchingSession


def begin(plan: Plan, start: Start) -> MatchingSession:
    """A fresh session of a plan: shares of the schedule become sigmas here, once, by the model's noise schedule."""
    plan.trace.clear()
    plan.trace.off = plan.settings.strength == 0
    hide()
    for view in plan.views:
        view.store.start_run()
    clock = Clock.between(start.sampling, plan.settings.start, plan.settings.end)
    network = "" if plan.trace.off else start.identity()  # nothing is asked of the references then
    references = References(start.base, plan.backbone, plan.views, network, frozenset(plan.layers),
                            share_of_memory(len(plan.views)), not plan.mask.carried)
    heard = points_heard(plan.backbone) | frozenset(plan.layers)
    return MatchingSession(
        start.base, clock, RowBook(start.size, plan.mask.target_subject), CallWatch(heard), plan.trace.skipped,
        partial(conclude, plan.trace, here()), plan=plan,
        matcher=Matcher(plan.views, plan.mask, plan.settings, references, plan.backbone, references.foreground))


def conclude(trace: Trace, place: Place) -> None:
    """At the end of a run: its record is kept, and one that took nothing of the reference must not look like one that did."""
    RECORDS.keep(trace.owner, place, trace.finished())
    if not trace.off and (reason := trace.why_nothing_matched()):
        tell(f"nothing was matched in this run: {reason}")
