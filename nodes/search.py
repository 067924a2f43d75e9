"""The words by which people search for nodes: other packs, other terms, former names."""

from __future__ import annotations

ALIKE = ("reference", "same character", "consistent character", "consistency", "likeness", "identity", "appearance")
IMAGE_PROMPT = ("ipadapter", "ip-adapter", "image prompt", "style reference", "reference only")
LEARN = ("train", "training", "lora training", "train lora", "finetune", "fine-tuning")
EMBEDDING = ("textual inversion", "embedding", "train embedding")

#: node -> the words by which the host's search finds it besides its names
ALIASES: dict[str, tuple[str, ...]] = {
    "DreamMatcherEasy": (*IMAGE_PROMPT, *ALIKE, "subject", "faceid", "photomaker", "pulid", "instantid", "start here"),
    "DreamMatcherApply": (*IMAGE_PROMPT, *ALIKE, "subject", "appearance transfer", "reference attention"),
    "DreamMatcherInvert": ("reference", "image prompt", "ddim inversion", "inversion", "unsampler", "reference image"),
    "DreamMatcherSubject": ("subject", "prompt", "subject words", "clip text encode", "identity"),
    "DreamMatcherSubjects": ("subject", "prompt", "both prompts", "two prompts", "subject words", "clip text encode"),
    "DreamMatcherMask": ("subject mask", "reference mask", "segment", "foreground", "subject"),
    "DreamMatcherGuidance": ("guidance", "likeness", "stronger reference", "matching guidance", "consistency"),
    "DreamMatcherLock": ("kontext", "qwen edit", "flux.2", "edit model", "reference latent", "keep colours", "consistency"),
    "DreamMatcherFeatures": ("reference features", "precompute", "cache reference", "less memory"),
    "DreamMatcherCombine": ("several references", "multiple references", "two references", "merge references"),
    "DreamMatcherPreview": ("compare", "before after", "image comparer", "match inspector", "correspondence", "show match"),
    "DreamMatcherSaveReference": ("export reference", "keep reference", "save subject"),
    "DreamMatcherLoadReference": ("import reference", "open reference", "load subject"),
    "DreamMatcherLearn": (*LEARN, *EMBEDDING, "dreambooth", "same character", "subject"),
    "DreamMatcherTrainingSet": (*LEARN, "dataset", "data set", "captions", "training images"),
    "DreamMatcherPriorSet": ("regularisation images", "regularization images", "class images", "prior preservation", "training"),
    "DreamMatcherDreamBooth": (*LEARN, "dreambooth", "subject"),
    "DreamMatcherTextualInversion": ("training", *EMBEDDING, "new word", "concept"),
    "DreamMatcherCustomDiffusion": (*LEARN, "custom diffusion", "cross attention training", "concept"),
    "DreamMatcherTrainingOptions": ("training settings", "optimizer", "learning rate schedule", "gradient checkpointing"),
    "DreamMatcherTrainingDetails": ("text encoder learning rate", "noise offset", "huber", "caption dropout", "locon",
                                    "timestep sampling", "rank dropout", "training settings"),
    "DreamMatcherTrainingJob": ("train from terminal", "multi gpu training", "training command", "training"),
    "DreamMatcherSaveLearned": ("save lora", "export lora", "save embedding", "save training"),
    "DreamMatcherApplyLearned": ("apply lora", "use training", "lora strength"),
    "DreamMatcherLoadLearned": ("load lora", "custom diffusion delta", "load embedding", "dreambooth lora"),
    "DreamMatcherChoose": ("checkpoint picker", "best step", "compare epochs", "training samples"),
    "DreamMatcherViCoTrain": (*LEARN, "vico", "image prompt", "visual condition"),
    "DreamMatcherViCoApply": ("vico", "image prompt", "reference", "ipadapter"),
    "DreamMatcherViCoMasks": ("vico", "attention map", "show mask"),
    "DreamMatcherViCoSave": ("vico", "save training"),
    "DreamMatcherViCoLoad": ("vico", "load training"),
    "DreamMatcherSeFiTrain": (*LEARN, *EMBEDDING, "sefi", "face", "identity", "one photo"),
    "DreamMatcherSeFiPrompt": ("sefi", "prompt", "embedding", "identity"),
    "DreamMatcherSeFiApply": ("sefi", "apply embedding", "identity"),
    "DreamMatcherSeFiLoss": ("sefi", "attention loss", "training"),
    "DreamMatcherSeFiSave": ("sefi", "save embedding"),
    "DreamMatcherSeFiLoad": ("sefi", "load embedding"),
    "DreamMatcherEvaluate": ("score", "similarity", "dino", "clip score", "metrics", "likeness", "measure"),
    "DreamMatcherScoreSheet": ("score", "compare scores", "table", "metrics", "chart"),
    "ToyboxLoader": ("tiny model", "test model", "demo checkpoint", "no checkpoint"),
    "ToyboxReference": ("demo image", "test image", "sample image", "drawn subject"),
}
FAMILY = "DreamMatcher"


def former_name(title: str) -> str:
    """The name that a node had before its own word came first: people and tutorials still know it."""
    own = title.removesuffix(f" ({FAMILY})")
    return title if own == title else f"{FAMILY} {own}"
