"""One step of each method against the published scripts' own parts, on Toybox's weights: diffusers' UNet, scheduler and attention
processor of Custom Diffusion, and transformers' text encoder.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from closeness import RUN, close
from torch.func import functional_call

diffusers = pytest.importorskip("diffusers")

CAPTION, CLASS_CAPTION, BATCH = "a photo of a sks robot", "a photo of a robot", 2
KEYS_AND_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")


@pytest.fixture(scope="module")
def theirs(toybox):
    """Toybox's UNet in diffusers, and our name of each of its weights."""
    import comfy.utils

    from benchmarks.against_official import unet_config
    from toybox.host import ToyboxFamily

    with torch.inference_mode(False):
        unet = diffusers.UNet2DConditionModel(**unet_config(ToyboxFamily.unet_config))
        weights = toybox[0].model.diffusion_model.state_dict()
        table = comfy.utils.unet_to_diffusers(toybox[0].model.model_config.unet_config)
        names = {their: ours for their, ours in table.items() if ours in weights}
        unet.load_state_dict({their: weights[ours].clone() for their, ours in names.items()})
    return unet.requires_grad_(True), names


@pytest.fixture(scope="module")
def scheduler():
    return diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")


@pytest.fixture
def gradients():
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture
def parts(pack, toybox):
    """Our denoiser, and pictures of a subject and of its class as latents."""
    data = pack.module("dreammatcher.training.data")
    with torch.inference_mode():
        denoiser = pack.module("dreammatcher.host.training.model").HostDenoiser(toybox[0], toybox[1], (16, 16))
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode(False):
        pictures, prior = (data.LatentSet((data.Prepared(torch.randn(1, 4, 16, 16, generator=generator), None, (caption,)),))
                           for caption in (CAPTION, CLASS_CAPTION))
    return denoiser, pictures, prior


def recipe_of(pack, parts, prior: bool, weight: float = 0.7, **learns):
    denoiser, pictures, class_pictures = parts
    settings = pack.module("dreammatcher.training.settings")
    return pack.module("dreammatcher.training.recipe").SubjectRecipe(
        denoiser, pictures, settings.ObjectiveSettings(weight), prior=class_pictures if prior else None, **learns)


def drawn(recipe, seed: int):
    """Latents, noise and timesteps that our step draws with a seed, in the order of its batch."""
    generator = torch.Generator().manual_seed(seed)
    sets = [recipe.subject_set, *([recipe.prior] if recipe.prior else [])]
    latents = torch.cat([one.draw(BATCH, generator).latents for one in sets])
    timesteps = torch.randint(1000, (len(latents),), generator=generator)
    return latents, torch.randn(latents.shape, generator=generator), timesteps


def loss_of_the_scripts(unet, scheduler, drawn_ones, context, weights=None, weight: float = 0.7):
    """train_dreambooth.py: one call for both halves, MSE of each half, the class's times its weight."""
    latents, noise, timesteps = drawn_ones
    inputs = (scheduler.add_noise(latents, noise, timesteps), timesteps, context)
    said = (functional_call(unet, weights, inputs) if weights else unet(*inputs)).sample
    if len(latents) == BATCH:
        return F.mse_loss(said, noise)
    subject, prior = F.mse_loss(said[:BATCH], noise[:BATCH]), F.mse_loss(said[BATCH:], noise[BATCH:])
    return subject + weight * prior


