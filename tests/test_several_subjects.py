"""Several subjects in one training: how often each is drawn, which sets go together, and what a batch of them teaches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from small_training import Linear, normal, seeded

from dreammatcher.training.balance import balanced
from dreammatcher.training.captions import Naming
from dreammatcher.training.data import Example, LatentSet, Preparation, Prepared
from dreammatcher.training.dreambooth import full_of
from dreammatcher.training.job import DREAMBOOTH_LORA, Choices, Job, read
from dreammatcher.training.new_words import RARE, initial_words, one_word_of
from dreammatcher.training.parallel import Share
from dreammatcher.training.recipe import SubjectRecipe
from dreammatcher.training.sets import TrainingSet, together
from dreammatcher.training.settings import ObjectiveSettings, TrainingOptions, TrainingSettings

pytestmark = pytest.mark.usefixtures("gradients")

SMALL, LARGE = (64, 64), (64, 96)


def subject(word: str, kind: str = "dog", count: int = 2, size: tuple[int, int] = SMALL, resolution: int = 64) -> TrainingSet:
    naming = Naming(word, kind)
    pictures = (normal(3, *size, seed=number).sigmoid() for number in range(count))
    return TrainingSet(tuple(Example(one, naming.captions()) for one in pictures), naming, Preparation(resolution))


def latent(value: float, caption: str, width: int = 4) -> Prepared:
    return Prepared(torch.full((1, 4, 4, width), float(value)), None, (caption,))


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", ["a" * 14, "a" * 12 + "bb", "ab" * 7])
def test_each_subject_is_drawn_equally_often_and_each_of_its_pictures_too(batch, sizes):
    """Nine pictures, four and one: a subject's rows are a third of all, whatever sizes its pictures have."""
    owners, generator, steps = [0] * 9 + [1] * 4 + [2], seeded(3), 6000
    drawn = Counter(number for _ in range(steps) for number in balanced(sizes, owners, batch, generator))
    rows = steps * batch
    for owner, count in Counter(owners).items():
        own = [drawn[number] for number in range(14) if owners[number] == owner]
        assert abs(sum(own) / rows - 1 / 3) < 0.025, owner
        assert all(abs(times / rows - 1 / 3 / count) < 0.02 for times in own)


def test_a_batch_as_large_as_there_are_subjects_holds_each_once():
    owners, generator = [0] * 7 + [1] + [2] * 3, seeded()
    for _ in range(200):
        assert {owners[number] for number in balanced([0] * 11, owners, 3, generator)} == {0, 1, 2}
        counted = Counter(owners[number] for number in balanced([0] * 11, owners, 7, generator))
        assert sorted(counted.values()) in ([2, 2, 3],)


def test_a_batch_is_of_one_size_and_has_each_subject_s_own_captions():
    examples = (latent(1, "a sks dog"), latent(2, "a sks dog", 6), latent(-1, "a abc cat"), latent(-2, "a abc cat", 6))
    drawn, generator = LatentSet(examples, owners=(0, 0, 1, 1)), seeded(1)
    for _ in range(50):
        batch = drawn.draw(4, generator)
        signs = [float(one.mean()) for one in batch.latents]
        assert [text.split()[1] for text in batch.captions] == ["sks" if value > 0 else "abc" for value in signs]
        assert len({abs(value) for value in signs}) == 1 and Counter(batch.captions) == {"a sks dog": 2, "a abc cat": 2}


def test_the_gradient_of_a_batch_of_both_subjects_is_the_mean_of_the_two_alone():
    """Each process of two has the row of one subject, with the noise that it has in the whole batch."""
    examples = (latent(1.0, "a photo of a sks dog"), latent(2.0, "a sks dog"), latent(-1.5, "a photo of a abc cat"))

    def gradient(share: Share, batch: int, *chosen: int) -> dict[str, torch.Tensor]:
        model = Linear()
        learned = LatentSet(tuple(examples[number] for number in chosen), owners=tuple(int(number > 1) for number in chosen))
        recipe = SubjectRecipe(model, learned, ObjectiveSettings(), unet=full_of(model.unet, 1e-2))
        recipe.loss(batch, seeded(5), share).backward()
        return {name: value.grad for name, value in recipe.learned.named_parameters()}

    both = gradient(Share(), 2, 0, 1, 2)
    alone = [gradient(Share(rank, 2), 1, 0, 1, 2) for rank in (0, 1)]
    assert all(one.norm() > 0 for one in both.values())
    for name, value in both.items():
        mean = (alone[0][name] + alone[1][name]) / 2
        assert (value - mean).norm() < 1e-5 * value.norm() and (alone[0][name] - alone[1][name]).norm() > 0.1 * value.norm()


