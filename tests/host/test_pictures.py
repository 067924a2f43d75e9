"""Pictures as people have them: grey, with alpha, tiny, huge, long, turned by EXIF, 16 bits deep, with a palette, CMYK."""

from __future__ import annotations

import copy
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from closeness import RUN, close
from PIL import Image
from world import family_unet

from harness.examples import easy, node

STEPS = 3


@pytest.fixture(scope="module")
def pictures(pack):
    return pack.module("dreammatcher.host.graph.pictures")


@pytest.fixture(scope="module")
def drawn(host) -> tuple[torch.Tensor, torch.Tensor]:
    """IMAGE [1, 128, 128, 3] of a cat, and the MASK of it."""
    return host.nodes["ToyboxReference"]().draw(3, "cat", 2, "desert")


@pytest.fixture
def match(host, pack, toybox, monkeypatch):
    """Easy (DreamMatcher) on Toybox in few steps: (what was VAE-encoded, the mask of the plan)."""
    module = pack.module("dreammatcher.host.matching.easy")
    monkeypatch.setattr(module, "STEPS", STEPS)
    model, clip, vae = toybox

    class Watched:
        seen = None

        def encode(self, pixels):
            Watched.seen = pixels
            return vae.encode(pixels)

    def run(picture: torch.Tensor, **more):
        with torch.inference_mode():
            answer = host.nodes["DreamMatcherEasy"]().match(
                model, clip, Watched(), picture, "a photo of a cat", "a photo of a cat at night", "", "cat", **more)
        matched = answer["result"][0]
        return Watched.seen, matched.model_options["transformer_options"]["dreammatcher"][0].plan.views[0].mask

    return run


def with_alpha(picture: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.cat((picture, alpha[..., None]), -1)


# --- channels


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_number_of_channels_becomes_colour(pictures, channels):
    image = torch.rand(2, 4, 5, channels)
    colours = pictures.rgb("images", image)
    assert colours.shape == (2, 4, 5, 3)
    if channels in (1, 3):
        assert torch.equal(colours, image.expand(-1, -1, -1, 3))
    else:
        alpha = image[..., -1:]
        assert close(colours, (alpha * image[..., :-1] + (1 - alpha) * 0.5).expand_as(colours), RUN)


def test_an_opaque_alpha_channel_changes_nothing(pictures):
    image = torch.rand(1, 4, 4, 3)
    for alpha in (1.0, 255 / 256):  # as hosts load it from some files
        opaque = with_alpha(image, torch.full((1, 4, 4), alpha))
        assert torch.equal(pictures.rgb("reference", opaque), image)
        assert pictures.subject_mask("reference", opaque) is None


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 5), (0, 4, 4, 3), (1, 0, 4, 3), (1, 4, 4, 0), (1, 4)])
def test_what_is_no_picture_is_named_with_its_shape(pictures, shape):
    with pytest.raises(ValueError, match=r"plain: an IMAGE is \[batch, height, width, channels\].*this one is"):
        pictures.rgb("plain", torch.zeros(shape))


@pytest.mark.parametrize("channels", [1, 4])
def test_the_preview_shows_pictures_of_one_and_of_four_channels(host, toybox, drawn, channels):
    picture = drawn[0].mean(-1, keepdim=True) if channels == 1 else with_alpha(*drawn)
    with torch.inference_mode():
        trace = traced(host, toybox, drawn[0])
        answer = host.nodes["DreamMatcherPreview"]().preview(trace, picture, picture.repeat(2, 1, 1, 1), picture)
    assert answer["result"][0].shape == (6, 128, 128, 3) and torch.isfinite(answer["result"][0]).all()
    run, = answer["ui"]["dreammatcher"]
    assert [len(run[kind]) for kind in ("results", "references", "plain")] == [1, 2, 1]
    shown = np.asarray(Image.open(host.file(run["references"][0])))
    assert shown.shape == (128, 128, 3)
    if channels == 4:
        assert (abs(shown[drawn[1][0].numpy() == 0].astype(int) - 128) <= 1).all(), "what is transparent is neutral grey"


