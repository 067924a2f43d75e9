"""Nodes that learn a subject from its pictures."""

from __future__ import annotations

from dataclasses import replace

from ..dreammatcher.host.training.auto import counted, numbers_for
from ..dreammatcher.host.training.dreambooth import FULL, LORA, DreamBoothSettings
from ..dreammatcher.host.training.keep import apply_learned, curve_image
from ..dreammatcher.host.training.learn import (
    DEFAULT_OPTIONS,
    CustomDiffusionSettings,
    custom_diffusion,
    dreambooth,
    textual_inversion,
)
from ..dreammatcher.training.details import (
    ALGORITHMS,
    HUBER_SCHEDULES,
    LOSSES,
    TIMES,
    CaptionChanges,
    Details,
    Layers,
    Noise,
    TextEncoder,
    block_names,
)
from ..dreammatcher.training.job import CUSTOM_DIFFUSION, DREAMBOOTH_FULL, DREAMBOOTH_LORA, TEXTUAL_INVERSION
from ..dreammatcher.training.settings import (
    ANEW,
    ANSWERS,
    ASK,
    CSV,
    NO_RECORDS,
    OPTIMISERS,
    RECORDS,
    SCHEDULES,
    Keeping,
    LoraSettings,
    OptimiserSettings,
    Running,
    TrainingOptions,
)
from . import inputs

GO_ON, KEEP = "go on when queued again", "keep what is learned"


class DreamMatcherDreamBooth(inputs.TrainingNode):
    TITLE = "DreamBooth (DreamMatcher)"
    DESCRIPTION = ("Teaches the model a subject from a few pictures: a LoRA or all weights learn the identifier. Apply "
                   "(DreamMatcher) then brings over what they miss.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **inputs.TRAINED,
            "training_set": inputs.TRAINING_SET,
            "kind": ([LORA, FULL], {"default": LORA, "tooltip":
                                    "What is made. LoRA: a small file beside your checkpoint, little memory. full: the whole "
                                    "checkpoint changes, as in the paper: a large file, much memory."}),
            "steps": inputs.steps(500, "Each picture is seen steps times batch, divided by the number of pictures."),
            "rate": inputs.auto_rate("0.0001 for a LoRA, 0.000005 for full, 0.000002 where the text encoder learns too."),
            "seed": inputs.SEED,
        }, "optional": {
            **inputs.prior(),
            "rank": inputs.RANK,
            "batch": inputs.auto_batch(),
            "text_encoder": inputs.switch(False, "Teach the text encoder too: nearer, and it forgets more."),
            "masked": inputs.switch(False, "Learn only what is white in the pictures' masks, not their backgrounds."),
            "bfloat16": inputs.BFLOAT16,
            "options": inputs.OPTIONS,
            "begin_from": inputs.begin_from("A LoRA's layers beyond the usual ones learn too."),
        }}

    def learn(self, model, clip, vae, training_set, kind, steps, rate, seed, prior_set=None, prior_weight=1.0, rank=4,
              batch=0, text_encoder=False, masked=False, bfloat16=False, options=DEFAULT_OPTIONS, begin_from=None):
        method = DREAMBOOTH_LORA if kind == LORA else DREAMBOOTH_FULL
        numbers, options = numbers_for(method, model, rate, batch, options, text_encoder)
        chosen = DreamBoothSettings(kind, LoraSettings(rank, options.alpha), numbers.rate, text_encoder)
        learned, losses = dreambooth(
            model, clip, vae, training_set, prior_set, chosen, options.objective(prior_weight, masked),
            options.training(steps, numbers.batch, seed, bfloat16), options, begin_from)
        return *apply_learned(model, clip, learned), learned, curve_image(losses, steps)


