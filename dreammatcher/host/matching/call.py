"""The work of one call of the network.

A call is one forward: it may hold cond and uncond rows in any order, several prompts and several pictures
each, and it is not a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch

from ...backbones.base import Grid, Site, Tap
from ...guidance_rows import COND, Row
from ...matching.appearance import match_appearance, sharpened
from ...matching.correspondence import JointMatch
from ...matching.matcher import Described
from ...matching.settings import MATCHED, MATCHED_EVERYWHERE, REPLACED, Snapshot
from ..model.capture import SubjectMaps
from .session import MatchingSession

NOT_IN_THE_PASS = ("block {block} does not run, or not with ComfyUI's options, in the pass over the reference; another pack "
                   "skips it there, so it is left as it is")
#: inputs of a self-attention layer's queries, keys and values
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(eq=False)
class Call:
    """One forward of the network."""

    session: MatchingSession
    rows: tuple[Row | None, ...]  # of each chunk of the batch; None: this chunk takes no part
    latent_size: Grid
    readers: dict[int, SubjectMaps]  # of the chunks whose prompt says where the subject stands
    rivals: list[MatchingSession]
    detached: bool = False  # guidance wants gradients, with attention constant
    maps: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # prompt -> [B, 1, h, w] of the layers run so far
    scales: dict[Tap, dict[Row, torch.Tensor]] = field(default_factory=dict)  # features at the taps run so far
    described: dict[Row, Described] = field(default_factory=dict)
    repeated: frozenset[Row] = field(init=False)  # rows that an earlier call of this evaluation had: they leave no features

    def __post_init__(self) -> None:
        self.repeated = frozenset(self.session.seen.served.intersection(self.rows))
        self.session.rows.last = tuple(None if row in self.repeated else row for row in self.rows)

    @property
    def sigma(self) -> float:
        return self.session.clock.current

    @property
    def apart(self) -> bool:
        """True if the queries of all other cells see the values that were there before."""
        plan = self.session.plan
        return plan.settings.match.apart and plan.settings.injection == MATCHED and plan.backbone.same_call

    def chunk(self, number: int, batch: int) -> slice:
        size = batch // len(self.rows)
        return slice(number * size, (number + 1) * size)

    def read_map(self, layer: Site, query: torch.Tensor, context: torch.Tensor, value: torch.Tensor) -> None:
        """Keeps the subject maps of the cond rows if this layer is one that is read."""
        for number, reader in self.readers.items():
            row = self.rows[number]
            if row is None or layer not in reader.modules or row in self.repeated or row in self.rows[:number]:
                continue
            part = self.chunk(number, query.shape[0])
            subject_map = reader.read(layer, query[part], context[part], value[part], self.latent_size)
            if subject_map is None:
                self.session.skip(f"another pack changed the token count of {layer}; its subject map is not used")
            else:
                maps = self.maps.setdefault(row[1], [])
                maps.append(subject_map)
                self.session.seen.maps[row[1]] = maps

    def keep_scale(self, tap: Tap, h: torch.Tensor) -> None:
        """Keeps the feature at a tap; with the last one, the call's features become those that the next calls match."""
        taps = self.session.plan.backbone.taps
        kept = self.scales[tap] = {}
        for chunk, row in enumerate(self.rows):
            if row is not None and row not in kept and row not in self.repeated and self.session.source(row) == row:
                kept[row] = h[self.chunk(chunk, h.shape[0])].detach().clone()
        if tap != taps[-1]:
            return
        if len(self.scales) < len(taps):
            self.session.skip("another pack skips decoder blocks; such calls leave no features to match")
            return
        seen = self.session.seen
        for row in kept:
            seen.features[row] = tuple(self.scales[each][row] for each in taps)
        for row in filter(None, self.rows):
            seen.served.add(row)
            seen.sizes[row[1]] = self.latent_size

    def inject(self, layer: Site, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor) -> Inputs:
        """Inputs of one self-attention layer at the picture's tokens, [batch, N, C], with the references' appearance in them."""
        grid = self.session.plan.backbone.grid(layer, self.latent_size)
        if value.shape[1] != grid[0] * grid[1]:
            self.session.skip(f"another pack changed the token count of {layer} to {value.shape[1]} from {grid[0] * grid[1]}; "
                          "the layer is left as it is")
            return n, context, value
        if self.session.plan.settings.injection == REPLACED and None not in self.rows:
            return n, *self._replace(layer, context, value)
        groups = self._groups()
        if not groups:
            return n, context, value
        size = value.shape[0] // len(self.rows)
        queries, values = list(n.split(size)), list(value.split(size))
        for source, members in groups.items():
            if len(members) == len(values):
                query, matched = self._match_rows(layer, source, grid, n, value, size)
                return query, context, matched
            both = [torch.cat([chunks[number] for number in members]) for chunks in (queries, values)]
            query, matched = self._match_rows(layer, source, grid, both[0], both[1], size)
            for number, *parts in zip(members, query.split(size), matched.split(size)):
                queries[number], values[number] = parts
        return torch.cat(queries), context, torch.cat(values)

    def _groups(self) -> dict[Row, list[int]]:
        """The chunks that take their match from one row, by that row."""
        groups: dict[Row, list[int]] = {}
        for number, row in enumerate(self.rows):
            if row is not None:
                groups.setdefault(self.session.source(row), []).append(number)
        return groups

    def _match_rows(self, layer: Site, source: Row, grid: Grid, n: torch.Tensor, value: torch.Tensor,
                    size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of queries and values, [K * B, N, C] each, of K chunks of one group, B being ``size``."""
        session, plan = self.session, self.session.plan
        known = session.matched_foreground(source, grid, size, value.device, self.rivals,
                                           partial(self._correspondence, source, grid, layer, size))
        if known is None:
            return n, value
        match, mask = known
        hidden = self._hidden(layer, source, value)
        if hidden is None:
            return n, value
        if plan.settings.injection == MATCHED_EVERYWHERE:
            weight = torch.full_like(mask, plan.settings.strength)
        else:
            weight, confidence = session.matcher.trust(source, match, mask)
            if layer == plan.layers[-1] and source == next((row for row in self.rows if row and row[0] == COND), None):
                self._record(match, mask, confidence)
        plan.trace.layers += 1
        if plan.settings.match.sharpness and n.shape[1] == value.shape[1]:
            n = sharpened(n, weight, plan.settings.match.sharpness)
        return n, match_appearance(value, hidden, match.indices, weight)

    def _correspondence(self, source: Row, grid: Grid, layer: Site, size: int, of: MatchingSession) -> JointMatch | None:
        return of.correspondence(source, grid, layer, size, self.described if of is self.session else {})

    def _replace(self, layer: Site, context: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ablation: keys and values of the reference as they are (MasaCtrl, Cao et al. 2023)."""
        size = value.shape[0] // len(self.rows)
        rows = [self._hidden(layer, self.session.source(row), value) for row in self.rows if row is not None]
        known = [row.expand(size, -1, -1) for row in rows if row is not None]
        if len(known) < len(rows):
            return context, value
        self.session.plan.trace.layers += 1
        hidden = torch.cat(known).to(value.dtype)
        return hidden, hidden

    def _hidden(self, layer: Site, source: Row, like: torch.Tensor) -> torch.Tensor | None:
        """Attention inputs [1, M, C] of a row's references, end to end; None where a reference's pass did not run this layer."""
        hidden = [features.hidden.get(layer) for features in self.session.matcher.references(source[0], self.sigma, like)]
        known = [each for each in hidden if each is not None]
        if len(known) < len(hidden):
            self.session.skip(NOT_IN_THE_PASS.format(block=layer[1]))
            return None
        return known[0] if len(known) == 1 else torch.cat(known, 1)

    def _record(self, match: JointMatch, mask: torch.Tensor, confidence: torch.Tensor) -> None:
        view, matcher = self.session.plan.views[0], self.session.matcher
        reference_mask = (matcher.foregrounds(0, mask.device) if self.session.carries else view.mask if view.mask is not None
                          else matcher.references(COND, self.sigma, mask)[0].subject)
        first, *others = match.matches
        self.session.plan.trace.snapshots[self.sigma] = Snapshot(
            self.sigma, mask, reference_mask, confidence, first.flow, match.pick([each.similarity for each in match.matches]),
            first.reference_size, tuple((other.flow, other.reference_size) for other in others), match.best)