def traced(host, toybox, picture: torch.Tensor):
    """A trace of two steps on Toybox."""
    model, clip, vae = toybox
    nodes = {name: host.nodes[name]() for name in ("DreamMatcherSubject", "DreamMatcherInvert", "DreamMatcherMask",
                                                   "DreamMatcherApply", "CLIPTextEncode", "VAEEncode", "KSampler")}
    positive, subject = nodes["DreamMatcherSubject"].encode(clip, "a photo of a cat", "cat")["result"]
    negative, = nodes["CLIPTextEncode"].encode(clip, "")
    latent, = nodes["VAEEncode"].encode(vae, picture)
    reference, *_ = nodes["DreamMatcherInvert"].invert(model, positive, negative, STEPS, "normal", latent)
    mask, = nodes["DreamMatcherMask"].make(subject, subject, 0.4, "otsu")
    matched, trace = nodes["DreamMatcherApply"].apply(model, reference, mask, 1.0, 0.0, 1.0, "")
    nodes["KSampler"].sample(matched, 1, STEPS, 2.0, "euler", "normal", positive, negative, latent, 1.0)
    return trace


def test_a_cut_out_picture_goes_through_easy_and_the_preview(host, drawn):
    """Load Image -> Join Image with Alpha, as people put back what Load Image takes away."""
    rgba = (with_alpha(*drawn)[0] * 255).round().byte().numpy()
    Image.fromarray(rgba, "RGBA").save(Path(host.folder_paths.get_input_directory()) / "cut_out.png")
    prompt = copy.deepcopy(easy())
    prompt["2"] = node("LoadImage", image="cut_out.png")
    prompt["9"] = node("JoinImageWithAlpha", image=["2", 0], alpha=["2", 1])
    prompt["3"]["inputs"]["reference"] = prompt["8"]["inputs"]["reference"] = ["9", 0]
    prompt["5"]["inputs"]["steps"] = STEPS
    result = host.run(prompt)
    assert result.success, result.error()
    panels, = host.images(result, "8")
    assert panels.width > 3 * 128


# --- alpha and masks in Easy


def test_what_is_transparent_in_the_reference_is_left_out_of_the_match(match, drawn):
    picture, mask = drawn
    seen, limit = match(with_alpha(picture, mask))
    assert torch.equal(limit[:, 0], mask)
    assert close(seen, torch.where(mask[..., None] > 0, picture, torch.tensor(0.5)), RUN)
    hidden = torch.where(mask[..., None] > 0, picture, torch.rand_like(picture))
    assert torch.equal(match(with_alpha(hidden, mask))[0], seen), "colours under what is transparent must not matter"


def test_a_painted_mask_takes_the_place_of_the_alpha_channel(match, drawn):
    picture, mask = drawn
    corner = torch.zeros(1, 32, 32)
    corner[:, :16] = 1
    assert torch.equal(match(with_alpha(picture, mask), reference_mask=corner)[1][:, 0], corner)
    seen, limit = match(picture, reference_mask=corner)
    assert torch.equal(limit[:, 0], corner) and torch.equal(seen, picture)
    assert match(picture)[1] is None


def test_a_reference_mask_changes_the_picture(host):
    prompt = copy.deepcopy(easy())
    prompt["5"]["inputs"]["steps"] = STEPS
    without = host.images(host.run(prompt), "7")[0].tobytes()
    prompt["9"] = node("InvertMask", mask=["2", 1])
    prompt["3"]["inputs"]["reference_mask"] = ["9", 0]
    result = host.run(prompt)
    assert result.success, result.error()
    assert host.images(result, "7")[0].tobytes() != without


def test_a_reference_of_which_nothing_is_left_is_refused(match, drawn):
    picture, mask = drawn
    with pytest.raises(ValueError, match="reference: all of it is transparent.*invert the mask"):
        match(with_alpha(picture, mask * 0))
    with pytest.raises(ValueError, match="reference MASK: it is empty.*paint the subject white"):
        match(with_alpha(picture, mask * 0), reference_mask=mask * 0)
    with pytest.raises(ValueError, match="reference_mask: it holds NaN"):
        match(picture, reference_mask=mask * torch.nan)


