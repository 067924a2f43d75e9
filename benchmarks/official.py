"""The yardstick of ``make bench``: the same algorithm with the official code's division of work.

Reference rows go through the UNet at every step beside the target's; each of the six layers makes its own descriptors
(PCA 256 by ``pca_lowrank``) and its own match for both rows. It is here to be timed, not to be used.
"""

from __future__ import annotations

import torch


def official_model(timing):
    """A clone of the timed model, whose every UNet call carries the reference's rows along."""
    descriptors = timing.module("dreammatcher.matching.descriptors")
    correspondence = timing.module("dreammatcher.matching.correspondence")
    appearance, foregrounds = timing.module("dreammatcher.matching.appearance"), timing.module("dreammatcher.attention")
    capture = timing.module("dreammatcher.host.model.capture")
    backbone = timing.module("dreammatcher.host.model.backbone").backbone_of(timing.model.model)
    points = timing.module("dreammatcher.host.model.patch_points")
    trajectory = timing.reference.trajectory
    maps = capture.SubjectMaps.of(timing.model.model, backbone, timing.mask.target_subject, (timing.side, timing.side))
    state: dict = {"scales": None, "new": {}, "maps": []}

    def split(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Reference row and target rows of each of the two chunks: the batch is [targets, targets, reference, reference]."""
        size = (x.shape[0] - 2) // 2
        return [(x[2 * size + chunk: 2 * size + chunk + 1], x[chunk * size:(chunk + 1) * size]) for chunk in range(2)]

    def read(layer, n, context, value, extra):
        if layer in maps.modules:
            rows = split(n)[-1][1].shape[0]
            state["maps"].append(maps.read(layer, n[rows:2 * rows], context[rows:2 * rows], (timing.side, timing.side)))
        return n, context, value

    def inject(layer, n, context, value, extra):
        if layer not in backbone.self_attention or state["scales"] is None:
            return n, context, value
        side = timing.side >> backbone.self_attention[layer]
        mask = foregrounds.foreground(state["maps"], (side, side))
        parts = []
        for (source, target), scales in zip(split(value), state["scales"]):
            pair = descriptors.descriptors([reference for reference, _ in scales], [other for _, other in scales], pca=256)
            matches = correspondence.match(*(descriptors.resize(part, (side, side)) for part in pair))
            weight = appearance.trusted(mask, correspondence.confidence(matches, mask))
            parts.append(appearance.match_appearance(target, source, matches.indices, weight))
        return n, context, torch.cat((*parts, value[-2:]))

    def keep(number, h, options):
        if number in backbone.taps:
            state["new"][number] = h.clone()
            if number == backbone.taps[-1]:
                scales = [split(state["new"][tap]) for tap in backbone.taps]
                state["scales"] = [[scale[chunk] for scale in scales] for chunk in range(2)]

    def carry(apply_model, options):
        x, sigma, c = options["input"], options["timestep"], dict(options["c"])
        if len(options["cond_or_uncond"]) != 2:
            raise RuntimeError("the host runs the guidance pair in two calls, for want of memory; this arm needs it in one")
        state["maps"].clear()
        noisy = trajectory.at(float(sigma[0])).to(x)
        texts = [timing.reference.negative, timing.reference.positive]
        c["c_crossattn"] = torch.cat((c["c_crossattn"], *(text.cross_attention.to(x) for text in texts)))
        rows = torch.cat((x, noisy, noisy)), torch.cat((sigma, sigma[:1], sigma[:1]))
        return apply_model(*rows, **c)[: x.shape[0]]

    model = timing.model.clone()
    model.set_model_unet_function_wrapper(carry)
    points.install_behind(model, points.Points(prompt=read, values=inject, feature=keep).patches())
    return model
