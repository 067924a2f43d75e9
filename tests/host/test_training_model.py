"""The host's model as training sees it: right predictions, right gradients, nothing written to it."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from kept_memory import kept_for_the_gradient
from test_guidance import in_inference_mode
from world import family_unet, picture, prompt, random_unet, same_weights, weights


@pytest.fixture(scope="module")
def make(pack, toybox):
    """A denoiser of a UNet with Toybox's text encoder."""
    def denoiser_of(model):
        with torch.inference_mode():
            return pack.module("dreammatcher.host.training.model").HostDenoiser(model, toybox[1], (16, 16))
    return denoiser_of


@pytest.fixture(autouse=True)
def _as_in_a_graph():
    with torch.inference_mode():
        yield


def overrides(base: dict, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    with torch.inference_mode(False):
        return {name: (base[name].float() + 0.05 * torch.randn(base[name].shape, generator=torch.Generator().manual_seed(3))
                       ).detach().requires_grad_() for name in names}


UNET = ("output_blocks.3.1.transformer_blocks.0.attn1.to_q.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight",
        "input_blocks.1.0.in_layers.2.weight", "middle_block.1.transformer_blocks.0.norm1.weight", "out.2.bias")
TEXT = ("clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "clip_l.transformer.text_model.encoder.layers.2.mlp.fc1.weight",
        "clip_l.transformer.text_model.encoder.layers.1.layer_norm1.weight")


def loaded_bit_by_bit(patcher, whole):
    """A model whose weights come to the device layer by layer, as newer hosts give it, and ``whole()`` on request."""
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

        def get_non_dynamic_delegate(self):
            return whole()

    return Dynamic(patcher.model, patcher.load_device, patcher.offload_device)


def test_a_model_that_the_host_loads_bit_by_bit_is_trained_on_a_whole_copy(pack, toybox):
    model, whole = random_unet(), random_unet()
    denoiser = pack.module("dreammatcher.host.training.model").HostDenoiser(
        loaded_bit_by_bit(model, lambda: whole), toybox[1], (16, 16))
    assert denoiser.model is whole
    name = "middle_block.1.transformer_blocks.0.norm1.weight"
    assert denoiser.unet[name].data_ptr() == whole.model.diffusion_model.get_parameter(name).data_ptr()


def test_a_model_without_a_whole_copy_is_refused_with_what_to_do(pack, toybox):
    def none():
        raise RuntimeError("Cannot create non-dynamic delegate")

    with pytest.raises(ValueError, match="model: it cannot be trained on here .*--disable-dynamic-vram"):
        pack.module("dreammatcher.host.training.model").HostDenoiser(loaded_bit_by_bit(random_unet(), none), toybox[1], (16, 16))


@pytest.mark.parametrize("prediction", ["EPS", "V_PREDICTION"])
def test_a_prediction_is_the_hosts_own(make, prediction):
    model = in_inference_mode(random_unet(prediction=prediction))
    denoiser = make(model)
    text = denoiser.encode(["a photo of a robot"])
    step = torch.tensor([300])
    sigma = model.model.model_sampling.sigmas[300].clone()[None]
    noisy = picture(3)
    said = denoiser.predict(noisy, step, text, {})
    x = noisy * (1 + sigma**2).sqrt()
    clean = model.model.apply_model(x, sigma, c_crossattn=text.cross_attention, transformer_options={"cond_or_uncond": [0]})
    alpha = denoiser.alpha_bars[300]
    if prediction == "EPS":
        ours = (noisy - (1 - alpha).sqrt() * said) / alpha.sqrt()
    else:
        ours = alpha.sqrt() * noisy - (1 - alpha).sqrt() * said
    assert torch.allclose(ours, clean, rtol=1e-3, atol=1e-3 * float(clean.abs().max()))


@pytest.mark.parametrize("family, pooled", [("SD2.1", None), ("SDXL", 1280)])
def test_families_with_other_texts_predict_as_the_host_does_for_every_picture_of_a_batch(pack, make, family, pooled):
    model = family_unet(family)
    denoiser = make(model)
    Conditioning = pack.module("dreammatcher.subject").Conditioning
    texts = [prompt(seed, pooled=pooled)[0] for seed in (1, 2)]
    both = Conditioning(torch.cat([text for text, _ in texts]),
                        torch.cat([more["pooled_output"] for _, more in texts]) if pooled else None)
    noisy, steps = picture(3, batch=2), torch.tensor([300, 700])
    said = denoiser.predict(noisy, steps, both, {})
    sigmas = model.model.model_sampling.sigmas[steps]
    arguments = pack.module("dreammatcher.host.model.arguments").model_arguments
    for row in range(2):
        alone = Conditioning(both.cross_attention[row:row + 1], None if both.pooled is None else both.pooled[row:row + 1])
        x = noisy[row:row + 1] * (1 + sigmas[row] ** 2).sqrt()
        clean = model.model.apply_model(x, sigmas[row:row + 1], **arguments(model.model, alone, x),
                                        transformer_options={"cond_or_uncond": [0]})
        alpha = denoiser.alpha_bars[steps[row]]
        ours = (noisy[row] - (1 - alpha).sqrt() * said[row]) / alpha.sqrt()
        assert torch.allclose(ours, clean[0], rtol=1e-3, atol=1e-3 * float(clean.abs().max()))


def finite_difference(loss, values: dict, name: str, step: float = 2e-3) -> tuple[float, float]:
    """Derivative by the number with the largest gradient: ours and measured."""
    with torch.inference_mode(False):
        value = values[name]
        place = int(value.grad.abs().argmax())
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                value.view(-1)[place] += sign * step
            losses.append(float(loss()))
            with torch.no_grad():
                value.view(-1)[place] -= sign * step
        return float(value.grad.view(-1)[place]), (losses[0] - losses[1]) / (2 * step)


def agree(derivatives: dict[str, tuple[float, float]]) -> None:
    """Gradients and finite differences, of which the small ones are differences of large numbers."""
    size = max(abs(measured) for _, measured in derivatives.values())
    for name, (ours, measured) in derivatives.items():
        assert ours == pytest.approx(measured, rel=0.02, abs=1e-2 * size), name


def test_gradients_of_unet_weights_equal_finite_differences_and_leave_nothing_behind(make):
    model = in_inference_mode(random_unet())
    before = weights(model)
    denoiser = make(model)
    text, noisy = denoiser.encode(["a photo of a robot"]), picture(3)
    learned = overrides(denoiser.unet, UNET)

    def loss():
        return denoiser.predict(noisy, torch.tensor([300]), text, learned).double().square().mean()

    with torch.inference_mode(False), torch.enable_grad():
        loss().backward()
    agree({name: finite_difference(loss, learned, name) for name in UNET})
    assert same_weights(model, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_what_only_the_start_token_tells_is_not_learned_by_custom_diffusion(pack, toybox):
    HostDenoiser = pack.module("dreammatcher.host.training.model").HostDenoiser
    Conditioning = pack.module("dreammatcher.subject").Conditioning
    alone = torch.zeros(1, 77, 96)
    alone[:, 0] = prompt(1)[0][0][:, 0]
    name, gradients, said = "input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight", [], []
    for constant in (False, True):
        denoiser = HostDenoiser(random_unet(), toybox[1], (16, 16), constant)
        learned = overrides(denoiser.unet, (name,))
        with torch.inference_mode(False), torch.enable_grad():
            said.append(denoiser.predict(picture(3), torch.tensor([300]), Conditioning(alone), learned))
            gradients.append(torch.autograd.grad(said[-1].square().mean(), learned[name])[0])
    assert torch.equal(*said) and gradients[0].abs().max() > 0 and not gradients[1].any()


def test_gradients_of_the_text_encoder_equal_finite_differences(make, toybox):
    before = {name: value.clone() for name, value in toybox[1].cond_stage_model.state_dict().items()}
    denoiser = make(random_unet())
    learned = overrides(denoiser.text, TEXT)

    def loss():
        return denoiser.encode(["a photo of a red robot on grass"], learned).cross_attention.double()[:, 1:5].square().mean()

    with torch.inference_mode(False), torch.enable_grad():
        loss().backward()
    agree({name: finite_difference(loss, learned, name, step=0.02) for name in TEXT})
    after = toybox[1].cond_stage_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_new_word_is_read_as_its_rows_which_have_a_gradient(pack, make, toybox, host, vectors):
    from safetensors.torch import save_file

    TokenRows = pack.module("dreammatcher.training.trainables").TokenRows
    denoiser = make(random_unet())
    with torch.inference_mode(False), torch.enable_grad():
        rows = TokenRows(0.3 * torch.randn(vectors, 96, generator=torch.Generator().manual_seed(0)), 1e-3)
        encoded = denoiser.encode(["a photo of a <toy> on grass"], rows={"<toy>": rows})
        encoded.cross_attention.square().sum().backward()
    assert rows.rows.grad.abs().amax(1).min() > 0
    folder = host.folder / "models" / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    host.folder_paths.add_model_folder_path("embeddings", str(folder))
    save_file({"clip_l": rows.rows.detach().clone()}, folder / f"toy{vectors}.safetensors")
    clip = host.nodes["ToyboxLoader"]().load()[1]
    stock = clip.encode_from_tokens(clip.tokenize(f"a photo of a embedding:toy{vectors} on grass"))
    assert close(encoded.cross_attention, stock, RUN), "the saved embedding must read as what was trained"


def test_captions_of_different_lengths_share_a_batch(make):
    denoiser = make(random_unet())
    short, long = "a robot", "a robot on grass " * 40
    both = denoiser.encode([short, long]).cross_attention
    assert both.shape[0] == 2 and both.shape[1] % 77 == 0 and both.shape[1] > 77
    assert torch.equal(both[0, :77], denoiser.encode([short]).cross_attention[0])


@pytest.mark.parametrize("sampling, prediction", [("eps", "epsilon"), ("v_prediction", "velocity"), ("lcm", None), ("x0", None)])
def test_the_prediction_is_that_of_the_sampling_on_the_model_and_others_are_refused(host, make, sampling, prediction):
    model = random_unet()
    patched, = host.nodes["ModelSamplingDiscrete"]().patch(model, sampling, False)
    if prediction is None:
        with pytest.raises(ValueError, match="training knows models that predict noise"):
            make(patched)
    else:
        assert make(patched).prediction == prediction


@pytest.mark.parametrize("constant", [False, True])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(make, toybox, pack, constant):
    HostDenoiser = pack.module("dreammatcher.host.training.model").HostDenoiser
    names = (*UNET, "input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight", "time_embed.0.weight")
    gradients, kept = [], []
    for checkpointing in (False, True):
        denoiser = HostDenoiser(in_inference_mode(random_unet()), toybox[1], (16, 16), constant, checkpointing)
        text, learned = denoiser.encode(["a photo of a robot"]), overrides(denoiser.unet, names)
        with torch.inference_mode(False), torch.enable_grad():
            with kept_for_the_gradient() as found:
                loss = denoiser.predict(picture(3), torch.tensor([300]), text, learned).square().mean()
            loss.backward()
        gradients.append([learned[name].grad for name in names])
        kept.append(found.beside(denoiser.unet.values(), learned.values()))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.model.model.modules())
    assert all(close(again, plain, RUN) for plain, again in zip(*gradients))
    assert all(gradient.any() for gradient in gradients[0])
    assert kept[1] < 0.5 * kept[0], kept


@pytest.mark.parametrize("caption", ["a photo of a <me> on grass", "a <me> beside a <me>", "a (<me>:1.3) on grass",
                                     "a <me> and " + "grass " * 80, "a photo of a robot"])
def test_a_caption_with_several_vectors_for_its_word_is_read_in_one_call_as_in_calls_of_their_own(pack, toybox, caption):
    with torch.inference_mode(False), torch.enable_grad():
        model = pack.module("dreammatcher.host.training.model").HostDenoiser(toybox[0], toybox[1], (16, 16))
        vectors = (0.4 * torch.randn(3, 96, generator=torch.Generator().manual_seed(1))).requires_grad_()
        together = model.encode_each(caption, "<me>", vectors).cross_attention
        apart = torch.cat([model.encode_each(caption, "<me>", vectors[[row]]).cross_attention for row in range(3)])
        assert together.shape == apart.shape and close(together, apart, RUN)
        if "<me>" in caption:
            (one,), (other,) = (torch.autograd.grad(encoded.square().sum(), vectors) for encoded in (together, apart))
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * other.abs().max())
