"""Nodes that say where the subject is and match its appearance."""

from __future__ import annotations

from ..dreammatcher.host.graph.masks import mask_grid
from ..dreammatcher.host.matching.apply import apply_or_pass
from ..dreammatcher.host.matching.guide import guide
from ..dreammatcher.host.matching.live import FOREGROUND, OFF, TRUSTED, Live
from ..dreammatcher.host.matching.lock import lock
from ..dreammatcher.host.matching.masks import THRESHOLD, mask_or_subjects, mask_settings, shared_subjects
from ..dreammatcher.matching.guidance import BEST_GUIDANCE, FAST, INSIDE, PAPER, GuidanceSettings
from ..dreammatcher.matching.locking import ATTENTION, VALUES, LockSettings
from ..dreammatcher.matching.settings import BALANCED, BEST, BEST_START, PRESETS, ApplySettings, match_settings_of
from . import inputs
from .reference import with_remarks

CARRIED = "carried over"


class DreamMatcherMask:
    TITLE = "Mask (DreamMatcher)"
    DESCRIPTION = ("Says where the subject is: in the reference by its words or a painted MASK, in the picture to come by what "
                   "the match carries over, by its words or by a painted MASK.")
    CATEGORY = inputs.MATCHING
    FUNCTION = "make"
    RETURN_TYPES = ("DM_MASK",)
    RETURN_NAMES = ("mask",)
    OUTPUT_TOOLTIPS = ("For Apply (DreamMatcher) and Features (DreamMatcher).",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "cycle_threshold": inputs.number("FLOAT", THRESHOLD, 0.01, 10.0, "How strict matching is: each place is followed "
                                                 "to the photo and back, and may miss itself by so much. Lower it where colours "
                                                 "land in wrong places, raise it where too little comes over. The paper has "
                                                 "0.4.", 0.01),
                "binarise": ([CARRIED, "otsu", "soft"], {"default": CARRIED, "tooltip":
                             "How the subject is told from the background in the new picture. carried over: where the match "
                             "lies on the photo's subject, which finds thin parts too. otsu: where the model looks for the "
                             "subject's words, cut to a plain yes or no (by Otsu's method). soft: the same with soft edges, as "
                             "in the paper. A target_mask goes before all of them."}),
            },
            "optional": {
                "reference_subject": ("DM_SUBJECT", {"tooltip": "The subject's words in the reference's prompt."}),
                "target_subject": ("DM_SUBJECT", {"tooltip": "The subject's words in the prompt of the new picture."}),
                "reference_mask": inputs.subject_mask(),
                "target_mask": ("MASK", {"tooltip": "White where the subject will be: replaces the words' own map."}),
            },
        }

    def make(self, reference_subject=None, target_subject=None, cycle_threshold=THRESHOLD, binarise="otsu", reference_mask=None,
             target_mask=None):
        reference_subject, target_subject, remarks = shared_subjects(reference_subject, target_subject)
        settings = mask_settings(reference_subject, target_subject, reference_mask, target_mask, cycle_threshold,
                                 binarise != "soft", binarise == CARRIED)
        return with_remarks((settings,), remarks) if remarks else (settings,)


class DreamMatcherApply:
    TITLE = "Apply (DreamMatcher)"
    DESCRIPTION = ("Gives the model the reference's appearance: colours and textures are moved to where they belong in the "
                   "new picture, its layout stays. Works with any sampler, scheduler, LoRA and size.")
    CATEGORY = inputs.MATCHING
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "DM_TRACE")
    RETURN_NAMES = ("model", "trace")
    OUTPUT_TOOLTIPS = ("The model for the sampler.",
                       "A record of the run: which place of the photo went where. Preview (DreamMatcher) shows it.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "An SD1.x, SD2.x or SDXL model or a transformer that README lists, with LoRAs "
                                           "if you like."}),
            **inputs.strength("How much of the reference's appearance is taken. 0 is the plain model."),
            **inputs.span("after which matching begins: earlier, layout is still being found.", "at which matching stops.",
                          BEST_START),
            "layers": inputs.text("", "Leave it empty: that fits every model. Else in which of the model's layers colours are "
                                      "taken over: numbers of output blocks with commas; fewer take over less. Empty are the two "
                                      "highest decoder levels that have self-attention, as in the paper."),
        }, "optional": {
            "preset": (list(PRESETS), {"default": BEST, "tooltip":
                       "best: as balanced, and the subject's cells look at fewer others, so that thin parts keep their colours; "
                       "in transformers the surroundings also keep theirs. "
                       "balanced: one reference pass and one match for both rows of the guidance pair, descriptors as they are. "
                       "fast: a new match only at every second evaluation of the model. paper: the authors' way, PCA 256 and "
                       "everything for each row."}),
            "live_preview": ([OFF, FOREGROUND, TRUSTED], {"default": OFF, "tooltip":
                             "Shows the picture on this node while it is made, at every fourth noise level, with something "
                             "in yellow. foreground: where the subject is. trusted: the part of it where a match holds there "
                             "and back, so that the photo's colours come over."}),
            "reference": ("DM_REFERENCE", {"tooltip":
                          "From Invert Reference (DreamMatcher), Features (DreamMatcher), Combine "
                          "References (DreamMatcher) or Load Reference (DreamMatcher). Without it the "
                          "model goes on as it is."}),
            "mask": ("DM_MASK", {"tooltip": "From Mask (DreamMatcher). Not needed where target_subject is connected."}),
            **inputs.SUBJECTS,
        }, "hidden": {"unique_id": "UNIQUE_ID"}}

    def apply(self, model, reference=None, mask=None, strength=1.0, start=BEST_START, end=1.0, layers="", preset=BALANCED,
              live_preview=OFF, reference_subject=None, target_subject=None, unique_id=""):
        mask, remarks = mask_or_subjects(mask, reference_subject, target_subject)
        settings = ApplySettings(strength, start, end, match=match_settings_of(preset))
        applied = apply_or_pass(model, reference, mask, settings, layers, Live(live_preview, unique_id))
        return with_remarks(applied, remarks) if remarks else applied


