"""The work of one UNet call.

A call is one forward of the UNet: it may hold cond and uncond rows in any order, several prompts and several pictures
each, and it is not a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ..appearance import match_appearance
from ..correspondence import JointMatch
from ..features import COND, UNCOND, Layer
from ..foreground import foreground
from ..settings import MATCHED_EVERYWHERE, REPLACED, Snapshot
from .capture import SubjectMaps
from .run import Grid, Row, Run
from .structure import halved


@dataclass(eq=False)
class Call:
    """One forward of the UNet."""

    run: Run
    sigma: float
    kinds: tuple[str, ...]  # of each chunk of the batch
    latent_size: Grid
    readers: SubjectMaps | None
    entry: torch.Tensor  # [B, k] values of the first block's output: equal for rows that see the same picture
    rivals: list[Run]
    known: dict[Row, tuple[float, tuple[torch.Tensor, ...]]]  # decoder features of the calls before this one
    detached: bool = False  # guidance wants gradients, with attention constant
    rows: list[Row | None] | None = None  # of each chunk; None: this chunk is not the plan's
    maps: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # prompt -> [B, 1, h, w] of the layers run so far
    levels: dict[int, torch.Tensor] = field(default_factory=dict)
    matches: dict[tuple, object] = field(default_factory=dict)

    def chunk(self, number: int, batch: int) -> slice:
        size = batch // len(self.kinds)
        return slice(number * size, (number + 1) * size)

    def read_map(self, layer: Layer, query: torch.Tensor, context: torch.Tensor) -> None:
        """Finds out whose rows these are, and keeps the subject maps if this layer is one that is read."""
        if self.rows is None:
            self.rows = self._assign(context)
        if self.readers is None or layer not in self.readers.modules:
            return
        for number, row in enumerate(self.rows):
            if row is None or row[0] != COND or row in self.rows[:number] or self._seen_before(row):
                continue
            part = self.chunk(number, query.shape[0])
            found = self._reader(row[1]).read(layer, query[part], context[part], self.latent_size)
            if found is None:
                self.run.skip(f"another pack changed the token count of {layer}; its subject map is not used")
            else:
                self.maps.setdefault(row[1], []).append(found)

    def _seen_before(self, row: Row) -> bool:
        """Whether an earlier call at this sigma had the row: samplers and other packs may call again, with other prompts."""
        return self.known.get(row, (None,))[0] == self.sigma

    def _reader(self, prompt: int) -> SubjectMaps:
        """The prompt's own columns where it names the subject itself."""
        prompts = self.run.prompts
        named = prompts[prompt].subject if len(prompts) > 1 else None
        return replace(self.readers, subject=named) if named else self.readers

    def _assign(self, context: torch.Tensor) -> list[Row | None]:
        """The row of each chunk. With one positive prompt in the run that is its kind; with several, cond chunks are
        known by their prompt and uncond chunks by the cond rows that see the same picture."""
        prompts, subject = self.run.prompts, self.run.plan.mask.target_subject
        if len(prompts) < 2:
            return self._assign_whole(context)
        serving = [number for number, prompt in enumerate(prompts) if prompt.names(subject)]
        if not serving:
            self.run.skip("this run has several positive prompts and none comes from DreamMatcher Subject with the words "
                          f"{subject.words!r}, so nothing is matched" if subject else
                          "this run has several positive prompts and DreamMatcher Mask has no target subject to tell them "
                          "apart by, so nothing is matched")
            return [None] * len(self.kinds)
        batch = context.shape[0]
        starts = [self.chunk(number, batch).start for number in range(len(self.kinds))]
        rows: list[Row | None] = [None] * len(self.kinds)
        for number, kind in enumerate(self.kinds):
            if kind == COND:
                own = next((p for p in serving if prompts[p].is_in(context[starts[number]])), None)
                rows[number] = None if own is None else (COND, own)
        for number, row in enumerate(rows):
            if row is not None:
                self.run.entries[row[1]] = (self.sigma, self.entry[starts[number]])
        for number, kind in enumerate(self.kinds):
            if kind == UNCOND:
                beside = next((p for p in serving if self._same_picture(p, self.entry[starts[number]])), None)
                rows[number] = None if beside is None else (UNCOND, beside)
        return rows

    def _assign_whole(self, context: torch.Tensor) -> list[Row | None]:
        """One positive prompt: every row is its own, unless the picture comes in tiles, which have no common features.

        Packs that call again at the same sigma (SAG, PerpNeg) say "cond" of whatever they give: what is not the positive
        prompt counts as uncond.
        """
        kinds = self.kinds
        if COND in kinds:
            start = self.chunk(kinds.index(COND), context.shape[0]).start
            entry = self.entry[start]
            sigma, seen = self.run.entries.get(0, (None, entry))
            if sigma == self.sigma and self.run.prompts and not self.run.prompts[0].is_in(context[start]):
                kinds = tuple(UNCOND for _ in kinds)
            elif sigma == self.sigma and not _alike(seen, entry):
                self.run.in_tiles = True
                self.run.skip("the picture is sampled in tiles or windows, and a tile alone can not be matched; it is left "
                              "as it is")
            else:
                self.run.entries[0] = (self.sigma, entry)
        return [None if self.run.in_tiles else (kind, 0) for kind in kinds]

    def _same_picture(self, prompt: int, entry: torch.Tensor) -> bool:
        """Whether a row sees what the prompt's cond row saw, in this call or in an earlier one at the same sigma."""
        sigma, seen = self.run.entries.get(prompt, (None, None))
        return sigma == self.sigma and seen.shape == entry.shape and torch.allclose(seen, entry, rtol=1e-3, atol=1e-3)

    def keep_level(self, number: int, h: torch.Tensor) -> None:
        """Keeps a decoder feature; with the last one, the call's features become those that the next calls match."""
        taps = self.run.plan.structure.taps
        self.levels[number] = h.detach().clone()
        if number != taps[-1] or self.rows is None:
            return
        levels = tuple(self.levels[tap] for tap in taps)
        if self.maps:
            self._settle()
        for chunk, row in enumerate(self.rows):
            if row is None or row in self.rows[:chunk] or self._seen_before(row):
                continue
            self.run.sizes[row[1]] = self.latent_size
            self.run.levels[row] = (self.sigma, tuple(level[self.chunk(chunk, level.shape[0])] for level in levels))

    def _settle(self) -> None:
        """The foregrounds of the layers run so far become the run's."""
        for prompt, found in self.maps.items():
            self.run.maps[prompt] = foreground(found, found[0].shape[-2:])

    def inject(self, layer: Layer, context: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Context and value of one self-attention layer, [batch, N, C], with the references' appearance matched in."""
        if self.rows is None:  # a decoder layer before any cross-attention: nothing is known yet
            return context, value
        level = self.run.plan.structure.self_attention[layer]
        grid = halved(self.latent_size, level)
        if value.shape[1] != grid[0] * grid[1]:
            self.run.skip(f"another pack changed the token count of {layer} to {value.shape[1]} from {grid[0] * grid[1]}; "
                          "the layer is left as it is")
            return context, value
        if self.run.plan.settings.injection == REPLACED:
            return self._replace(layer, context, value)
        if self.maps:
            self._settle()
        chunks = []
        for number, row in enumerate(self.rows):
            part = value[self.chunk(number, value.shape[0])]
            chunks.append(part if row is None else self._match_chunk(layer, row, grid, level, part))
        return context, torch.cat(chunks)

    def _match_chunk(self, layer: Layer, row: Row, grid: Grid, level: int, value: torch.Tensor) -> torch.Tensor:
        run, plan = self.run, self.run.plan
        mask = run.foreground(row[1], grid, value.shape[0], value.device, self.rivals)
        found = None if mask is None else self._match(row, grid, level, value.shape[0])
        if found is None:
            return value
        if plan.settings.injection == MATCHED_EVERYWHERE:
            weight = torch.full_like(mask, plan.settings.strength)
        else:
            weight, sure = run.trust(found, mask)
            if row[0] == COND and layer == plan.layers[-1] and row == next(own for own in self.rows if own and own[0] == COND):
                self._record(found, mask, sure)
        hidden = torch.cat([row_.hidden[layer].to(value.dtype) for row_ in run.features(row[0], self.sigma, value)], 1)
        return match_appearance(value, hidden, found.indices(), weight)

    def _match(self, row: Row, grid: Grid, level: int, size: int) -> JointMatch | None:
        """Correspondence at one grid: once per call, grid and row. None on the first call, which has no features yet."""
        if row not in self.known:
            return None
        levels = self.known[row][1]
        if levels[0].shape[0] != size:
            return None
        if (row, grid) not in self.matches:
            if row not in self.matches:
                self.matches[row] = self.run.describe(row[0], self.sigma, levels)
            self.matches[row, grid] = self.run.match(self.matches[row], grid, level)
        return self.matches[row, grid]

    def _replace(self, layer: Layer, context: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ablation: keys and values of the reference as they are (MasaCtrl, Cao et al. 2023)."""
        size = value.shape[0] // len(self.kinds)
        hidden = torch.cat([torch.cat([row.hidden[layer] for row in self.run.features(kind, self.sigma, value)], 1)
                            .expand(size, -1, -1) for kind in self.kinds])
        return hidden, hidden

    def _record(self, found: JointMatch, mask: torch.Tensor, sure: torch.Tensor) -> None:
        view = self.run.plan.views[0]
        row = self.run.features(COND, self.sigma, mask)[0]
        reference_mask = view.mask if view.mask is not None else row.subject
        first = found.matches[0]
        self.run.plan.trace.snapshots[self.sigma] = Snapshot(
            self.sigma, mask, reference_mask, sure, first.flow, first.reference_size,
            tuple((match.flow, match.reference_size) for match in found.matches[1:]), found.best)


def _alike(seen: torch.Tensor, entry: torch.Tensor) -> bool:
    """Whether two rows may show one picture at one noise level. Tiles differ in all their noise."""
    return seen.shape == entry.shape and bool(torch.cosine_similarity(seen.float(), entry.float(), dim=0) > 0.5)
