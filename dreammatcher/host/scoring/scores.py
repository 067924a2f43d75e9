"""Scores in the graph: encoders of the models folder, or a CLIP Vision of the host's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import numpy as np
import torch
from einops import rearrange

from ...evaluation.chart import chart
from ...evaluation.encoders import CLIP_B32, DINO, DINO_2, Encoder, load_encoder
from ...evaluation.metrics import DREAMBOOTH, VICO, alignment, diversity, fidelity
from ...evaluation.statistics import difference, markdown
from ...uncopied import Uncopied
from ..graph.files import model_folders
from ..graph.notes import not_connected
from ..graph.pictures import Images, image_of, rgb_each, text_image

FOLDER = "evaluation"
#: choice -> (DINO's folder, preparation)
ENCODERS = {"DINO and CLIP, as DreamBooth": (DINO, DREAMBOOTH), "DINO and CLIP, as ViCo": (DINO, VICO),
            "DINOv2 and CLIP": (DINO_2, DREAMBOOTH), "CLIP Vision of the graph": None}


@dataclass(frozen=True, eq=False)
class GraphScores(Uncopied):
    """Scores of some results. A copy of it is itself."""

    values: dict[str, list[float]]  # metric -> of each result
    encoders: str

    def mean(self, metric: str) -> float:
        """Mean of a metric; NaN if it was not measured."""
        return float(np.mean(self.values[metric])) if metric in self.values else float("nan")


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


def score_pictures(results: Images, references: Images, prompt: str | Sequence[str], choice: str,
                   clip_vision=None) -> GraphScores:
    """Scores how alike results and references are, and how well results follow the prompt, or each its own of several prompts.

    Raises ValueError for pictures that are none, for prompts of another number, and when the chosen encoders are not there,
    saying where they belong.
    """
    pictures, known = ([rearrange(picture, "h w c -> c h w").float().cpu() for picture in rgb_each(name, images)]
                       for name, images in (("results", results), ("references", references)))
    prompts = _prompts(prompt, len(pictures))
    values: dict[str, torch.Tensor] = {}
    chosen = ENCODERS[choice]
    if chosen is None:
        if clip_vision is None:
            raise ValueError("clip_vision: nothing is connected; connect Load CLIP Vision, or choose other encoders")
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
    lines = [f"{metric}: {scores.mean(metric):.3f}" + (f"   ({', '.join(f'{one:.3f}' for one in each)})" if len(each) > 1 else "")
             for metric, each in scores.values.items()]
    return "\n".join([*lines, scores.encoders])


def compared(arms: list[tuple[str, GraphScores]]) -> tuple[str, torch.Tensor]:
    """A table of some arms, in Markdown, and their means as bars; without any a note that says so.

    With the same number of results, in the same order, the first arm's interval of differences is given too. Raises ValueError
    for two arms of one name, and for scores of different encoders.
    """
    if not arms:
        text = not_connected("scores_1", "DreamMatcher Evaluate", "there is nothing to compare")
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
    text, before, after = f"{scores.mean(metric):.3f}", first.values.get(metric, []), scores.values[metric]
    if scores is first or metric == "diversity" or len(before) != len(after) or len(after) < 2:
        return text
    gain = difference({str(n): one for n, one in enumerate(before)}, {str(n): one for n, one in enumerate(after)})
    return f"{text} ({gain.signed()})"


def chart_image(arms: dict[str, GraphScores]) -> torch.Tensor:
    """Means of some arms as the host's IMAGE, [1, H, W, 3] in 0..1."""
    page = chart({name: {metric: own.mean(metric) for metric in own.values} for name, own in arms.items()})
    return image_of(page)
