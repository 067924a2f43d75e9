"""Values for numbers of a training that are 0: each a value that suits the method, as its paper or its script has it."""

from __future__ import annotations

from dataclasses import dataclass

from .job import CUSTOM_DIFFUSION, DREAMBOOTH_FULL, DREAMBOOTH_LORA, TEXTUAL_INVERSION
from .settings import LION, PRODIGY

#: diffusers' train_dreambooth_lora.py, train_dreambooth.py without and with the text encoder, and textual_inversion.py
LORA_RATE, FULL_RATE, FULL_RATE_WITH_TEXT, WORD_RATE = 1e-4, 5e-6, 2e-6, 5e-3
#: Custom Diffusion's for each picture of a step, those of the class included (the authors' scale_lr)
RATE_OF_A_PICTURE = 1e-5
#: Lion's steps are all of the rate's length: a third to a tenth of AdamW's rate (Chen et al. 2023, Sec. 5)
LION_SHARE = 1 / 3
#: pictures of a step: Custom Diffusion's two, and one as the other scripts have it
BATCHES = {CUSTOM_DIFFUSION: 2}


@dataclass(frozen=True)
class Numbers:
    """Numbers that a method lets stand open. 0: not chosen yet."""

    rate: float = 0.0
    batch: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate: {self.rate} is outside 0..1; 0 takes the method's own")
        if self.batch < 0:
            raise ValueError(f"batch: {self.batch} is below 0; 0 takes the method's own")

    def filled(self, method: str, optimiser: str, text: bool = False, prior: bool = False, pace: float = 1.0) -> Numbers:
        """These numbers with values for those that are open.

        ``text``: the text encoder learns too. ``prior``: so many class pictures are in a step as others. ``pace``: how much
        larger steps a model takes than one of SD1.x's size. Prodigy multiplies its own estimate by the rate, which is 1 then.
        """
        batch = self.batch or BATCHES.get(method, 1)
        if self.rate:
            return Numbers(self.rate, batch)
        if optimiser == PRODIGY:
            return Numbers(1.0, batch)
        rates = {DREAMBOOTH_LORA: LORA_RATE, DREAMBOOTH_FULL: FULL_RATE_WITH_TEXT if text else FULL_RATE,
                 TEXTUAL_INVERSION: WORD_RATE, CUSTOM_DIFFUSION: RATE_OF_A_PICTURE * batch * (2 if prior else 1)}
        share = LION_SHARE if optimiser == LION else 1.0
        return Numbers(min(1.0, pace * share * rates[method]), batch)

    def said(self, filled: Numbers) -> list[str]:
        """Values chosen for those that were open, in words."""
        return [text for text, was_open in ((f"rate {filled.rate:g}", not self.rate), (f"batch {filled.batch}", not self.batch))
                if was_open]
