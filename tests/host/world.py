"""Small models and one-line runs, the same on both hosts."""

from __future__ import annotations

import torch


def random_unet(width: int = 32, prediction: str = "EPS"):
    """An SD1.5-shaped UNet with random weights: two scales, 1.1 M parameters, context of 96."""
    import comfy.model_base
    import comfy.supported_models_base

    class Family(comfy.supported_models_base.BASE):
        unet_config = {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": width, "num_res_blocks": [1, 1],
            "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1] * 4,
            "transformer_depth_middle": 1, "use_spatial_transformer": True, "use_linear_in_transformer": False,
            "context_dim": 96, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
        }
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

        def model_type(self, state_dict, prefix=""):
            return comfy.model_base.ModelType[prediction]

    return randomised(Family(Family.unet_config))


def randomised(family):
    """The host's ModelPatcher around a family's UNet with random weights that keep activations in range."""
    import comfy.model_patcher

    family.set_inference_dtype(torch.float32, None)
    base = family.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in base.named_parameters():
        if parameter.ndim > 1:
            fan = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) / fan**0.5
        else:
            parameter.data = torch.ones_like(parameter) if name.endswith("weight") else torch.zeros_like(parameter)
    return comfy.model_patcher.ModelPatcher(base, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def noise_following_unet():
    """A random UNet that also passes its input on to its output through the first skip connection.

    What every noise predictor has learned, a prediction that grows with the noise in its input, without any training.
    """
    model = random_unet()
    unet = model.model.diffusion_model
    first, last, out = unet.input_blocks[0][0], unet.output_blocks[-1][0].skip_connection, unet.out[-1]
    before = last.weight.shape[1] - first.weight.shape[0]  # channels in front of the skip connection's
    with torch.no_grad():
        first.weight[:4] = 0
        last.weight[:4] *= 0.2
        out.weight *= 0.2
        for channel in range(4):
            first.weight[channel, channel, 1, 1] = 1
            last.weight[channel, before + channel] = 1
            out.weight[channel, channel, 1, 1] += 1
    return model


#: what tells the families' UNets apart: (host class, multipliers, blocks, depths, output depths, middle depth, linear, pooled)
FAMILIES = {
    "SD1.5": ("SD15", [1, 2, 4, 4], 2, [1, 1, 1, 1, 1, 1, 0, 0], [1] * 9 + [0] * 3, 1, False, None),
    "SD2.1": ("SD20", [1, 2, 4, 4], 2, [1, 1, 1, 1, 1, 1, 0, 0], [1] * 9 + [0] * 3, 1, True, None),
    "SDXL": ("SDXL", [1, 2, 4], 2, [0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], 10, True, 2816),
    "SSD-1B": ("SSD1B", [1, 2, 4], 2, [0, 0, 2, 2, 4, 4], [0, 0, 0, 1, 1, 2, 10, 4, 4], -1, True, 2816),
    "Vega": ("Segmind_Vega", [1, 2, 4], 2, [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2], -1, True, 2816),
    "KOALA 700M": ("KOALA_700M", [1, 2, 4], 1, [0, 2, 5], [0, 0, 2, 2, 5, 5], -2, True, 2816),
    "KOALA 1B": ("KOALA_1B", [1, 2, 4], 1, [0, 2, 6], [0, 0, 2, 2, 6, 6], 6, True, 2816),
}


def family_unet(name: str, inputs: int = 4, prediction: str | None = None, context: int = 96):
    """A narrow UNet (32 channels) in the exact layout of a real family, through the host's own class."""
    import comfy.model_base
    import comfy.supported_models

    host_class, multipliers, blocks, depth, depth_output, middle, linear, pooled = FAMILIES[name]
    original = getattr(comfy.supported_models, host_class)

    class Narrow(original):
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

        def model_type(self, state_dict, prefix=""):
            return comfy.model_base.ModelType[prediction] if prediction else original.model_type(self, state_dict, prefix)

    config = {
        "image_size": 32, "in_channels": inputs, "out_channels": 4, "model_channels": 32,
        "num_res_blocks": [blocks] * len(multipliers),
        "channel_mult": multipliers, "transformer_depth": depth, "transformer_depth_output": depth_output,
        "transformer_depth_middle": middle, "use_spatial_transformer": True, "use_linear_in_transformer": linear,
        "context_dim": context, "adm_in_channels": pooled, "use_temporal_attention": False, "legacy": False,
    }
    if pooled:
        config["num_classes"] = "sequential"
    return randomised(Narrow(config))


def prompt(seed: int, tokens: int = 77, width: int = 96, pooled: int | None = None) -> list:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, width, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}]]