class DreamMatcherGuidance:
    TITLE = "Guidance (DreamMatcher)"
    DESCRIPTION = ("Leads the picture further towards the reference where the match is trusted. Optional: most of the "
                   "likeness comes from Apply (DreamMatcher).")
    CATEGORY = inputs.MATCHING
    FUNCTION = "guide"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model for the sampler.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "The MODEL output of Apply (DreamMatcher)."}),
            "weight": inputs.number("FLOAT", BEST_GUIDANCE.weight, 0.0, 20.0,
                                    "How strongly the picture is led; 0 turns guidance off. In mode fast 1 goes a fifth of the "
                                    "way at every step and 5 all of it; in mode paper 1 is the authors' lambda of 50.", 0.05),
            **inputs.span("after which guidance begins, within the span of Apply (DreamMatcher).", "at which guidance stops.",
                          BEST_START),
            "mode": ([INSIDE, FAST, PAPER], {"default": INSIDE, "tooltip":
                     "inside: no gradient, next to no cost; the subject's edge is left alone, so that no colour spills around "
                     "it. fast: the same with the edge. paper: the authors' gradient through the UNet, which takes more time "
                     "and memory."}),
        }}

    def guide(self, model, weight, start, end, mode):
        return (guide(model, GuidanceSettings(weight, start, end, mode)),)


class DreamMatcherLock:
    TITLE = "Lock (DreamMatcher)"
    DESCRIPTION = ("Keeps an edit model's picture to the colours and textures of the reference pictures that it is given, "
                   "wherever both show the same. Nothing is inverted; a step costs next to nothing more.")
    CATEGORY = inputs.MATCHING
    FUNCTION = "lock"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model for the sampler.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {"tooltip": "An edit model: Flux.1 Kontext, Flux.2, Qwen-Image-Edit or Z-Image Omni, with "
                                           "LoRAs if you like."}),
            **inputs.strength("How much of the reference's appearance is taken where a match is trusted. 0 is the plain model."),
            **inputs.span("after which the picture is locked: earlier, layout is still being found.",
                          "at which the lock opens.", LockSettings.start),
            "reference": inputs.number("INT", 0, 0, 100, "Which of the reference pictures, in the order in which they are given: "
                                                         "1 is the first. 0: every place takes its best match in all."),
            "similarity": inputs.number("FLOAT", 0.2, -1.0, 1.0, "How alike, as a cosine, what is matched must be. Higher locks "
                                                                 "less; -1 asks for nothing.", 0.01),
            "cycle_threshold": inputs.number("FLOAT", 0.1, 0.01, 10.0, "How strict matching is: each place is followed to the "
                                                                       "reference and back, and may miss itself by this share "
                                                                       "of the picture's side. Lower locks fewer places.",
                                             0.01),
        }, "optional": {
            "reference_mask": ("MASK", {"tooltip": "White where the subject is in the reference: what matches the rest is left "
                                                   "alone. A batch has one for each reference, in their order."}),
            "way": ([ATTENTION, VALUES], {"default": ATTENTION, "tooltip":
                    "attention: each place looks more at its match in the reference, and the model takes from there what it has "
                    "learned to take. values: the reference's values go in the picture's place, which changes more and can "
                    "spoil it."}),
        }, "hidden": {"unique_id": "UNIQUE_ID"}}

    def lock(self, model, strength, start, end, reference, similarity, cycle_threshold, reference_mask=None, way=VALUES,
             unique_id=""):
        settings = LockSettings(strength, start, end, reference, similarity, cycle_threshold, way)
        return lock(model, settings, mask_grid("reference_mask", reference_mask), unique_id)[:1]


NODES = (DreamMatcherMask, DreamMatcherApply, DreamMatcherGuidance, DreamMatcherLock)
