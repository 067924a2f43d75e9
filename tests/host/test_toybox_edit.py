"""Toybox's edit model: pairs of one subject, a reference where the host has it, nothing asked of it, exact resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import RUN, close
from test_toybox_transformer import (  # noqa: F401  fixtures
    LAYERS,
    MODEL,
    TOKENIZER,
    awake,
    batch_of,
    denoiser,
    file_of,
    flow,
    transformer,
)

from toybox.draw import render
from toybox.making.captions import ANSWERS, FACTS
from toybox.making.dataset import Dataset, picture
from toybox.making.views import Views, drawn_view, second_view

COUNT = 400
EMPTY = int(np.prod([len(answers) for answers in ANSWERS]))


@pytest.fixture
def views() -> Views:
    """400 pictures whose latents are their numbers, with second views whose latents are these numbers and a half."""
    from toybox.making.material import material

    labels = np.random.default_rng(0).integers(0, 9, (COUNT, 128, 128)).astype(np.uint8)
    data = Dataset(np.zeros((COUNT, 1, 1, 3), np.uint8), labels, [picture(index) for index in range(COUNT)])
    numbers = torch.arange(float(COUNT))[:, None, None, None].expand(COUNT, 4, 16, 16).half()
    return Views(material(data, numbers, (16,), EMPTY, torch.device("cpu")), numbers + 0.5)


def learner(flow, seed: int = 0):  # noqa: F811
    """A small denoiser for every caption there is."""
    torch.manual_seed(seed)
    return flow.FlowDenoiser(LAYERS, torch.randn(1, 77, 96).expand(EMPTY + 1, -1, -1), torch.device("cpu"))


def test_a_second_view_shows_the_same_subject_in_another_pose_and_scene():
    for index in range(30):
        first, second = picture(index), second_view(index)
        assert second.subject == first.subject and second.pose != first.pose and second.scene.name != first.scene.name
    shown = second_view(3)
    assert (drawn_view(3) == render(shown.subject, shown.pose, shown.scene)[0]).all()


def test_pairs_are_of_one_subject_and_no_caption_tells_its_colours(views):
    torch.manual_seed(0)
    batch, references = views.draw(300)
    rows = batch.clean[:, 0, 0, 0].long()
    assert torch.equal(references[:, 0, 0, 0], rows + 0.5) and len(rows.unique()) > COUNT / 3
    assert torch.equal(batch.parts[16], views.pictures.parts[16][rows])
    places, scenes = np.unravel_index(batch.captions.clamp(max=EMPTY - 1).numpy(), [len(answers) for answers in ANSWERS]), 0
    for row, number in enumerate(batch.captions.tolist()):
        if number != EMPTY:
            kind, colours, _, scene = (answers[place[row]] for answers, place in zip(ANSWERS, places))
            assert kind == picture(int(rows[row])).subject.kind and colours is None
            assert scene in (None, picture(int(rows[row])).scene.name), "the picture's, not the reference's"
            scenes += scene is not None
    assert scenes > 150 and FACTS[1] == "colours" and 0.05 < (batch.captions == EMPTY).float().mean() < 0.2


def test_the_loss_is_that_of_the_picture_and_nothing_is_asked_of_the_reference(flow, denoiser):  # noqa: F811
    awake(denoiser)
    batch, references = batch_of(4), torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(5)).requires_grad_()
    outputs = []
    hook = denoiser.transformer.final_layer.register_forward_hook(
        lambda _, __, output: output.retain_grad() or outputs.append(output))
    torch.manual_seed(3)
    loss = flow.velocity_loss(denoiser, batch, (references,))
    loss.backward()
    hook.remove()
    (output,) = outputs
    wanted = torch.zeros(output.shape[1], dtype=torch.bool)
    wanted[-256:] = True  # 256 tokens of the picture end the sequence, behind two prompts and 256 tokens of the reference
    assert output.shape[1] == 32 + 96 + 2 * 256 and torch.equal(output.grad.any(2).all(0), wanted)
    assert references.grad.abs().amax((1, 2, 3)).min() > 0, "each is read by its own picture"

    torch.manual_seed(3)
    noise, sigmas = torch.randn_like(batch.clean), flow.noise_levels(4, torch.device("cpu"))
    noisy = torch.lerp(batch.clean, noise, sigmas[:, None, None, None])
    with torch.no_grad():
        said = denoiser(noisy, sigmas, batch.captions, (references,))
        told = flow.part_loss(denoiser, batch.parts[16])
        error = (said - (noise - batch.clean)).square().mean((1, 2, 3)) / flow.TYPICAL
        other = denoiser(noisy, sigmas, batch.captions)
    assert close(loss, (error + flow.PART_WEIGHT * (1 - sigmas) * told).mean(), RUN) and not close(said, other, RUN)


def test_a_reference_is_shown_as_the_hosts_own_node_shows_it(host, flow, denoiser, transformer, tmp_path,  # noqa: F811
                                                             monkeypatch):
    import comfy.model_management
    from comfy_extras.nodes_edit_model import ReferenceLatent

    awake(denoiser)
    model, _, _ = transformer.load(file_of(denoiser, tmp_path), MODEL, TOKENIZER)
    base = model.model
    denoiser.transformer.load_state_dict(base.diffusion_model.state_dict())  # the file's eight bits
    generator = torch.Generator().manual_seed(6)
    x, reference = torch.randn(2, 2, 4, 16, 16, generator=generator)
    context, sigmas = denoiser.context[torch.tensor([1, 3])], torch.tensor([0.3, 0.8])
    shown = ReferenceLatent.execute([[context, {}]], {"samples": base.process_latent_out(reference)}).result[0][0][1]
    with torch.no_grad():
        ours = denoiser(x, sigmas, torch.tensor([1, 3]), (reference,))
        monkeypatch.setattr(comfy.model_management, "in_training", False)
        given = {name: value.cond for name, value in base.extra_conds(cross_attn=context, device="cpu", noise=x, **shown).items()}
        clean = base.apply_model(x, sigmas, **given)
        bare = base.apply_model(x, sigmas, **{**given, "ref_latents": []})
    velocity = (x - clean) / sigmas[:, None, None, None]
    assert close(ours, velocity, RUN) and not close(bare, clean, RUN)


def test_one_step_in_ten_shows_no_reference(flow):  # noqa: F811
    from toybox.making.train_reference import alone

    assert sum(map(alone, range(5000))) / 5000 == pytest.approx(0.1, abs=0.02)


def test_training_begins_with_the_given_weights_and_one_that_was_cut_off_ends_with_the_same(flow, views, tmp_path,  # noqa: F811
                                                                                            monkeypatch):
    from toybox.making import optimisation, train_reference

    monkeypatch.setattr(optimisation, "CHECKPOINT_SECONDS", -1)
    given = learner(flow, 1)
    flow.prepare(given)
    awake(given)
    weights = {name: value.detach().clone() for name, value in given.transformer.state_dict().items()}

    def trained(folder: str, *limits: int | None) -> dict[str, torch.Tensor]:
        (tmp_path / folder).mkdir()
        for limit in limits:
            model = learner(flow, 2)  # what it was made with does not matter
            step = train_reference.train(model, views, weights, tmp_path / folder, 4, 2, limit=limit)
            assert step == (limit or 4)
        return model.transformer.state_dict()

    whole, cut = trained("whole", None), trained("cut", 2, None)
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert torch.equal(whole["x_pad_token"], weights["x_pad_token"])
    name = "layers.0.attention.qkv.weight"
    assert 0 < (whole[name] - weights[name]).norm() < 0.2 * weights[name].norm(), "a few steps from where it began"


@pytest.mark.parametrize("study", ["arms", "parts"])
def test_every_arm_of_the_edit_models_studies_runs_and_the_reference_and_each_lock_change_the_picture(
        flow, denoiser, transformer, tmp_path, host, monkeypatch, study):  # noqa: F811
    import comfy.model_management

    from benchmarks import edit_arms
    from benchmarks.toybox_runner import Prompted, ToyboxRunner
    from toybox.evaluation import cases

    awake(denoiser)
    monkeypatch.setattr(comfy.model_management, "in_training", False)
    runner = ToyboxRunner(host, file_of(denoiser, tmp_path), kind="z-edit", steps=3)
    case = cases(1)[0]
    with torch.inference_mode():
        ready = edit_arms.prepare(runner, case)
        assert "reference_latents" in ready.target[0][1] and "reference_latents" not in ready.bare[0][1]
        drawn = {}
        for name, model in edit_arms.STUDIES[study](runner, ready).items():
            given = model if isinstance(model, Prompted) else Prompted(model, ready.target, ready.negative)
            drawn[name] = runner.sample(given.model, given.positive, given.negative, case.seed)
    assert drawn.keys() >= {edit_arms.NO_REFERENCE, edit_arms.IN_SEQUENCE}
    for name, shown in drawn.items():
        assert name == edit_arms.IN_SEQUENCE or (shown != drawn[edit_arms.IN_SEQUENCE]).any(), name
