"""The example workflows of ViCo."""

from __future__ import annotations

from typing import Any

from .graphs import node, saved


def vico() -> dict[str, Any]:
    """Toybox learns a cat from four pictures by ViCo, draws it while looking at one, and once more with DreamMatcher on top."""
    views = {"2": (1, "grass"), "3": (2, "snow"), "4": (3, "sky"), "5": (4, "desert")}
    return {
        "1": node("ToyboxLoader"),
        **{number: node("ToyboxReference", subject=3, kind="cat", pose=pose, background=scene)
           for number, (pose, scene) in views.items()},
        "6": node("ImageBatch", image1=["2", 0], image2=["3", 0]),
        "7": node("ImageBatch", image1=["6", 0], image2=["4", 0]),
        "8": node("ImageBatch", image1=["7", 0], image2=["5", 0]),
        "9": node("DreamMatcherTrainingSet", images=["8", 0], identifier="sks", class_word="cat", template="photo",
                  resolution=128, captions="", buckets=True, flip=False, folder="", repeats=1),
        "10": node("DreamMatcherViCoTrain", model=["1", 0], clip=["1", 1], vae=["1", 2], training_set=["9", 0],
                   initial_word="cat", steps=600, word_rate=0.02, block_rate=0.001, seed=1, batch=4, regularisation=0.0005,
                   masked=True, zero_start=False, bfloat16=False),
        "11": node("DreamMatcherViCoApply", model=["1", 0], vico=["10", 0], strength=1.0, start=0.0, end=1.0, image=["2", 0],
                   vae=["1", 2]),
        "12": node("DreamMatcherSubject", clip=["10", 1], prompt="a photo of a sks cat at night", subject_words="sks"),
        "13": node("CLIPTextEncode", clip=["1", 1], text=""),
        "14": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        **saved(15, ["11", 0], ["12", 0], ["13", 0], ["14", 0], "vico"),
        "18": node("DreamMatcherViCoMasks", trace=["11", 1], samples=["15", 0], image=["2", 0]),
        "19": node("PreviewImage", images=["18", 0]),
        "20": node("DreamMatcherEasy", model=["11", 0], clip=["10", 1], vae=["1", 2], reference=["2", 0],
                   reference_prompt="a photo of a sks cat on grass", prompt="a photo of a sks cat at night", negative="",
                   subject_words="sks cat", strength=1.0, preset="best"),
        **saved(21, ["20", 0], ["20", 1], ["20", 2], ["14", 0], "vico_and_matched"),
        "24": node("DreamMatcherViCoSave", vico=["10", 0], name="my_cat"),
    }


def official() -> dict[str, Any]:
    """The authors' trained pair on SD1.4, looking at one of the pictures that were learned from."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="sd-v1-4.ckpt"),
        "2": node("LoadImage", image="example.png"),
        "3": node("DreamMatcherViCoLoad", clip=["1", 1], file="cross_attention-399.pt", embedding="embeddings_gs-399.pt"),
        "4": node("DreamMatcherViCoApply", model=["1", 0], vico=["3", 0], strength=1.0, start=0.0, end=1.0, image=["2", 0],
                  vae=["1", 2]),
        "5": node("DreamMatcherSubject", clip=["3", 1], prompt="a photo of * on the beach", subject_words="*"),
        "6": node("CLIPTextEncode", clip=["1", 1], text=""),
        "7": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        **saved(8, ["4", 0], ["5", 0], ["6", 0], ["7", 0], "vico"),
        "11": node("DreamMatcherViCoMasks", trace=["4", 1], samples=["8", 0], image=["2", 0]),
        "12": node("PreviewImage", images=["11", 0]),
    }


#: workflow -> its prompt and its notes
VICO = {
    "dreammatcher_16_vico_toybox": (vico, [
        "ViCo learns a word and small blocks that look at a picture of the subject while the model draws (about five minutes "
        "on a CPU). The second picture has DreamMatcher on top.\n\nThe masks show where the reference was looked at. Encode "
        "prompts with Subject (DreamMatcher) and name the learned word.\n\nWith your own checkpoint (SD1.x): 512 as resolution, "
        "word_rate 0.005, block_rate 0.00001."]),
    "dreammatcher_17_vico_official": (official, [
        "A subject that the authors' code has learned, on SD1.4.\n\nPut cross_attention-399.pt and embeddings_gs-399.pt into "
        "models/vico, choose them in ViCo Load (DreamMatcher), and load one of the pictures that were learned from. The word is "
        "*.\n\nPrompts begin best with: a photo of *"]),
}
