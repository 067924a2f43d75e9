"""``python -m harness.examples``: writes the workflows of example_workflows from the prompts below.

On a current ComfyUI it writes those that the packaged host has no nodes for instead.
"""

from __future__ import annotations

import json
from typing import Any

from .boot import Host
from .examples_learning import LEARNING
from .examples_sefi import SEFI
from .examples_transformers import NEWER
from .examples_vico import VICO
from .graphs import SD15, node, sampler, saved
from .library import ROOT
from .workflow import to_workflow

FOLDER = ROOT / "example_workflows"
#: taken by ``python -m benchmarks.example_seeds``
SEED, EASY_SEED = 3, 4


def full_control() -> dict[str, Any]:
    return {
        "1": node("ToyboxLoader", model="UNet"),
        "2": node("ToyboxReference", subject=1, kind="robot", pose=1, background="grass"),
        "3": node("VAEEncode", pixels=["2", 0], vae=["1", 2]),
        "4": node("DreamMatcherSubject", clip=["1", 1], prompt="a photo of a robot on grass", subject_words="robot"),
        "5": node("DreamMatcherSubject", clip=["1", 1], prompt="a photo of a robot in the snow", subject_words="robot"),
        "6": node("CLIPTextEncode", clip=["1", 1], text=""),
        "7": node("DreamMatcherInvert", model=["1", 0], reference=["3", 0], positive=["4", 0], negative=["6", 0], steps=50,
                  scheduler="ddim_uniform"),
        "8": node("DreamMatcherMask", reference_subject=["4", 1], target_subject=["5", 1], cycle_threshold=0.4,
                  binarise="carried over"),
        "9": node("DreamMatcherApply", model=["1", 0], reference=["7", 0], mask=["8", 0], strength=1.0, start=0.2, end=1.0,
                  layers="", preset="best", live_preview="off"),
        "10": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "11": sampler(["1", 0], ["5", 0], ["6", 0], ["10", 0], SEED),
        "12": sampler(["18", 0], ["5", 0], ["6", 0], ["10", 0], SEED),
        "13": node("VAEDecode", samples=["11", 0], vae=["1", 2]),
        "14": node("VAEDecode", samples=["12", 0], vae=["1", 2]),
        "15": node("SaveImage", images=["13", 0], filename_prefix="dreammatcher/plain"),
        "16": node("SaveImage", images=["14", 0], filename_prefix="dreammatcher/matched"),
        "17": node("DreamMatcherPreview", trace=["9", 1], images=["14", 0], reference=["2", 0], plain=["13", 0]),
        "18": node("DreamMatcherGuidance", model=["9", 0], weight=1.5, start=0.2, end=1.0, mode="inside"),
    }


def short(reference_prompt: str = "a photo of a robot on grass") -> dict[str, Any]:
    """:func:`full_control` with one node for both prompts, the picture straight to the inversion, and no mask of its own."""
    prompt = full_control()
    words = prompt["5"]["inputs"]
    prompt["4"] = node("DreamMatcherSubjects", clip=words["clip"], reference_prompt=reference_prompt, prompt=words["prompt"],
                       subject_words=words["subject_words"])
    for number in ("3", "5", "8"):
        del prompt[number]
    del prompt["7"]["inputs"]["reference"], prompt["9"]["inputs"]["mask"]
    prompt["7"]["inputs"].update(image=["2", 0], vae=["1", 2])
    prompt["9"]["inputs"].update(SUBJECTS)
    for number in ("11", "12"):
        prompt[number]["inputs"]["positive"] = ["4", 1]
    return prompt


#: what says to Apply and Features what the subject is, in the short form
SUBJECTS = {"reference_subject": ["4", 2], "target_subject": ["4", 3]}


