"""Inversion, trajectories and reference files."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from closeness import close
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dreammatcher.backbones.process import CONST, EPS, V
from dreammatcher.files import read_tensors
from dreammatcher.matching.inversion import Trajectory, invert, psnr, reconstruct
from dreammatcher.matching.reference import Reference, load, save
from dreammatcher.subject import Conditioning, Subject

SIGMAS = [0.03 * (14.6 / 0.03) ** (i / 49) for i in range(50)]
MEAN, SPREAD = torch.tensor([0.5, -1.0, 0.2, 2.0])[None, :, None, None], 0.7


def gaussian(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The exact denoiser of data distributed as N(MEAN, SPREAD^2): E[noise | x]."""
    return sigma * (x - MEAN) / (SPREAD**2 + sigma**2)


def picture(height=6, width=9) -> torch.Tensor:
    return MEAN + SPREAD * torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1))


def reference(**changes) -> Reference:
    trajectory = invert(gaussian, picture(), SIGMAS[::5], 0.02)
    text = Conditioning(torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(2)))
    pooled = Conditioning(text.cross_attention + 1, torch.ones(1, 5))
    values = dict(trajectory=trajectory, latent=picture(), positive=text, negative=pooled, fingerprint="family",
                  subject=Subject("dog", "a dog", (2,), 77), psnr=31.5)
    return Reference(**{**values, **changes})


def test_inverting_a_gaussian_world_follows_its_exact_flow():
    x0, trajectory = picture(), invert(gaussian, picture(), SIGMAS, 0.02)
    sigma = SIGMAS[-1]
    exact = MEAN + (x0 - MEAN) * math.sqrt((SPREAD**2 + sigma**2) / SPREAD**2)
    assert psnr(trajectory.at(sigma), exact) > 25


def test_sampling_back_gives_the_picture_and_more_steps_give_it_better():
    scores = []
    for steps in (10, 50, 250):
        sigmas = [0.03 * (14.6 / 0.03) ** (i / (steps - 1)) for i in range(steps)]
        scores.append(psnr(reconstruct(gaussian, invert(gaussian, picture(), sigmas, 0.02)), picture()))
    assert scores[0] < scores[1] < scores[2] and scores[1] > 25


def test_a_step_evaluates_the_network_at_the_coming_level_on_the_ddpm_latent_it_has():
    seen = []

    def eps(x, sigma):
        seen.append((x / math.sqrt(1 + sigma**2), sigma))
        return torch.zeros_like(x)

    invert(eps, picture(), [0.5, 1.0], 0.02)
    assert [sigma for _, sigma in seen] == [0.5, 1.0]
    assert close(seen[0][0], picture())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SIGMAS))
def test_a_stored_sigma_returns_the_stored_latent_exactly(sigma):
    trajectory = invert(gaussian, picture(), SIGMAS, 0.02)
    k = trajectory.sigmas.index(sigma)
    assert torch.equal(trajectory.at(sigma)[0], trajectory.clean[k] + sigma * trajectory.noise[k])


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 200))
def test_any_sigma_lies_between_its_stored_neighbours(sigma):
    trajectory = invert(gaussian, picture(), SIGMAS, 0.02)
    clean = trajectory.at(sigma)[0] - sigma * trajectory._between(sigma)[1]
    low, high = trajectory.clean.amin(0), trajectory.clean.amax(0)
    assert ((clean >= low - 1e-2 * (1 + sigma)) & (clean <= high + 1e-2 * (1 + sigma))).all()


def test_interpolation_is_linear_in_log_sigma():
    trajectory = Trajectory((1.0, 4.0), torch.tensor([0.0, 1.0])[:, None, None, None], torch.zeros(2, 1, 1, 1))
    assert trajectory.at(2.0).item() == pytest.approx(0.5)


@pytest.mark.parametrize("latent, sigmas, words", [
    (torch.zeros(2, 4, 3, 3), [1.0], "takes one picture"),
    (torch.full((1, 4, 3, 3), torch.nan), [1.0], "NaN or infinity"),
    (torch.zeros(1, 4, 3, 3), [2.0, 1.0], "must ascend"),
    (torch.zeros(1, 4, 3, 3), [], "must ascend"),
])
def test_bad_inversion_inputs_are_refused(latent, sigmas, words):
    with pytest.raises(ValueError, match=words):
        invert(gaussian, latent, sigmas, 0.02)


@pytest.mark.parametrize("process", [EPS, V, CONST], ids=lambda process: process.name)
def test_a_saved_reference_keeps_its_noise_process_and_so_its_latents(tmp_path, process):
    known = reference()
    path = known.trajectory
    wanted = replace(known, trajectory=Trajectory((0.2, 0.8), path.clean[:2], path.noise[:2], process))
    save(wanted, tmp_path / "dog.safetensors")
    loaded = load(tmp_path / "dog.safetensors")
    assert loaded.trajectory.process == process
    assert torch.equal(loaded.trajectory.at(0.5), wanted.trajectory.at(0.5))


def test_a_reference_of_an_earlier_version_which_names_no_process_is_one_of_noise(tmp_path):
    save(reference(), tmp_path / "dog.safetensors")
    tensors, about = read_tensors(tmp_path / "dog.safetensors")
    save_file(tensors, tmp_path / "old.safetensors", {name: value for name, value in about.items() if name != "process"})
    assert load(tmp_path / "old.safetensors").trajectory.process == EPS


def test_a_saved_reference_comes_back_the_same(tmp_path):
    wanted = reference()
    save(wanted, tmp_path / "a" / "dog.safetensors")
    loaded = load(tmp_path / "a" / "dog.safetensors")
    assert loaded.trajectory.sigmas == wanted.trajectory.sigmas and loaded.subject == wanted.subject
    assert loaded.fingerprint == "family" and loaded.psnr == 31.5
    assert torch.equal(loaded.trajectory.at(0.7), wanted.trajectory.at(0.7))
    assert loaded.positive.pooled is None and torch.equal(loaded.negative.pooled, wanted.negative.pooled)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["dog.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused_and_named(tmp_path, share):
    path = tmp_path / "dog.safetensors"
    save(reference(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="dog.safetensors is not a whole safetensors file"):
        load(path)


def test_a_file_of_another_kind_is_refused_and_named(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="lora.safetensors .* no DreamMatcher reference"):
        load(tmp_path / "lora.safetensors")
    with pytest.raises(FileNotFoundError, match="none.safetensors does not exist"):
        load(tmp_path / "none.safetensors")


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    save(reference(latent=torch.zeros(1, 4, 2, 2)), tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="odd.safetensors is a damaged DreamMatcher reference.*latent"):
        load(tmp_path / "odd.safetensors")


def test_psnr_of_equal_pictures_is_capped_and_of_worse_ones_is_lower():
    wanted = picture()
    assert psnr(wanted, wanted) == 100.0
    assert psnr(wanted + 0.1, wanted) > psnr(wanted + 0.5, wanted)
