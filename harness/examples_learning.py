"""The example workflows that learn a subject."""

from __future__ import annotations

from typing import Any

from .graphs import SD15, node, sampler, saved


def learn() -> dict[str, Any]:
    """Toybox learns a cat from three pictures; drawn by what was learned alone, and with DreamMatcher on top."""
    return {
        "1": node("ToyboxLoader"),
        "2": node("ToyboxReference", subject=3, kind="cat", pose=1, background="grass"),
        "3": node("ToyboxReference", subject=3, kind="cat", pose=2, background="snow"),
        "4": node("ToyboxReference", subject=3, kind="cat", pose=3, background="sky"),
        "5": node("ImageBatch", image1=["2", 0], image2=["3", 0]),
        "6": node("ImageBatch", image1=["5", 0], image2=["4", 0]),
        "7": node("DreamMatcherTrainingSet", images=["6", 0], identifier="sks", class_word="cat", template="photo",
                  resolution=128, captions="", buckets=True, flip=False, folder="", repeats=1),
        "19": node("DreamMatcherPriorSet", model=["1", 0], clip=["1", 1], vae=["1", 2], training_set=["7", 0], count=16, steps=20,
                   cfg=7.5, sampler_name="euler_ancestral", scheduler="normal", seed=0),
        "8": node("DreamMatcherDreamBooth", model=["1", 0], clip=["1", 1], vae=["1", 2], training_set=["7", 0],
                  prior_set=["19", 0], kind="LoRA", steps=400, rate=0.002, seed=1, prior_weight=1.0, rank=8, batch=4,
                  text_encoder=True, masked=False, bfloat16=False),
        "9": node("DreamMatcherEasy", model=["8", 0], clip=["8", 1], vae=["1", 2], reference=["2", 0],
                  reference_prompt="a photo of a sks cat on grass", prompt="a photo of a sks cat at night", negative="",
                  subject_words="cat", strength=1.0, preset="best"),
        "10": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "11": sampler(["8", 0], ["9", 1], ["9", 2], ["10", 0]),
        "12": sampler(["9", 0], ["9", 1], ["9", 2], ["10", 0]),
        "13": node("VAEDecode", samples=["11", 0], vae=["1", 2]),
        "14": node("VAEDecode", samples=["12", 0], vae=["1", 2]),
        "15": node("SaveImage", images=["13", 0], filename_prefix="dreammatcher/learned"),
        "16": node("SaveImage", images=["14", 0], filename_prefix="dreammatcher/learned_and_matched"),
        "17": node("PreviewImage", images=["8", 3]),
        "18": node("DreamMatcherSaveLearned", learned=["8", 2], name="my_cat"),
    }


def learn_easy() -> dict[str, Any]:
    """The same subject learned in one node, then matched."""
    prompt = learn()
    prompt["8"] = node("DreamMatcherLearn", model=["1", 0], clip=["1", 1], vae=["1", 2], images=["6", 0], class_word="cat",
                       effort="usual", rate=0.002, seed=1, identifier="", sample_prompt="a photo of a cat at night", keep_every=0)
    del prompt["7"], prompt["19"]
    return prompt


def learn_photos() -> dict[str, Any]:
    """:func:`learn` on a real checkpoint, with photos of the user's."""
    prompt = learn()
    prompt["1"] = node("CheckpointLoaderSimple", ckpt_name=SD15)
    for number in ("2", "3", "4"):
        prompt[number] = node("LoadImage", image="example.png")
    prompt["7"]["inputs"].update(class_word="dog", resolution=512)
    prompt["8"]["inputs"].update(steps=500, rate=0.0001, batch=1)
    prompt["19"]["inputs"].update(count=100, steps=25)
    prompt["9"]["inputs"].update(reference_prompt="a photo of a sks dog", prompt="a photo of a sks dog on the beach",
                                 subject_words="dog")
    prompt["10"]["inputs"].update(width=512, height=512)
    for number in ("11", "12"):
        prompt[number]["inputs"].update(steps=30, sampler_name="dpmpp_2m", scheduler="karras", cfg=7.0)
    prompt["18"]["inputs"]["name"] = "my_dog"
    return prompt


def delta() -> dict[str, Any]:
    """A subject of the authors' Custom Diffusion on SD1.4: drawn by it alone, and with DreamMatcher on top."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="sd-v1-4.ckpt"),
        "2": node("DreamMatcherLoadLearned", model=["1", 0], clip=["1", 1], file="delta.bin", strength_model=1.0,
                  strength_clip=1.0),
        "3": node("CLIPTextEncode", clip=["2", 1], text="a photo of a <new1> dog on the beach"),
        "4": node("CLIPTextEncode", clip=["1", 1], text=""),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        **saved(6, ["2", 0], ["3", 0], ["4", 0], ["5", 0], "custom_diffusion"),
        "9": node("LoadImage", image="example.png"),
        "10": node("DreamMatcherEasy", model=["2", 0], clip=["2", 1], vae=["1", 2], reference=["9", 0],
                   reference_prompt="a photo of a <new1> dog", prompt="a photo of a <new1> dog on the beach", negative="",
                   subject_words="<new1> dog", strength=1.0, preset="best"),
        **saved(11, ["10", 0], ["10", 1], ["10", 2], ["5", 0], "custom_diffusion_and_matched"),
    }


#: workflow -> its prompt and its notes
LEARNING = {
    "dreammatcher_13_learn_toybox": (learn, [
        "Learns a cat from three pictures (DreamBooth as a LoRA with pictures of other cats, about four minutes on a CPU), "
        "draws it by what was learned alone, and once more with DreamMatcher on top.\n\nThe LoRA is saved into models/loras. "
        "Queued again with another prompt, nothing is learned anew.\n\nWith your own photos: open "
        "dreammatcher_14_learn_photos."]),
    "dreammatcher_14_learn_photos": (learn_photos, [
        "Learns your subject from three photos and saves it as a LoRA.\n\nChoose your checkpoint and photos, write the class in "
        "class_word (dog, toy, ...) and in the prompts behind sks. Photos of one shape, different backgrounds.\n\nNot alike "
        "enough: more steps. Pictures of other dogs, which the model draws once, keep it from turning all dogs into yours."]),
    "dreammatcher_15_learn_easy_toybox": (learn_easy, [
        "Photos in, a model that knows the subject out: class pictures, identifier and settings are chosen (about three minutes "
        "on a CPU). The node shows the words for your prompts.\n\nStop it while it learns, and the graph goes on with what "
        "is learned so far. Stop it before, while class pictures are drawn, and the graph stops: the pictures are kept, and "
        "queued again it goes on.\n\nWith your own: choose a checkpoint, three to five photos and a class word, and set rate to "
        "0.0001."]),
    "dreammatcher_21_custom_diffusion_delta": (delta, [
        "A subject that Custom Diffusion's own code, or diffusers, has learned on SD1.4: by itself, and with DreamMatcher on top."
        "\n\nPut delta.bin into models/loras and choose it in Load Learned (DreamMatcher), which says the words to write in "
        "prompts (<new1>, ...).\n\nLoad one of the photos that were learned from, and say in reference_prompt what it shows."]),
}