def easy() -> dict[str, Any]:
    return {
        "1": node("ToyboxLoader", model="UNet"),
        "2": node("ToyboxReference", subject=3, kind="cat", pose=2, background="desert"),
        "3": node("DreamMatcherEasy", model=["1", 0], clip=["1", 1], vae=["1", 2], reference=["2", 0],
                  reference_prompt="a photo of a cat in the desert", prompt="a photo of a cat at night", negative="",
                  subject_words="cat", strength=1.0, preset="best"),
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        **saved(5, ["3", 0], ["3", 1], ["3", 2], ["4", 0], "easy", seed=EASY_SEED),
        "8": node("DreamMatcherPreview", trace=["3", 3], images=["6", 0], reference=["2", 0], plain=["11", 0]),
        "10": sampler(["1", 0], ["3", 1], ["3", 2], ["4", 0], seed=EASY_SEED),  # the same without DreamMatcher, to compare
        "11": node("VAEDecode", samples=["10", 0], vae=["1", 2]),
    }


EASY_SAMPLERS = ("5", "10")


def easy_photo() -> dict[str, Any]:
    prompt = easy()
    prompt["1"] = node("CheckpointLoaderSimple", ckpt_name=SD15)
    prompt["2"] = node("LoadImage", image="example.png")
    prompt["3"]["inputs"].update(reference_prompt="a photo of a dog", prompt="a photo of a dog on the beach", subject_words="dog")
    prompt["4"]["inputs"].update(width=512, height=512)
    for number in EASY_SAMPLERS:
        prompt[number]["inputs"].update(steps=30, sampler_name="dpmpp_2m", scheduler="karras", cfg=7.0)
    return prompt


def easy_tags() -> dict[str, Any]:
    """Illustrious, NoobAI and Pony: a prompt of tags, no one word for the subject, the last text layer skipped."""
    prompt = easy_photo()
    prompt["1"]["inputs"]["ckpt_name"] = "Illustrious-XL-v1.0.safetensors"
    prompt["9"] = node("CLIPSetLastLayer", clip=["1", 1], stop_at_clip_layer=-2)
    character = "1girl, solo, red hair, twin braids, green eyes, school uniform"
    prompt["3"]["inputs"].update(
        clip=["9", 0], reference_prompt=character,
        prompt=character + ", sitting, cafe, holding cup, masterpiece, best quality",
        negative="worst quality, low quality", subject_words="")
    prompt["4"]["inputs"].update(width=1024, height=1024)
    for number in EASY_SAMPLERS:
        prompt[number]["inputs"].update(steps=28, sampler_name="euler_ancestral", scheduler="normal", cfg=5.5)
    return prompt


def save_and_load() -> dict[str, Any]:
    prompt = {number: entry for number, entry in short().items() if int(number) < 15 and number not in ("11", "13")}
    prompt["15"] = node("DreamMatcherSaveReference", reference=["18", 0], filename_prefix="dreammatcher/robot")
    prompt["16"] = node("SaveImage", images=["14", 0], filename_prefix="dreammatcher/prepared")
    prompt["12"]["inputs"]["model"] = ["9", 0]
    prompt["18"] = node("DreamMatcherFeatures", model=["1", 0], reference=["7", 0], pca=256, storage_device="cpu", dtype="model",
                        noise_levels=0, rows="one", layers="", **SUBJECTS)
    prompt["9"]["inputs"]["reference"] = ["18", 0]
    return prompt


def two_views() -> dict[str, Any]:
    """Two pictures of one subject, matched jointly and led further by guidance."""
    prompt = short()
    prompt["19"] = node("ToyboxReference", subject=1, kind="robot", pose=4, background="sky")
    prompt["21"] = node("DreamMatcherSubject", clip=["1", 1], prompt="a photo of a robot in the sky", subject_words="robot")
    prompt["22"] = node("DreamMatcherInvert", model=["1", 0], image=["19", 0], vae=["1", 2], positive=["21", 0],
                        negative=["6", 0], steps=50, scheduler="ddim_uniform")
    prompt["23"] = node("DreamMatcherCombine", reference_1=["7", 0], reference_2=["22", 0], weight_1=1.0, weight_2=1.0)
    prompt["9"]["inputs"]["reference"] = ["23", 0]
    prompt["17"]["inputs"]["reference_2"] = ["19", 0]
    return prompt


