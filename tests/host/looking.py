"""A model with random image attention and a reference that it looks at."""

from __future__ import annotations

import torch
from world import picture, prompt, sample

SIZE = dict(height=32, width=32, steps=4)


class Looking:
    """A model, what ViCo has learned for it (random blocks), and a reference."""

    def __init__(self, pack, model):
        self.module, self.model = pack.module, model
        sites = self.module("dreammatcher.host.vico.sites")
        block = self.module("dreammatcher.vico.block")
        self.blocks = sites.blocks_of(model.model)
        learned = self.module("dreammatcher.vico.learned")
        made = block.begun(sites.widths(model.model), torch.Generator().manual_seed(2))
        self.vico = learned.ViCo(learned.tensors_of(made), torch.ones(1, 96), {"word": "sks"})
        self.reference = picture(7, 16, 24)
        Subject = self.module("dreammatcher.subject").Subject
        self.subject = Subject("dog", "the dog", (6,), 77)
        self.positive, self.negative = prompt(3), prompt(2)

    def apply(self, model=None, subject=True, reference=None, **chosen):
        settings = self.module("dreammatcher.vico.settings").LookSettings(**chosen)
        return self.module("dreammatcher.host.vico.apply").apply_vico(
            model or self.model, self.vico, self.reference if reference is None else reference, settings,
            self.subject if subject else None)

    def sample(self, model=None, positive=None, **options):
        return sample(model or self.model, positive or self.positive, self.negative, **{**SIZE, **options})