# --- sizes


def test_the_size_is_the_one_that_the_model_was_made_for(pack, toybox):
    side = pack.module("dreammatcher.host.model.family").native_side
    assert side(toybox[0]) == side(toybox[0].clone()) == 128
    assert side(family_unet("SD1.5")) == side(family_unet("SD1.5", prediction="V_PREDICTION")) == 512
    assert side(family_unet("SD2.1", prediction="EPS")) == 512 and side(family_unet("SD2.1", prediction="V_PREDICTION")) == 768
    assert [side(family_unet(name)) for name in ("SDXL", "SSD-1B", "Vega", "KOALA 1B")] == [1024] * 4


def test_a_cameras_photo_becomes_as_large_as_the_model_was_made_for(pack):
    sized = pack.module("dreammatcher.host.matching.easy").sized
    photo = torch.rand(1, 3000, 4000, 3)
    for side in (128, 512, 1024):
        resized = sized(photo, side, 32)
        height, width = resized.shape[1:3]
        assert 0.9 * side**2 < height * width <= side**2 and height % 8 == width % 8 == 0
        assert abs(width / height - 4 / 3) < 0.1 and abs(resized.mean() - photo.mean()) < 0.01
        assert sized(resized, side, 32) is resized


def test_a_photo_on_toybox_is_inverted_at_its_size(match):
    seen, _ = match(torch.rand(1, 600, 800, 3))
    assert seen.shape == (1, 104, 144, 3)


@pytest.mark.parametrize("name, least", [("SD1.5", 64), ("SDXL", 32), ("KOALA 700M", 32)])
def test_the_least_side_is_one_cell_of_the_coarsest_level(pack, name, least):
    backbone = pack.module("dreammatcher.host.model.backbone").backbone_of(family_unet(name).model)
    assert pack.module("dreammatcher.host.matching.easy").least_side(backbone) == least


@pytest.mark.parametrize("width, height, words", [
    (1, 1, "reference: it is 1x1 pixels; this model needs at least 32 on the shorter side. Give a larger picture"),
    (31, 128, "reference: it is 31x128 pixels"), (128, 7, "reference: it is 128x7 pixels"),
    (9000, 40, "reference: 9000x40 pixels are too long and narrow; at the size that this model was made for, 1920x9, the shorter "
               "side has less than 32. Crop the picture to the subject")])
def test_a_picture_that_is_too_small_or_too_long_is_refused_with_the_fix(match, width, height, words):
    with pytest.raises(ValueError) as error:
        match(torch.rand(1, height, width, 3))
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("width, height", [(32, 32), (500, 33), (39, 35)])
def test_the_smallest_and_longest_pictures_that_are_taken_run(match, width, height):
    assert match(torch.rand(1, height, width, 3))[0].shape[1] >= 32


# --- files through the stock loader


COLOURS = {"left": (200, 30, 40), "middle": (20, 160, 60), "above": (30, 40, 220), "below": (128, 128, 128)}