def loaded() -> dict[str, Any]:
    """Samples with a reference that the graph above has saved."""
    prompt = save_and_load()
    prompt["7"] = node("DreamMatcherLoadReference", file="robot_00001_.safetensors")
    for number in ("2", "15", "18"):
        del prompt[number]
    prompt["9"]["inputs"]["reference"] = ["7", 0]
    prompt["16"]["inputs"]["filename_prefix"] = "dreammatcher/loaded"
    return prompt


def image_to_image() -> dict[str, Any]:
    """Another robot's picture gives the layout, the reference the look."""
    prompt = short()
    prompt["10"] = node("ToyboxReference", subject=9, kind="robot", pose=6, background="snow")
    prompt["19"] = node("VAEEncode", pixels=["10", 0], vae=["1", 2])
    for number in ("11", "12"):
        prompt[number]["inputs"].update(latent_image=["19", 0], denoise=0.7)
    return prompt


def photo(checkpoint: str, side: int) -> dict[str, Any]:
    """:func:`short` on a real checkpoint, with a photo of the user's."""
    prompt = short("a photo of a dog")
    prompt["1"] = node("CheckpointLoaderSimple", ckpt_name=checkpoint)
    prompt["2"] = node("LoadImage", image="example.png")
    prompt["4"]["inputs"].update(prompt="a photo of a dog on the beach", subject_words="dog")
    prompt["10"]["inputs"].update(width=side, height=side)
    for number in ("11", "12"):
        prompt[number]["inputs"].update(steps=30, sampler_name="dpmpp_2m", scheduler="karras", cfg=7.0)
    return prompt


def with_lora() -> dict[str, Any]:
    """A LoRA in front of everything: the photo is inverted with it too."""
    prompt = photo(SD15, 512)
    prompt["20"] = node("LoraLoader", model=["1", 0], clip=["1", 1], lora_name="my_subject.safetensors", strength_model=1.0,
                        strength_clip=1.0)
    for entry in prompt.values():
        if entry["class_type"] != "LoraLoader":
            entry["inputs"].update({name: ["20", value[1]] for name, value in entry["inputs"].items()
                                    if value in (["1", 0], ["1", 1])})
    prompt["4"]["inputs"].update(reference_prompt="a photo of a sks dog", prompt="a photo of a sks dog on the beach",
                                 subject_words="sks dog")
    return prompt


def with_controlnet() -> dict[str, Any]:
    """A ControlNet decides the pose, the photo the look."""
    prompt = photo(SD15, 512)
    prompt["20"] = node("ControlNetLoader", control_net_name="control_v11p_sd15_scribble_fp16.safetensors")
    prompt["21"] = node("LoadImage", image="example.png")
    prompt["22"] = node("ControlNetApplyAdvanced", positive=["4", 1], negative=["6", 0], control_net=["20", 0], image=["21", 0],
                        strength=0.8, start_percent=0.0, end_percent=1.0)
    for number in ("11", "12"):
        prompt[number]["inputs"].update(positive=["22", 0], negative=["22", 1])
    return prompt


COMPARED = ("\n\nThe lower sampler draws the plain picture: the slider in Preview (DreamMatcher) compares the two. Give both "
            "samplers the same seed.")
OWN = ("\n\nChoose your checkpoint and your photo, describe the photo in reference_prompt and the picture you want in prompt, "
       "and click the words that name the subject in both.")