class DreamMatcherTextualInversion(inputs.TrainingNode):
    TITLE = "Textual Inversion (DreamMatcher)"
    DESCRIPTION = ("Teaches the model one new word and nothing else: a tiny file that leaves the model as it is. Save it, and "
                   "write embedding:NAME in prompts.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **inputs.TRAINED,
            "training_set": inputs.TRAINING_SET,
            "initial_word": inputs.INITIAL_WORD,
            "vectors": inputs.vectors("Tokens that the word takes. More hold more, and are harder to combine."),
            "steps": inputs.steps(3000),
            "rate": inputs.auto_rate("0.005.", 1e-6),
            "seed": inputs.SEED,
        }, "optional": {
            "batch": inputs.auto_batch(),
            "bfloat16": inputs.BFLOAT16,
            "options": inputs.OPTIONS,
            "attention_loss": inputs.ATTENTION_LOSS,
            "begin_from": inputs.begin_from("Instead of initial_word."),
        }}

    def learn(self, model, clip, vae, training_set, initial_word, vectors, steps, rate, seed, batch=0, bfloat16=False,
              options=DEFAULT_OPTIONS, attention_loss=None, begin_from=None):
        numbers, options = numbers_for(TEXTUAL_INVERSION, model, rate, batch, options)
        settings = options.training(steps, numbers.batch, seed, bfloat16)
        learned, losses = textual_inversion(model, clip, vae, training_set, initial_word, vectors, numbers.rate, settings,
                                            options, attention_loss, begin_from)
        return *apply_learned(model, clip, learned), learned, curve_image(losses, steps)


class DreamMatcherCustomDiffusion(inputs.TrainingNode):
    TITLE = "Custom Diffusion (DreamMatcher)"
    DESCRIPTION = ("Teaches the model a subject through the weights that read the text, and one new word: smaller than "
                   "DreamBooth. Save it, and write embedding:NAME in prompts.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            **inputs.TRAINED,
            "training_set": inputs.TRAINING_SET,
            "initial_word": inputs.text("ktn", "The word from which the new one begins: the authors take a rare one."),
            "steps": inputs.steps(500),
            "rate": inputs.auto_rate("the authors' 0.00001 for each picture of a step, those of the class included: 0.00004 for "
                                     "2 with a prior."),
            "seed": inputs.SEED,
        }, "optional": {
            **inputs.prior(" The authors' diffusers script counts the subject four times: 0.25."),
            "sizes": inputs.switch(True, "Learn every picture at several sizes, with captions that say so, as in the paper."),
            "batch": inputs.auto_batch(2),
            "bfloat16": inputs.BFLOAT16,
            "options": inputs.OPTIONS,
            "attention_loss": inputs.ATTENTION_LOSS,
            "word_rate": inputs.WORD_RATE,
            "begin_from": inputs.begin_from(),
        }}

    def learn(self, model, clip, vae, training_set, initial_word, steps, rate, seed, prior_set=None, prior_weight=1.0, sizes=True,
              batch=0, bfloat16=False, options=DEFAULT_OPTIONS, attention_loss=None, word_rate=0.0, begin_from=None):
        prior = counted(training_set, prior_set, prior_weight)
        numbers, options = numbers_for(CUSTOM_DIFFUSION, model, rate, batch, options, prior=prior)
        settings = options.training(steps, numbers.batch, seed, bfloat16)
        chosen = CustomDiffusionSettings(numbers.rate, word_rate, sizes)
        learned, losses = custom_diffusion(model, clip, vae, training_set, prior_set, initial_word, chosen, prior_weight,
                                           settings, options, attention_loss, begin_from)
        return *apply_learned(model, clip, learned), learned, curve_image(losses, steps)