def alike(ours: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((ours - other).norm() <= 1e-5 * other.norm() + 1e-9)


def test_predictions_are_those_of_diffusers(theirs, parts, gradients):
    denoiser, pictures, _ = parts
    text = denoiser.encode([CAPTION])
    noisy, step = pictures.examples[0].latents, torch.tensor([321])
    with torch.no_grad():
        other = theirs[0](noisy, step, text.cross_attention.clone()).sample
    assert alike(denoiser.predict(noisy, step, text, {}).detach(), other)


@pytest.mark.parametrize("prior", [True, False])
def test_a_step_of_dreambooth_as_a_lora_has_the_scripts_loss_and_gradients(pack, theirs, scheduler, parts, gradients, prior):
    unet, names = theirs
    training = pack.module("dreammatcher.training.dreambooth")
    settings = pack.module("dreammatcher.training.settings").LoraSettings(4)
    generator = torch.Generator().manual_seed(9)
    lora = training.lora_of(parts[0].unet, training.UNET_TARGETS, settings, 1e-4, generator)
    for up in lora.up.values():  # zero at first, when A has no gradient
        up.data.normal_(0, 0.02, generator=generator)
    recipe = recipe_of(pack, parts, prior, unet=lora)
    loss = recipe.loss(BATCH, torch.Generator().manual_seed(1))
    loss.backward()

    factors = {name: (down.detach().clone().requires_grad_(), up.detach().clone().requires_grad_())
               for name, (down, up) in lora.factors().items()}
    base = unet.state_dict()
    weights = {their: base[their] + factors[ours][1] @ factors[ours][0] for their, ours in names.items() if ours in factors}
    context = torch.cat([parts[0].encode([caption]).cross_attention.repeat(BATCH, 1, 1)
                         for caption in (CAPTION, CLASS_CAPTION)[:1 + prior]]).clone()
    other = loss_of_the_scripts(unet, scheduler, drawn(recipe, 1), context, weights)
    other.backward()
    assert float(loss) == pytest.approx(float(other), rel=1e-5)
    ours, others = ([value.grad.flatten() for pair in pairs.values() for value in pair] for pairs in (lora.factors(), factors))
    assert alike(torch.cat(ours), torch.cat(others))
    assert all((one - another).norm() <= 1e-4 * another.norm() for one, another in zip(ours, others))


def test_a_step_of_custom_diffusion_has_the_authors_gradients(pack, theirs, scheduler, parts, toybox, gradients):
    from diffusers.models.attention_processor import AttnProcessor, CustomDiffusionAttnProcessor

    unet, names = theirs
    with torch.inference_mode():
        denoiser = pack.module("dreammatcher.host.training.model").HostDenoiser(toybox[0], toybox[1], (16, 16), True)
    keys_and_values = pack.module("dreammatcher.training.custom_diffusion").keys_and_values_of(denoiser.unet, 1e-5)
    recipe = recipe_of(pack, (denoiser, *parts[1:]), True, unet=keys_and_values)
    loss = recipe.loss(BATCH, torch.Generator().manual_seed(2))
    loss.backward()
    ours = {name: value.grad for name, value in zip(keys_and_values.differences(), keys_and_values.parameters())}

    base, processors = unet.state_dict(), {}
    for name in unet.attn_processors:
        block = name.removesuffix(".processor")
        if not name.endswith("attn2.processor"):
            processors[name] = AttnProcessor()
            continue
        key = base[f"{block}.to_k.weight"]
        processors[name] = CustomDiffusionAttnProcessor(train_kv=True, train_q_out=False, hidden_size=key.shape[0],
                                                        cross_attention_dim=key.shape[1])
        processors[name].to_k_custom_diffusion.weight.data.copy_(key)
        processors[name].to_v_custom_diffusion.weight.data.copy_(base[f"{block}.to_v.weight"])
    before = unet.attn_processors
    context = torch.cat([denoiser.encode([caption]).cross_attention.repeat(BATCH, 1, 1)
                         for caption in (CAPTION, CLASS_CAPTION)]).clone()
    unet.set_attn_processor(dict(processors))
    other = loss_of_the_scripts(unet, scheduler, drawn(recipe, 2), context)
    other.backward()
    unet.set_attn_processor(before)
    assert float(loss) == pytest.approx(float(other), rel=1e-5)
    for their, name in names.items():
        if name.endswith(KEYS_AND_VALUES):
            block, _, layer = their.removesuffix(".weight").rpartition(".")
            wanted = getattr(processors[f"{block}.processor"], f"{layer}_custom_diffusion").weight.grad
            assert alike(ours[name], wanted), name


def test_a_step_of_textual_inversion_has_the_gradient_of_a_row_of_the_token_table(pack, theirs, scheduler, parts, toybox,
                                                                                  gradients):
    from transformers import CLIPTextConfig, CLIPTextModel

    from toybox.host import text_config, zero_padding

    clip = toybox[1]
    tower = clip.cond_stage_model.clip_l.transformer
    weights = {name: value.clone().float() for name, value in tower.state_dict().items() if name.startswith("text_model.")}
    vocabulary = len(weights["text_model.embeddings.token_embedding.weight"])
    text = CLIPTextModel(CLIPTextConfig(**text_config(vocabulary), attn_implementation="eager"))
    known = text.state_dict()  # transformers 5 leaves the prefix out
    text.load_state_dict({name if name in known else name.removeprefix("text_model."): value for name, value in weights.items()})

    row = torch.randn(1, 96, generator=torch.Generator().manual_seed(7))
    rows = pack.module("dreammatcher.training.trainables").TokenRows(row.clone(), 1e-3)
    recipe = recipe_of(pack, parts, False, rows={"sks": rows})
    loss = recipe.loss(BATCH, torch.Generator().manual_seed(3))
    loss.backward()

    tokens = [token for token, _ in clip.tokenize(CAPTION)["l"][0]]
    marker, table = clip.tokenize("sks")["l"][0][1][0], text.get_input_embeddings().weight
    with torch.no_grad():
        table[marker] = row[0]
    states = text(torch.tensor([tokens])).last_hidden_state
    context = zero_padding(states, [tokens.index(max(tokens))]).repeat(BATCH, 1, 1)
    other = loss_of_the_scripts(theirs[0], scheduler, drawn(recipe, 3), context)
    other.backward()
    assert float(loss) == pytest.approx(float(other), rel=1e-5)
    assert alike(rows.rows.grad[0], table.grad[marker])


@pytest.mark.parametrize("prediction, ours", [("epsilon", "EPSILON"), ("v_prediction", "VELOCITY")])
def test_noise_and_target_are_the_schedulers(pack, prediction, ours):
    objective = pack.module("dreammatcher.training.objective")
    scheduler = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type=prediction)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    steps = torch.tensor([5, 500, 990])
    alphas = scheduler.alphas_cumprod[steps]
    assert alike(objective.add_noise(clean, noise, alphas), scheduler.add_noise(clean, noise, steps))
    wanted = noise if prediction == "epsilon" else scheduler.get_velocity(clean, noise, steps)
    assert alike(objective.target(getattr(objective, ours), clean, noise, alphas), wanted)


def test_min_snr_weights_are_those_of_the_scripts(pack):
    from diffusers.training_utils import compute_snr

    scheduler = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    steps = torch.tensor([0, 300, 999])
    snr = compute_snr(scheduler, steps)
    ours = pack.module("dreammatcher.training.objective").min_snr_weights
    clipped = torch.stack([snr, 5 * torch.ones_like(snr)], 1).min(1)[0]
    assert close(ours(scheduler.alphas_cumprod[steps], 5.0, "epsilon"), clipped / snr, RUN)
    assert close(ours(scheduler.alphas_cumprod[steps], 5.0, "velocity"), clipped / (snr + 1), RUN)