#: workflow -> its prompt and its notes; those without "toybox" in their name need a checkpoint of the user's
EXAMPLES = {
    "dreammatcher_01_easy_toybox": (easy, [
        "The whole method in one node.\n\nGive it a picture of the subject, a prompt for that picture, the prompt of the "
        "picture you want, and the words that name the subject in both." + COMPARED + "\n\nWith your own checkpoint: open "
        "dreammatcher_02_easy_photo."]),
    "dreammatcher_02_easy_photo": (easy_photo, [
        "Your photo and your checkpoint in one node.\n\nChoose both, describe the photo in reference_prompt and the picture you "
        "want in prompt, and click the words that name the subject. With an SDXL checkpoint, set the latent to 1024x1024."
        + COMPARED]),
    "dreammatcher_03_easy_tags": (easy_tags, [
        "A character's picture and Illustrious, NoobAI or Pony, prompted with tags.\n\nDescribe the character with the same tags "
        "in both prompts. subject_words stays empty: the tags that both prompts share are the subject. Or write the ones that "
        "matter, such as 'girl hair'.\n\nNoobAI's v-prediction models: a current ComfyUI recognises them. Where pictures come "
        "out grey or burnt, put ModelSamplingDiscrete (v_prediction, zsnr on) behind the checkpoint, and RescaleCFG at 0.7."
        + COMPARED]),
    "dreammatcher_04_toybox": (full_control, [
        "Every step of the method in its own node, on the small model that ships with the pack. Guidance (DreamMatcher) is "
        "optional: without it, connect the sampler to Apply (DreamMatcher).\n\nChange the subject, pose and background of Toybox "
        "Reference, the target prompt, or the seed (in both samplers).\n\nWith your own checkpoint: open "
        "dreammatcher_05_photo."]),
    "dreammatcher_05_photo": (lambda: photo(SD15, 512), [
        "Your photo and an SD1.x checkpoint, step by step: a large photo is made smaller, and the subjects go straight to "
        "Apply (DreamMatcher). For a painted mask put Mask (DreamMatcher) in between." + OWN]),
    "dreammatcher_06_sdxl": (lambda: photo("sd_xl_base_1.0.safetensors", 1024), [
        "Your photo and an SDXL checkpoint." + OWN + "\n\nReferences of SD1.x and SDXL do not fit each other: invert anew."]),
    "dreammatcher_07_lora": (with_lora, [
        "With a LoRA of your subject. It stands in front of everything, so that the photo is inverted with it too." + OWN]),
    "dreammatcher_08_controlnet": (with_controlnet, [
        "A ControlNet decides the pose, your photo the look. Load a scribble, or choose another ControlNet and its kind of "
        "picture." + OWN]),
    "dreammatcher_09_img2img_toybox": (image_to_image, [
        "Another picture gives the layout (left of the samplers), the reference the look.\n\nLower denoise keeps more of the "
        "layout's own colours; 0.7 leaves room for the reference's."]),
    "dreammatcher_10_two_views_toybox": (two_views, [
        "Two pictures of one subject: every place of the new picture takes its best match among both.\n\nFor a third picture, "
        "add one more Subject (DreamMatcher), Invert Reference (DreamMatcher) and Combine References (DreamMatcher)."]),
    "dreammatcher_11_save_reference_toybox": (save_and_load, [
        "Prepares a reference's features once, samples with them, and saves the inverted reference.\n\nRead it back with "
        "dreammatcher_12_load_reference_toybox."]),
    "dreammatcher_12_load_reference_toybox": (loaded, [
        "Samples with a reference that dreammatcher_11_save_reference_toybox has saved: queue that one first, then choose its "
        "file here.\n\nNothing is inverted. The model must be of the family that the reference was made with."]),
    **LEARNING,
    **VICO,
    **SEFI,
}


if __name__ == "__main__":
    host = Host(ROOT / "build" / "host")
    for name, (make, notes) in (NEWER if host.upstream else EXAMPLES).items():
        text = json.dumps(to_workflow(make(), host.nodes, notes), indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
