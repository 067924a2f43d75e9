"""The example workflows of SeFi-IDE and of evaluation."""

from __future__ import annotations

from typing import Any

from .graphs import SD15, node, sampler, saved


def sefi() -> dict[str, Any]:
    """Toybox learns a robot from one picture by SeFi-IDE, draws it by stages, and once more with DreamMatcher on top."""
    return {
        "1": node("ToyboxLoader"),
        "2": node("ToyboxReference", subject=3, kind="robot", pose=1, background="grass"),
        "3": node("DreamMatcherSeFiTrain", model=["1", 0], clip=["1", 1], vae=["1", 2], image=["2", 0], identifier="<me>",
                  class_word="robot", reference_prompt="a photo of a robot", resolution=128, steps=150, rate=0.05,
                  attention_weight=3.0, seed=1, stages=5, split=True, learns="table", flip=False, batch=4,
                  reduction="sum over patches", compared="all tokens", bfloat16=False),
        "4": node("DreamMatcherSeFiApply", model=["1", 0], sefi=["3", 0], start=0.0, end=1.0),
        "5": node("DreamMatcherSeFiPrompt", clip=["1", 1], prompt="a photo of a <me> in the snow", sefi=["3", 0]),
        "6": node("CLIPTextEncode", clip=["1", 1], text=""),
        "7": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        **saved(8, ["4", 0], ["5", 0], ["6", 0], ["7", 0], "sefi"),
        "11": node("DreamMatcherSeFiPrompt", clip=["1", 1], prompt="a photo of a <me> on grass", sefi=["3", 0]),
        "12": node("VAEEncode", pixels=["2", 0], vae=["1", 2]),
        "13": node("DreamMatcherInvert", model=["4", 0], reference=["12", 0], positive=["11", 0], negative=["6", 0], steps=50,
                   scheduler="ddim_uniform"),
        "14": node("DreamMatcherMask", reference_subject=["11", 1], target_subject=["5", 1], cycle_threshold=0.4,
                   binarise="carried over"),
        "15": node("DreamMatcherApply", model=["4", 0], reference=["13", 0], mask=["14", 0], strength=1.0, start=0.2, end=1.0,
                   layers="", preset="best", live_preview="off"),
        **saved(16, ["15", 0], ["5", 0], ["6", 0], ["7", 0], "sefi_and_matched"),
        "19": node("PreviewImage", images=["3", 1]),
        "20": node("DreamMatcherSeFiSave", sefi=["3", 0], name="my_robot"),
    }


def sefi_photo() -> dict[str, Any]:
    """One photo and an SD1.x checkpoint, with the page's settings."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=SD15),
        "2": node("LoadImage", image="example.png"),
        "3": node("DreamMatcherSeFiTrain", model=["1", 0], clip=["1", 1], vae=["1", 2], image=["2", 0], identifier="<me>",
                  class_word="person", reference_prompt="a photo of the face of person", resolution=512, steps=600, rate=0.0001,
                  attention_weight=0.003, seed=1, stages=5, split=True, learns="network", flip=True, batch=1,
                  reduction="sum over patches", compared="all tokens", bfloat16=False),
        "4": node("DreamMatcherSeFiApply", model=["1", 0], sefi=["3", 0], start=0.0, end=1.0),
        "5": node("DreamMatcherSeFiPrompt", clip=["1", 1], prompt="a photo of the face of <me> wearing a red hat",
                  sefi=["3", 0]),
        "6": node("CLIPTextEncode", clip=["1", 1], text=""),
        "7": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        **saved(8, ["4", 0], ["5", 0], ["6", 0], ["7", 0], "sefi"),
        "11": node("PreviewImage", images=["3", 1]),
        "12": node("DreamMatcherSeFiSave", sefi=["3", 0], name="my_face"),
    }


def measured() -> dict[str, Any]:
    """Four pictures of a prompt, plain and with DreamMatcher, scored against a photo."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=SD15),
        "2": node("LoadImage", image="example.png"),
        "3": node("DreamMatcherEasy", model=["1", 0], clip=["1", 1], vae=["1", 2], reference=["2", 0],
                  reference_prompt="a photo of a toy", prompt="a photo of a toy on the beach", negative="", subject_words="toy",
                  strength=1.0, preset="best"),
        "4": node("EmptyLatentImage", width=512, height=512, batch_size=4),
        "5": sampler(["1", 0], ["3", 1], ["3", 2], ["4", 0]),
        "6": sampler(["3", 0], ["3", 1], ["3", 2], ["4", 0]),
        "7": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "8": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "9": node("DreamMatcherEvaluate", results=["7", 0], references=["2", 0], prompt="a photo of a toy on the beach",
                  encoders="DINO and CLIP, as DreamBooth"),
        "10": node("DreamMatcherEvaluate", results=["8", 0], references=["2", 0], prompt="a photo of a toy on the beach",
                   encoders="DINO and CLIP, as DreamBooth"),
        "11": node("DreamMatcherScoreSheet", scores_1=["9", 0], name_1="plain", scores_2=["10", 0], name_2="DreamMatcher",
                   name_3="third", name_4="fourth"),
        "12": node("PreviewImage", images=["11", 1]),
    }


