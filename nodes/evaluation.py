"""Nodes that measure pictures as the papers do."""

from __future__ import annotations

from ..dreammatcher.host.scoring.scores import ENCODERS, Judge, chart_image, compared, described, lacking, score_pictures
from ..toybox.scores import NAME, judged_pictures
from . import inputs
from .sets import listed, takes_sets

CATEGORY = "DreamMatcher/evaluation"
JUDGES = {"Toybox's judge": Judge(NAME, judged_pictures)}


@takes_sets("results", "references", "prompt")
class DreamMatcherEvaluate:
    TITLE = "Evaluate (DreamMatcher)"
    DESCRIPTION = ("How alike results and references are (DINO, CLIP-I), and how well results follow the prompt (CLIP-T), as in "
                   "the papers' tables.")
    CATEGORY = CATEGORY
    FUNCTION = "measure"
    RETURN_TYPES = ("DM_SCORES", "STRING", "FLOAT", "FLOAT", "FLOAT", "IMAGE")
    RETURN_NAMES = ("scores", "text", "dino", "clip_i", "clip_t", "chart")
    OUTPUT_TOOLTIPS = ("For Score Sheet (DreamMatcher).", "All of it in words.", "Mean DINO similarity to the references.",
                       "Mean CLIP similarity to the references.", "Mean CLIP similarity to the prompt.", "The means as bars.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "results": ("IMAGE", {"tooltip": "Pictures that were made, as a batch or a list."}),
            "references": ("IMAGE", {"tooltip": "Photos of the subject: all that there are, as a batch or a list."}),
            "prompt": inputs.text("", "What they should show, without the learned word: a dog on the beach; or a list of texts, "
                                      "one for each. Empty: no CLIP-T.", multiline=True),
            "encoders": ([*ENCODERS, *JUDGES], {
                "tooltip": "Which networks compare, from the folder models/evaluation, and how pictures are prepared. Scores of "
                           "different choices do not compare. Toybox's judge comes with the pack and is for Toybox's drawings: "
                           "how far the subject's colours are from the references', and if class and scene are the prompt's."}),
        }, "optional": {
            "clip_vision": ("CLIP_VISION", {"tooltip": "For the choice CLIP Vision of the graph."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, encoders=None, clip_vision=False):
        """Names what is missing when the graph is queued, before anything is sampled. A linked input comes as None."""
        said = [lacking(choice, clip_vision is not False, JUDGES) for choice in listed(encoders) if choice is not None]
        return next((one.removeprefix("encoders: ") for one in said if one), True)  # the host says which input it is

    def measure(self, results, references, prompt, encoders, clip_vision=None):
        scores = score_pictures(results, references, prompt, encoders, clip_vision, JUDGES)
        said = described(scores)
        means = [scores.mean(metric) for metric in ("DINO", "CLIP-I", "CLIP-T")]
        return {"ui": {"text": [said]}, "result": (scores, said, *means, chart_image({"results": scores}))}


class DreamMatcherScoreSheet:
    TITLE = "Score Sheet (DreamMatcher)"
    DESCRIPTION = "Sets the scores of several ways side by side: is it more alike now?"
    CATEGORY = CATEGORY
    FUNCTION = "compare"
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("table", "chart")
    OUTPUT_TOOLTIPS = ("A table in Markdown.", "The means as bars.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "name_1": inputs.text("plain", "What it is called."),
        }, "optional": {
            "scores_1": ("DM_SCORES", {"tooltip": "The first way, as the plain model."}),
            "scores_2": ("DM_SCORES", {"tooltip": "A second one."}),
            "name_2": inputs.text("DreamMatcher", "What it is called."),
            "scores_3": ("DM_SCORES", {"tooltip": "A third one."}),
            "name_3": inputs.text("third", "What it is called."),
            "scores_4": ("DM_SCORES", {"tooltip": "A fourth one."}),
            "name_4": inputs.text("fourth", "What it is called."),
        }}

    def compare(self, scores_1=None, name_1="plain", scores_2=None, name_2="DreamMatcher", scores_3=None, name_3="third",
                scores_4=None, name_4="fourth"):
        given = ((name_1, scores_1), (name_2, scores_2), (name_3, scores_3), (name_4, scores_4))
        table, chart = compared([(name, scores) for name, scores in given if scores is not None])
        return {"ui": {"text": [table]}, "result": (table, chart)}


NODES = (DreamMatcherEvaluate, DreamMatcherScoreSheet)
