"""Scores in the graph: encoders of the models folder, or a CLIP Vision of the host's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import numpy as np
import torch
from einops import rearrange

from ...evaluation.chart import chart
from ...evaluation.encoders import CLIP_B32, DINO, DINO_2, Encoder, load_encoder, missing
from ...evaluation.metrics import DREAMBOOTH, VICO, alignment, diversity, fidelity
from ...evaluation.statistics import difference, figure, markdown
from ...uncopied import Uncopied
from ..graph.files import model_folders
from ..graph.notes import not_connected
from ..graph.pictures import Images, image_of, rgb_each, text_image

FOLDER = "evaluation"
#: choice -> (DINO's folder, preparation)
ENCODERS = {"DINO and CLIP, as DreamBooth": (DINO, DREAMBOOTH), "DINO and CLIP, as ViCo": (DINO, VICO),
            "DINOv2 and CLIP": (DINO_2, DREAMBOOTH), "CLIP Vision of the graph": None}
NO_CLIP_VISION = "clip_vision: nothing is connected; connect Load CLIP Vision, or choose other encoders"


@dataclass(frozen=True, eq=False)
class Judge:
    """A judge of its own: it needs no encoders, and gives each result its measures."""

    name: str  # what it measures, for readers
    #: results and references, each [3, H, W] in 0..1, and a prompt for each result -> measure -> values; NaN where it has none
    measure: Callable[[list[torch.Tensor], list[torch.Tensor], list[str]], dict[str, list[float]]]


@dataclass(frozen=True, eq=False)
class GraphScores(Uncopied):
    """Scores of some results. A copy of it is itself."""

    values: dict[str, list[float]]  # metric -> of each result; NaN where a result has none
    encoders: str

    def mean(self, metric: str) -> float:
        """Mean of a metric over the results that have it; NaN if it was not measured."""
        known = [value for value in self.values.get(metric, ()) if not math.isnan(value)]
        return float(np.mean(known)) if known else math.nan


def encoders_folder(*names: str) -> Path:
    """The first of the host's folders of encoders that holds those of these ``names``; the first of all where none does."""
    folders = model_folders(FOLDER)
    return next((folder for folder in folders if all((folder / name).is_dir() for name in names)), folders[0])