def picture(seed: int, height: int = 16, width: int = 16, batch: int = 1, channels: int = 4) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def robots(host, count: int) -> torch.Tensor:
    """IMAGE batch of one Toybox robot on grass, in ``count`` poses."""
    draw = host.nodes["ToyboxReference"]().draw
    return torch.cat([draw(3, "robot", pose, "grass")[0] for pose in range(1, count + 1)])


def sample(model, positive, negative, *, seed=0, steps=6, cfg=5.0, sampler="euler", scheduler="normal",
           height=16, width=16, batch=1, noise=None, denoise=1.0, latent=None, callback=None) -> torch.Tensor:
    """The host's own sampling. Noise is made per item, so that a batch equals its singles."""
    import comfy.sample

    with torch.inference_mode():
        if noise is None:
            noise = torch.cat([picture(1000 + seed + item, height, width) for item in range(batch)])
        latent = torch.zeros_like(noise) if latent is None else latent
        torch.manual_seed(seed)  # as the host does when it draws the noise itself
        return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, positive, negative, latent,
                                   denoise=denoise, seed=seed, callback=callback, disable_pbar=True)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same_weights(model, before: dict[str, torch.Tensor]) -> bool:
    now = model.model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], value) for name, value in before.items())


class Bench:
    """A model with an inverted reference and everything needed to apply it."""

    def __init__(self, pack, model, *, height=16, width=16, steps=10, tokens=77, subject=(5,), target=(6,),
                 pooled=None):
        self.module = pack.module
        self.model = model
        self.positive, self.negative, self.target = (prompt(seed, tokens, pooled=pooled) for seed in (1, 2, 3))
        Subject = self.module("dreammatcher.matching.reference").Subject
        self.subjects = (Subject("dog", "a dog", subject, tokens), Subject("dog", "the dog", target, tokens))
        invert = self.module("dreammatcher.host.matching.invert").invert_reference
        with torch.inference_mode():
            self.reference, self.reconstruction = invert(
                model, {"samples": picture(7, height, width)}, self.positive, self.negative, steps, "ddim_uniform")

    def mask(self, **changes):
        settings = dict(reference_subject=self.subjects[0], target_subject=self.subjects[1])
        return self.module("dreammatcher.matching.settings").MaskSettings(**{**settings, **changes})

    def apply(self, model=None, mask=None, layers="", reference=None, **settings):
        """(patched model, trace)."""
        settings.setdefault("start", 0.0)
        chosen = self.module("dreammatcher.matching.settings").ApplySettings(**settings)
        return self.module("dreammatcher.host.matching.apply").apply(
            model or self.model, reference or self.reference, mask or self.mask(), chosen, layers)

    def sample(self, model=None, **options) -> torch.Tensor:
        return sample(model or self.model, self.target, self.negative, **options)


def narrow_sd(config: dict):
    """A UNet in the original code's terms, as the host builds SD1's: attention at every resolution that is listed."""
    import comfy.supported_models_base

    scales = len(config["channel_mult"])
    at = [2**scale in config["attention_resolutions"] for scale in range(scales)]
    blocks = config["num_res_blocks"]

    class Family(comfy.supported_models_base.BASE):
        unet_config = {
            **{name: config[name] for name in ("image_size", "in_channels", "out_channels", "model_channels", "channel_mult",
                                               "use_spatial_transformer", "context_dim", "legacy")},
            "num_res_blocks": [blocks] * scales, "transformer_depth": [int(attends) for attends in at for _ in range(blocks)],
            "transformer_depth_output": [int(attends) for attends in at for _ in range(blocks + 1)],
            "transformer_depth_middle": 1,
            "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
        }
        unet_extra_config = {"num_heads": config["num_heads"], "num_head_channels": -1}

    return randomised(Family(Family.unet_config))