def flag() -> Image.Image:
    """96x48: red, green, and blue over grey, so that every turn shows."""
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:64], pixels[:24, 64:], pixels[24:, 64:] = COLOURS.values()
    return Image.fromarray(pixels)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_png_of_16_bits(path: Path, values: np.ndarray, colour_type: int) -> None:
    """``values`` uint16 [H, W, C]; Pillow writes no such files."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def deep(picture: Image.Image) -> np.ndarray:
    values = np.asarray(picture).astype(np.uint16) * 257
    return values if values.ndim == 3 else values[..., None]


def cut(picture: Image.Image) -> Image.Image:
    """The same without its left fifth."""
    transparent, alpha = picture.convert("RGBA"), Image.new("L", picture.size, 255)
    alpha.paste(0, (0, 0, 19, 48))
    transparent.putalpha(alpha)
    return transparent


#: file -> how it is written, what is to be seen, and whether it has the left fifth cut out
FILES = {
    "turned.jpg": (lambda path: flag().save(path, quality=100, subsampling=0, exif=turned(6)), "turned", False),
    "turned.png": (lambda path: flag().save(path, exif=turned(6)), "turned", False),
    "turned.webp": (lambda path: flag().save(path, lossless=True, exif=turned(6)), "turned", False),
    "grey.png": (lambda path: flag().convert("L").save(path), "grey", False),
    "grey_alpha.png": (lambda path: cut(flag()).convert("LA").save(path), "grey", True),
    "grey_16.png": (lambda path: write_png_of_16_bits(path, deep(flag().convert("L")), 0), "grey", False),
    "colour_16.png": (lambda path: write_png_of_16_bits(path, deep(flag()), 2), "colour", False),
    "alpha_16.png": (lambda path: write_png_of_16_bits(path, deep(cut(flag())), 6), "colour", True),
    "alpha.png": (lambda path: cut(flag()).save(path), "colour", True),
    "palette.png": (lambda path: flag().quantize(8).save(path), "colour", False),
    "palette_alpha.png": (lambda path: cut(flag()).quantize(8).save(path), "colour", True),
    "cmyk.jpg": (lambda path: flag().convert("CMYK").save(path, quality=100, subsampling=0), "colour", False),
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_reaches_us_as_it_looks(host, match, pictures, file):
    write, look, cut_out = FILES[file]
    write(Path(host.folder_paths.get_input_directory()) / file)
    if file == "grey_16.png" and not host.upstream:
        pytest.skip("this host's LoadImage makes such a file white with the Pillow of today; nothing of ours is in between")
    image, outside = host.nodes["LoadImage"]().load_image(file)
    wanted = torch.from_numpy(np.asarray(flag().convert("L").convert("RGB") if look == "grey" else flag())).float() / 255
    wanted = torch.rot90(wanted, -1, (0, 1)) if look == "turned" else wanted
    seen, limit = match(image)
    assert seen.shape == (1, *wanted.shape) and limit is None
    assert (seen[0] - wanted)[:, 20:].abs().max() < 0.01
    joined, = host.nodes["JoinImageWithAlpha"]().execute(image, outside).args if host.upstream else \
        host.nodes["JoinImageWithAlpha"]().join_image_with_alpha(image, outside)
    limit = match(joined)[1]
    if cut_out and (host.upstream or "palette" not in file):  # the older host's LoadImage drops a palette's transparency
        assert limit[0, 0, :, :19].max() < 0.5 < limit[0, 0, :, 19:].min()
    else:
        assert limit is None


def test_a_rough_view_of_a_latent_has_the_colours_of_the_hosts_format(pictures, toybox):
    formats = toybox[0].model.latent_format
    latent = 0.3 * torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    bias = getattr(formats, "latent_rgb_factors_bias", None) or (0.0, 0.0, 0.0)
    by_hand = torch.stack([(sum(latent[channel] * row[colour] for channel, row in enumerate(formats.latent_rgb_factors))
                            + bias[colour] + 1) / 2 for colour in range(3)])
    assert torch.allclose(pictures.rough_rgb(latent, formats), by_hand.clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("factors", [None, [[0.3, 0.2, 0.3]] * 16])
def test_a_latent_without_factors_of_its_own_is_seen_in_grey_by_its_brightness(pictures, factors):
    latent = torch.linspace(-3, 3, 8).expand(4, 2, 8)
    seen = pictures.rough_rgb(latent, SimpleNamespace(latent_rgb_factors=factors))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert bool((seen[0].diff(dim=-1) > 0).all()) and seen.min() >= 0 and seen.max() <= 1


@pytest.mark.parametrize("count, few", [(2, True), (11, True), (12, False), (50, False)])
def test_a_run_of_few_steps_says_how_many_they_were(pack, count, few):
    about = pack.module("dreammatcher.host.matching.preview").about_few_levels
    for matched, said in ((count - 1, "the first has nothing to match with yet"), (count, "all of them were matched")):
        text = about(count, matched)
        assert bool(text) == few and (not few or (str(count) in text and said in text))
