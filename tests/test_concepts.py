"""Words found in a picture by what attention makes of both."""

from __future__ import annotations

import pytest
import torch

from dreammatcher.concepts import word_likeness

CELLS, WIDTH, TOKENS = 24, 16, 9


def outputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, CELLS, WIDTH, generator=generator), torch.randn(2, TOKENS, WIDTH, generator=generator))


def test_cells_whose_output_is_the_words_are_1_and_those_of_other_words_0():
    words = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))[0][:TOKENS]
    shown = torch.arange(CELLS) % 2 * 4 + 1  # words 1 and 5 in turn
    maps = word_likeness(words[shown][None], words[None], (5,), (0, 1, 2, 3, 4))
    assert torch.allclose(maps[0], (shown == 5).float(), atol=1e-6)


def test_what_all_cells_share_and_the_scale_of_a_block_do_not_count():
    picture, text = outputs()
    plain = word_likeness(picture, text, (2, 3), (0, 1, 4))
    common = torch.randn(2, 1, WIDTH, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(word_likeness(7 * (picture + common), 3 * text, (2, 3), (0, 1, 4)), plain, atol=1e-5)
    assert torch.allclose(word_likeness(picture, text + 5, (2, 3), (0, 1, 4)), plain, atol=1e-4), "nor what all words share"


def test_words_and_the_others_are_each_others_opposite_and_each_picture_is_its_own():
    picture, text = outputs()
    maps = word_likeness(picture, text, (2,), (0, 1))
    assert torch.allclose(maps, 1 - word_likeness(picture, text, (0, 1), (2,)), atol=1e-6)
    assert torch.equal(maps[1:], word_likeness(picture[1:], text[1:], (2,), (0, 1)))
    assert maps.amin(1).tolist() == [0, 0] and maps.amax(1).tolist() == [1, 1]


def test_the_order_of_cells_is_kept():
    picture, text = outputs()
    order = torch.randperm(CELLS, generator=torch.Generator().manual_seed(2))
    maps, moved = (word_likeness(cells, text, (2,), (0, 1)) for cells in (picture, picture[:, order]))
    assert torch.allclose(moved, maps[:, order], atol=1e-6)


def test_cells_that_are_all_alike_tell_nothing():
    _, text = outputs()
    assert not word_likeness(torch.ones(2, CELLS, WIDTH), text, (2,), (0,)).any()


@pytest.mark.parametrize("columns, others", [((), (1,)), ((1,), ()), ((TOKENS,), (1,)), ((1,), (-1,))])
def test_columns_outside_of_the_text_are_refused(columns, others):
    with pytest.raises(ValueError, match="do not fit a text of 9 tokens"):
        word_likeness(*outputs(), columns, others)