class DreamMatcherTrainingOptions(inputs.OptionsNode):
    TITLE = "Training Options (DreamMatcher)"
    DESCRIPTION = "What is seldom changed in a training: the optimiser, its schedule, averages, and samples while it trains."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "optimiser": (list(OPTIMISERS), {"default": OPTIMISERS[0], "tooltip":
                          "AdamW is the methods' own. Adafactor takes less memory; Prodigy finds its rate (set rate to 1). All "
                          "but the first two need their packages."}),
            "schedule": (list(SCHEDULES), {"default": SCHEDULES[0], "tooltip": "How the rate falls to the end."}),
            "warmup": inputs.number("INT", 0, 0, 100_000, "Steps in which the rate rises from 0."),
            "weight_decay": inputs.number("FLOAT", 0.01, 0.0, 1.0, "How much weights are drawn to zero.", 0.001),
            "clip_norm": inputs.number("FLOAT", 1.0, 0.0, 1000.0, "Largest norm of a step's gradients; 0 does not limit it.",
                                       0.1),
            "accumulate": inputs.number("INT", 0, 0, 64, "Batches in a step: a larger batch without more memory. 0: 1, or more "
                                                         "where a batch of 0 has to be parted."),
            "average": inputs.number("FLOAT", 0.0, 0.0, 0.9999, "Decay of a moving average of the weights, as 0.995; 0 keeps "
                                                                "none.", 0.001),
            "min_snr_gamma": inputs.number("FLOAT", 0.0, 0.0, 100.0, "Weighs noise levels; 5 in the paper, 0 turns it off.", 0.5),
            "lora_alpha": inputs.number("FLOAT", 0.0, 0.0, 1000.0, "A LoRA's scale times its rank; 0 means a scale of 1.", 0.5),
            "sample_prompt": inputs.text("", "Drawn roughly on the node while it trains, with the loss so far.", multiline=True),
            "sample_every": inputs.number("INT", 0, 0, 100_000, "Steps between samples; 0 shows none."),
            "when_stopped": ([GO_ON, KEEP], {"default": GO_ON, "tooltip":
                             "What a stopped run does: go on when it is queued again, or give what it has learned so far."}),
        }, "optional": {
            "gradient_checkpointing": inputs.switch(
                False, "Always make activations again for the gradient: much less memory, more time. Off: where memory needs "
                       "it."),
            "keep_minutes": inputs.number("FLOAT", 10.0, 0.0, 1440.0, "Minutes between safety states on disk, from which a run "
                                                                      "goes on after a crash. 0: only when it is stopped.", 0.5),
            "keep_every": inputs.KEEP_EVERY,
            "run_name": inputs.text("", "Name by which the run and its files are found again. Empty: the subject's word."),
            "sheet_prompts": inputs.text("", "One on each line: drawn at every step that is kept, with the same seeds. Empty: "
                                             "sample_prompt, or a caption.", multiline=True),
            "when_it_differs": (list(ANSWERS), {"default": ASK, "tooltip":
                                "Where a run of this name is on disk with other choices: ask lists them and stops, go on takes "
                                "what it has learned, begin anew leaves it. More steps alone go on."}),
            "keep_state": inputs.switch(False, "Keep the state at the end too: more steps go on as if it had not ended. It takes "
                                               "three times as much as what learns."),
            "records": (list(RECORDS), {"default": CSV, "tooltip":
                        "Loss, rate, norm of the gradient and steps per second of every step, written beside the run's files "
                        "while it trains. TensorBoard needs its package."}),
        }}

    def make(self, optimiser, schedule, warmup, weight_decay, clip_norm, accumulate, average, min_snr_gamma, lora_alpha,
             sample_prompt, sample_every, when_stopped, gradient_checkpointing=False, keep_minutes=10.0, keep_every=0,
             run_name="", sheet_prompts="", when_it_differs=ANEW, keep_state=False,
             records=NO_RECORDS):
        chosen = OptimiserSettings(optimiser, weight_decay, clip=clip_norm, schedule=schedule, warmup=warmup)
        prompts = tuple(line.strip() for line in sheet_prompts.splitlines() if line.strip())
        return (TrainingOptions(chosen, accumulate, average, min_snr_gamma, lora_alpha or None, sample_prompt.strip(),
                                sample_every, Running(when_stopped == KEEP, keep_minutes, gradient_checkpointing or None,
                                                      differs=when_it_differs),
                                Keeping(keep_every, run_name.strip(), prompts, keep_state, records)),)


