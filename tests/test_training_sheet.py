"""The sheet that grows with a training: rows in the order of their steps, of the same prompts."""

from __future__ import annotations

import pytest
from PIL import Image

from dreammatcher.training.sheet import GAP, HEAD, LABEL, SIDE, Sheet, read, read_page

PROMPTS = ("a sks dog", "a sks dog that is running along a beach at sunset, far away")


def plain(colour: str, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.new("RGB", size, colour)


def middle(page: Image.Image, row: int, column: int) -> tuple[int, ...]:
    return page.getpixel((LABEL + column * (SIDE + GAP) + SIDE // 2, HEAD + row * (SIDE + GAP) + SIDE // 2))


def test_rows_stand_in_the_order_of_their_steps_whenever_they_were_drawn(tmp_path):
    path = tmp_path / "runs" / "sheet.png"
    Sheet(PROMPTS).with_row(30, [plain("red"), plain("lime")]).write(path)
    read(path, PROMPTS).with_row(5, [plain("blue"), plain("white")]).write(path)
    read(path, PROMPTS).with_row(30, [plain("black"), plain("lime")]).write(path)  # the same step once more
    sheet, page = read(path, PROMPTS), read_page(path)
    assert list(sheet.rows) == [5, 30] and page.height == HEAD + 2 * (SIDE + GAP)
    assert [middle(page, row, column) for row in (0, 1) for column in (0, 1)] == [
        (0, 0, 255), (255, 255, 255), (0, 0, 0), (0, 255, 0)]


def test_a_picture_of_another_shape_is_shown_whole(tmp_path):
    wide = plain("red", (4 * SIDE, 2 * SIDE))
    row = Sheet(("one",)).with_row(1, [wide]).rows[1]
    assert row.getpixel((0, SIDE // 2)) == (255, 0, 0) == row.getpixel((SIDE - 1, SIDE // 2))
    assert row.getpixel((SIDE // 2, 2)) != (255, 0, 0), "above it is paper"


@pytest.mark.parametrize("content", [None, b"no picture", b""])
def test_a_sheet_that_is_missing_or_damaged_begins_anew(tmp_path, content):
    path = tmp_path / "sheet.png"
    if content is not None:
        path.write_bytes(content)
    assert not read(path, PROMPTS).rows and read_page(path) is None


def test_a_sheet_of_other_prompts_or_of_another_program_begins_anew(tmp_path):
    path = tmp_path / "sheet.png"
    Sheet(PROMPTS).with_row(1, [plain("red")] * 2).write(path)
    assert read(path, PROMPTS).rows and not read(path, PROMPTS[:1]).rows
    plain("red").save(path)
    assert not read(path, PROMPTS).rows


def test_each_prompt_has_a_picture(tmp_path):
    with pytest.raises(ValueError, match="there are 1 for 2 prompts"):
        Sheet(PROMPTS).with_row(1, [plain("red")])