def test_sets_that_are_joined_keep_their_words_captions_and_ways_and_say_so():
    flipped = TrainingSet(subject("abc", "cat", 1).examples, Naming("abc", "cat"), Preparation(64, flip=True))
    joined = together({"training_set_1": subject("sks"), "training_set_2": flipped})
    assert joined.words == ("sks", "abc") and joined.called() == "sks dog, abc cat" and len(joined.examples) == 3
    latents = joined.prepared(lambda pictures: pictures.mean(1, keepdim=True)[:, :, ::8, ::8])
    assert latents.owners == (0, 0, 1) and [len(one.latents) for one in latents.examples] == [1, 1, 2]
    assert joined.described().startswith("2 sets, each drawn equally often\n2 pictures of 'sks dog'\n")
    again = together({"training_set_1": joined, "training_set_2": subject("xyz", "toy")})
    assert again.words == ("sks", "abc", "xyz"), "what is joined is joined with more"
    other = together({"training_set_1": subject("sks", count=3), "training_set_2": flipped})
    assert len({one.fingerprint() for one in (joined, again, other, subject("sks"))}) == 4
    assert joined.fingerprint() == together({"a": subject("sks"), "b": flipped}).fingerprint()
    alone = subject("sks")
    assert together({"training_set_2": alone}) is alone


@pytest.mark.parametrize(("first", "second", "said"), [
    (subject("sks"), subject("sks", "cat"), "training_set_2: its subject 'sks cat' shares the word 'sks' with 'sks dog' of"),
    (subject("sks"), subject("SKS", "cat"), "shares the word"), (subject("sks"), subject("abc", "sks"), "shares the word 'sks'"),
    (subject("", "dog"), subject("", "Dog"), "shares the word 'Dog' with 'dog'"),
    (subject("sks"), subject("", "dog"), "training_set_2: of it and training_set_1 one has the identifier 'sks'"),
    (subject("sks"), TrainingSet((), Naming("abc"), Preparation(64)), "training_set_2: it has no pictures"),
    (subject("sks"), subject("abc", resolution=128), "training_set_2: its resolution is 128 and that of training_set_1 64")])
def test_sets_that_do_not_go_together_are_refused_by_one_sentence(first, second, said):
    with pytest.raises(ValueError, match=said) as error:
        together({"training_set_1": first, "training_set_2": second})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no set is connected"):
        together({})


def test_a_joined_set_is_neither_more_of_one_subject_nor_learned_by_a_method_of_one():
    joined = together({"1": subject("sks"), "2": subject("abc", "cat")})
    with pytest.raises(ValueError, match="others: it joins 2 subjects .sks, abc."):
        subject("sks").joined(joined)
    with pytest.raises(ValueError, match="training_set: it joins 2 subjects .sks, abc., and ViCo learns one"):
        one_word_of(joined, "ViCo")
    assert one_word_of(subject("sks"), "ViCo") == "sks"


def test_each_word_begins_from_its_own_or_from_one_for_all():
    joined = together({str(number): subject(word, "dog") for number, word in enumerate(("sks", "abc", "xyz"))})
    assert initial_words("dog, cat ,toy", joined) == {"sks": "dog", "abc": "cat", "xyz": "toy"}
    assert set(initial_words("dog", joined).values()) == {"dog"}
    assert tuple(initial_words("ktn", joined).values()) == RARE, "the authors' own rare words"
    assert initial_words("a dog, red", subject("sks")) == {"sks": "a dog, red"}, "one subject begins as it did"
    with pytest.raises(ValueError, match="initial_word: it has 2 words, and the training set 3 subjects .sks, abc, xyz."):
        initial_words("dog, cat", joined)
    with pytest.raises(ValueError, match="identifier: it is empty in the training set of 'dog'"):
        initial_words("dog", together({"1": subject("", "dog"), "2": subject("", "cat")}))


def test_a_job_brings_its_subjects_back(tmp_path):
    joined = together({"1": subject("sks", count=3), "2": subject("abc", "cat", 1, LARGE)})
    prior = together({"1": subject("", "dog"), "2": subject("", "cat")})
    job = Job("two", DREAMBOOTH_LORA, "Toybox", joined, prior, Choices(), TrainingSettings(), TrainingOptions(), {})
    back = read(job.write(tmp_path))
    assert back.subject_set.fingerprint() == joined.fingerprint() and back.subject_set.words == ("sks", "abc")
    assert back.prior is not None and back.prior.fingerprint() == prior.fingerprint() and back.described() == job.described()