class DreamMatcherTrainingDetails(inputs.OptionsNode):
    TITLE = "Training Details (DreamMatcher)"
    DESCRIPTION = ("The finer choices of a training: which layers learn and how fast, which noise and captions they see. A "
                   "choice that a method cannot use is refused.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "text_rate": inputs.number("FLOAT", 0.0, 0.0, 1.0, "How far the text encoder moves in a step where it learns. 0: as "
                                                               "the node's rate says.", 1e-7),
            "text_until": inputs.number("FLOAT", 1.0, 0.01, 1.0, "Share of the steps after which the text encoder stops. 1: "
                                                                 "never.", 0.01),
            "attention": inputs.switch(True, "A LoRA changes the attention of UNet and text encoder."),
            "feed_forward": inputs.switch(False, "A LoRA changes the feed-forward layers behind attention too, as kohya's does. "
                                                 "A transformer's does so without this node."),
            "projections": inputs.switch(False, "A LoRA changes the projections into and out of transformer blocks too, as "
                                                "kohya's does."),
            "convolutions": inputs.switch(False, "A LoRA changes residual blocks and resizing too, as kohya's does with conv_dim "
                                                 "(LoCon)."),
            "blocks": inputs.text("", "Blocks of the UNet that a LoRA changes, as IN04, IN05, M00, OUT03. Empty: all."),
            "rank_dropout": inputs.share(0.0, "Share of a LoRA's ranks that each step leaves out, against overfitting. 0.1 to "
                                              "0.3 is usual.", 0.9),
            "noise_offset": inputs.share(0.0, "Moves whole colours of the noise, so that dark and bright pictures are learned. "
                                              "0.05 to 0.1 is usual.", 1.0),
            "loss": (list(LOSSES), {"default": LOSSES[0], "tooltip":
                     "How errors count. Huber and smooth L1 count large ones less, as from a stray picture."}),
            "huber_c": inputs.number("FLOAT", 0.1, 0.001, 1.0, "Error from which these two count less.", 0.01),
            "huber_schedule": (list(HUBER_SCHEDULES), {"default": HUBER_SCHEDULES[0], "tooltip":
                               "How huber_c follows the noise: snr and exponential are near 1 where there is little noise."}),
            "timesteps": (list(TIMES), {"default": TIMES[0], "tooltip":
                          "Noise levels that are learned at. early: more of those with much noise, for composition; late: with "
                          "little, for detail; logit-normal: of the middle."}),
            "caption_dropout": inputs.share(0.0, "Share of captions that are left empty. 0.05 to 0.1 is usual.", 0.9),
            "caption_shuffle": inputs.switch(False, "Tags, divided by commas, come in another order each time."),
            "keep_tags": inputs.number("INT", 1, 0, 100, "First tags that stay in front when others are shuffled."),
            "allow_one_picture": inputs.switch(False, "Learn from a single picture: its background, light and pose are learned "
                                                      "with the subject."),
        }, "optional": {
            "options": inputs.OPTIONS,
            "algorithm": (list(ALGORITHMS), {"default": ALGORITHMS[0], "tooltip":
                          "Form of a LoRA. DoRA: direction and strength apart, closer to a full training. LoHa: two LoRAs "
                          "multiplied, more rank in the same size. LoKr: the smallest file."}),
        }}

    def make(self, text_rate, text_until, attention, feed_forward, projections, convolutions, blocks, rank_dropout, noise_offset,
             loss, huber_c, huber_schedule, timesteps, caption_dropout, caption_shuffle, keep_tags, allow_one_picture,
             options=DEFAULT_OPTIONS, algorithm=ALGORITHMS[0]):
        layers = Layers(attention, feed_forward, convolutions, projections, block_names(blocks))
        details = Details(TextEncoder(text_rate, text_until), layers, rank_dropout,
                          Noise(noise_offset, loss, huber_c, huber_schedule, timesteps),
                          CaptionChanges(caption_dropout, caption_shuffle, keep_tags), allow_one_picture, algorithm)
        return (replace(options, details=details),)


NODES = (DreamMatcherDreamBooth, DreamMatcherTextualInversion, DreamMatcherCustomDiffusion, DreamMatcherTrainingOptions,
         DreamMatcherTrainingDetails)
