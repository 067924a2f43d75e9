"""Finding a subject's tokens in a conditioning that other nodes changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dreammatcher.subject import Subject, text_starts


def text(seed: int, tokens: int = 77, width: int = 32) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


OWN, OTHER = text(1), text(2)
BARE = Subject("sks dog", "a sks dog", (2, 3), 77)
SUBJECT = BARE.encoded_as(OWN)


@pytest.mark.parametrize("sampled, columns", [
    (OWN, (2, 3)), (torch.cat([OWN, OTHER]), (2, 3)), (torch.cat([OTHER, OWN]), (79, 80)),
    (torch.cat([text(3, 154), OWN, OTHER]), (156, 157)), (torch.cat([OWN, OWN]), (2, 3, 79, 80)),
    (torch.cat([text(3, 4), OWN]), (6, 7)), (torch.cat([OWN, text(3, 16)]), (2, 3))],
    ids=["alone", "first", "second", "third of three texts", "twice", "behind tokens of a pack", "in front of them"])
@pytest.mark.parametrize("change", [torch.Tensor.clone, torch.Tensor.half, torch.Tensor.bfloat16, lambda text: 0.7 * text],
                         ids=["as it is", "half", "bfloat16", "scaled"])
@pytest.mark.parametrize("marked", [True, False])
def test_its_tokens_are_found_by_what_the_text_encoder_made_of_them(sampled, columns, change, marked):
    place, said = SUBJECT.located(change(sampled), marked)
    assert (place.columns, place.tokens, said) == (columns, len(sampled), "")


def test_an_averaged_prompt_keeps_its_places_and_it_is_said():
    place, said = SUBJECT.located(0.6 * OWN + 0.4 * OTHER, True)
    assert place.columns == (2, 3) and "'sks dog'" in said and "averaged" in said


@pytest.mark.parametrize("sampled, marked", [
    (OTHER, False), (0.6 * OWN + 0.4 * OTHER, False), (torch.cat([0.6 * OWN + 0.4 * OTHER, OTHER]), True),
    (text(4, 77, 48), True), (torch.zeros(77, 32), False), (torch.full((77, 32), torch.nan), False)],
    ids=["another text", "averaged into another", "averaged and joined", "another width", "zeroed out", "not a number"])
def test_a_prompt_that_does_not_hold_it_is_refused_with_the_fix(sampled, marked):
    place, said = SUBJECT.located(sampled, marked)
    assert place is None and "'a sks dog'" in said and "connect the conditioning of the same Subject (DreamMatcher)" in said


@pytest.mark.parametrize("sampled, expected", [
    (OWN, True), (OTHER, True), (torch.cat([OWN, OWN]), True), (torch.cat([OWN, text(3, 4)]), True),
    (torch.cat([OWN, OTHER]), False), (OWN[:40], False)],
    ids=["alone", "of its length", "repeated", "with tokens of a pack behind", "joined", "shorter"])
def test_one_that_does_not_know_its_text_is_trusted_where_only_a_repetition_explains_the_length(sampled, expected):
    place, said = BARE.located(sampled, True)
    assert (place == BARE and not said) if expected else (place is None and "nothing says where the subject stands" in said)


def test_columns_that_a_host_cuts_off_are_left_out_and_none_left_is_refused():
    assert replace(BARE, columns=(2, 76)).encoded_as(OWN[:70]).columns == (2,)
    with pytest.raises(ValueError, match="'sks dog' stands behind token 2, where the text encoder cuts the prompt"):
        BARE.encoded_as(OWN[:2])


def test_limited_to_some_of_its_choices_it_keeps_their_columns_and_vectors():
    chosen = Subject("red dog hat", "a red dog hat", (2, 3, 4), 77, (("red", (2,)), ("dog", (3,)), ("hat", (4,)))).encoded_as(OWN)
    one = chosen.limited({"dog", "cat"})
    assert (one.words, one.columns) == ("dog", (3,)) and torch.equal(one.vectors, OWN[[3]])
    assert chosen.limited({"cat"}) is chosen and chosen.is_about(one) and not one.is_about(chosen)


def test_whole_texts_are_found_where_they_begin():
    assert text_starts(OWN, torch.cat([OTHER, OWN, OWN.half().float()])) == [77, 154]
    one_word = OWN.clone()
    one_word[3] = OTHER[3]
    assert text_starts(OWN, torch.cat([one_word, OWN])) == [77], "a text with another word is another text"
    assert text_starts(OWN, 0.5 * OWN + 0.5 * OTHER) == [] and text_starts(OWN, text(1, 77, 48)) == []