def measured_toybox() -> dict[str, Any]:
    """:func:`measured` on Toybox, whose judge comes with the pack."""
    prompt = measured()
    prompt["1"] = node("ToyboxLoader")
    prompt["2"] = node("ToyboxReference", subject=3, kind="cat", pose=2, background="desert")
    wanted = "a photo of a cat at night"
    prompt["3"]["inputs"].update(reference_prompt="a photo of a cat in the desert", prompt=wanted, subject_words="cat")
    prompt["4"]["inputs"].update(width=128, height=128)
    for number in ("5", "6"):
        prompt[number]["inputs"].update(steps=25, seed=4)  # the seed of 01
    for number in ("9", "10"):
        prompt[number]["inputs"].update(prompt=wanted, encoders="Toybox's judge")
    prompt["13"] = node("SaveImage", images=["7", 0], filename_prefix="dreammatcher/scored_plain")
    prompt["14"] = node("SaveImage", images=["8", 0], filename_prefix="dreammatcher/scored_matched")
    return prompt


#: workflow -> its prompt and its notes
SEFI = {
    "dreammatcher_18_sefi_toybox": (sefi, [
        "SeFi-IDE learns a word from one picture: two vectors for each of five stages of sampling. The second picture has "
        "DreamMatcher on top.\n\nWrite the word in SeFi Prompt (DreamMatcher), and put SeFi Apply (DreamMatcher) behind the "
        "model.\n\nWith your own checkpoint: open dreammatcher_19_sefi_photo."]),
    "dreammatcher_19_sefi_photo": (sefi_photo, [
        "One photo of a face and an SD1.x checkpoint. For other subjects: another class word, and a photo of a CLASS as "
        "reference_prompt.\n\nThe settings are the project page's and its ancestor's; no official code exists. If prompts are "
        "not followed, raise attention_weight; if the face is not alike, lower it or take more steps."]),
    "dreammatcher_20_evaluate": (measured, [
        "Is it more alike now? Four pictures of the plain model and four of DreamMatcher with the same seeds, scored as in the "
        "papers.\n\nPut the encoders into models/evaluation: Evaluate (DreamMatcher) says which files. Connect all photos of the "
        "subject that you have as references, as a batch."]),
    "dreammatcher_24_evaluate_toybox": (measured_toybox, [
        "Is it more alike now? Four pictures of the plain model and four of DreamMatcher with the same seeds, scored by the "
        "judge that comes with Toybox: it runs anywhere.\n\nSubject error is how far the subject's colours are from the "
        "reference's: lower is better. Class and scene are the shares of pictures that show what the prompt names.\n\n"
        "With photos, and the papers' measures: open dreammatcher_20_evaluate."]),
}