def _of_the_graph(clip_vision) -> Encoder:
    """The host's own CLIP Vision; it has no text side."""
    def encode(pictures: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([clip_vision.encode_image(rearrange(picture, "c h w -> 1 h w c")).image_embeds.float().cpu()
                          for picture in pictures])
    return Encoder("CLIP Vision", encode)


def lacking(choice: str, connected: bool, judges: Mapping[str, Judge]) -> str:
    """Why nothing can be scored by a choice: all that is missing for it, and where it belongs. Empty where nothing is.

    ``connected`` says whether the graph gives a CLIP Vision. A ``choice`` is of :data:`ENCODERS` or of the ``judges``.
    """
    if choice in judges:
        return ""
    if choice not in ENCODERS:
        return f"encoders: {choice!r} is unknown; choose one of {', '.join([*ENCODERS, *judges])}"
    chosen = ENCODERS[choice]
    if chosen is None:
        return "" if connected else NO_CLIP_VISION
    return missing({name: encoders_folder(name) for name in (chosen[0], CLIP_B32)})


def score_pictures(results: Images, references: Images, prompt: str | Sequence[str], choice: str, clip_vision=None,
                   judges: Mapping[str, Judge] | None = None) -> GraphScores:
    """Scores how alike results and references are, and how well results follow the prompt, or each its own of several prompts.

    Raises ValueError for pictures that are none, for prompts of another number, and when the chosen encoders are not there,
    saying where they belong.
    """
    if lack := lacking(choice, clip_vision is not None, judges or {}):
        raise ValueError(lack)
    pictures, known = ([rearrange(picture, "h w c -> c h w").float().cpu() for picture in rgb_each(name, images)]
                       for name, images in (("results", results), ("references", references)))
    prompts = _prompts(prompt, len(pictures))
    if judges and choice in judges:
        return GraphScores(judges[choice].measure(pictures, known, prompts), judges[choice].name)
    values: dict[str, torch.Tensor] = {}
    chosen = ENCODERS[choice]
    if chosen is None:
        dino, clip = None, _of_the_graph(clip_vision)
    else:
        name, preparation = chosen
        device = comfy.model_management.get_torch_device()
        dino = load_encoder(encoders_folder(name), name, preparation, device)
        clip = load_encoder(encoders_folder(CLIP_B32), CLIP_B32, device=device)
    with torch.inference_mode():
        if dino is not None:
            features = dino.pictures(pictures)
            values["DINO"] = fidelity(features, dino.pictures(known))
        features = clip.pictures(pictures)
        values["CLIP-I"] = fidelity(features, clip.pictures(known))
        if clip.texts is not None and all(prompts):
            values["CLIP-T"] = alignment(features, clip.texts(prompts))
        if len(pictures) > 1:
            values["diversity"] = torch.full((len(pictures),), diversity(features))
    comfy.model_management.soft_empty_cache()
    return GraphScores({metric: [float(one) for one in each] for metric, each in values.items()},
                       clip.name if dino is None else f"{dino.name}, {clip.name}")


def _prompts(given: str | Sequence[str], count: int) -> list[str]:
    said = [text.strip() for text in ([given] if isinstance(given, str) else given)]
    if len(said) not in (1, count):
        raise ValueError(f"prompt: there are {len(said)} texts for {count} results; give one for all, or one each in the same "
                         "order")
    if any(said) and not all(said):
        raise ValueError(f"prompt: text {said.index('') + 1} of {len(said)} is empty; write what each result should show")
    return said * (count // len(said))


def described(scores: GraphScores) -> str:
    """A line for each metric: its mean, and the value of every result."""
    lines = [f"{metric}: {_figure(scores.mean(metric))}" + (f"   ({', '.join(map(_figure, each))})" if len(each) > 1 else "")
             for metric, each in scores.values.items()]
    return "\n".join([*lines, scores.encoders])


def _figure(value: float) -> str:
    """Three decimals up to 1, about three digits above; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) <= 1 else figure(value)


def compared(arms: list[tuple[str, GraphScores]]) -> tuple[str, torch.Tensor]:
    """A table of some arms, in Markdown, and their means as bars; without any a note that says so.

    With the same number of results, in the same order, the first arm's interval of differences is given too. Raises ValueError
    for two arms of one name, and for scores of different encoders.
    """
    if not arms:
        text = not_connected("scores_1", "Evaluate (DreamMatcher)", "there is nothing to compare")
        return text, text_image(text)
    names = [name.strip() or f"arm {number}" for number, (name, _) in enumerate(arms, 1)]
    if len(set(names)) < len(names):
        raise ValueError(f"names: two of the arms are called {max(names, key=names.count)!r}; give each its own")
    different = [scores.encoders for _, scores in arms if scores.encoders != arms[0][1].encoders]
    if different:
        raise ValueError(f"scores: they are of different encoders ({arms[0][1].encoders}; {different[0]}) and do not compare")
    metrics = list(dict.fromkeys(metric for _, scores in arms for metric in scores.values))
    rows = [["", *metrics]]
    for name, (_, scores) in zip(names, arms):
        rows.append([name, *(_cell(arms[0][1], scores, metric) for metric in metrics)])
    return f"{markdown(rows)}\n\n{arms[0][1].encoders}", chart_image(dict(zip(names, (scores for _, scores in arms))))


def _cell(first: GraphScores, scores: GraphScores, metric: str) -> str:
    if metric not in scores.values:
        return ""
    text, before, after = _figure(scores.mean(metric)), first.values.get(metric, []), scores.values[metric]
    if scores is first or metric == "diversity" or len(before) != len(after):
        return text
    pairs = [(one, two) for one, two in zip(before, after) if not math.isnan(one + two)]
    if len(pairs) < 2:
        return text
    ours, theirs = ({str(number): pair[side] for number, pair in enumerate(pairs)} for side in (1, 0))
    gain = difference(theirs, ours)
    return f"{text} ({gain.signed()})"


def chart_image(arms: dict[str, GraphScores]) -> torch.Tensor:
    """Means of some arms as the host's IMAGE, [1, H, W, 3] in 0..1."""
    page = chart({name: {metric: own.mean(metric) for metric in own.values} for name, own in arms.items()})
    return image_of(page)
