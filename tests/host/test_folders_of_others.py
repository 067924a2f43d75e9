"""Folders of pictures from other systems and programs: texts in any encoding, links, and pictures that are not read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

NAME = "from others"


@pytest.fixture
def folder(host):
    input_folder = Path(host.folder_paths.get_input_directory()) / NAME
    shutil.rmtree(input_folder, ignore_errors=True)
    input_folder.mkdir(parents=True)
    yield input_folder
    shutil.rmtree(input_folder, ignore_errors=True)


@pytest.fixture
def read(host, pack):
    def read_set(name=NAME, **changes):
        chosen = {"identifier": "sks", "class_word": "toy", "template": "photo", "resolution": 128, "folder": name}
        return host.nodes["DreamMatcherTrainingSet"]().make(**{**chosen, **changes})["result"][0]
    return read_set


def picture(path: Path) -> None:
    Image.new("RGB", (100, 100), "red").save(path, "PNG")


def captions(training_set) -> list[str]:
    return [example.captions[0] for example in training_set.examples]


def remarks(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.getMessage().startswith("DreamMatcher:"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", ["a photo of sks toy, café", "sks 机器人"])
def test_a_caption_is_read_in_the_encoding_that_its_mark_says(folder, read, encoding, text, caplog):
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes(text.encode(encoding))
    assert captions(read()) == [text] and not remarks(caplog)


def test_a_text_that_begins_with_the_mark_of_big_endian_is_read_too(folder, read):
    import codecs

    picture(folder / "a.png")
    (folder / "a.txt").write_bytes(codecs.BOM_UTF16_BE + "sks toy".encode("utf-16-be"))
    assert captions(read()) == ["sks toy"]


@pytest.mark.parametrize("content", ["sks toy, café".encode("cp1252"), "sks 机器人".encode("gbk"), "sks toy".encode("utf-16-le"),
                                     b"\xff\xfes"], ids=["latin", "chinese", "unmarked", "cut off"])
@pytest.mark.parametrize("identifier", ["sks", ""])
def test_a_text_that_is_no_utf_8_is_refused_by_its_name(folder, read, content, identifier):
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"folder: a\.txt is no text in UTF-8 .*save it as UTF-8"):
        read(identifier=identifier)


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.Caption", "A.txt"])
def test_captions_are_found_by_their_name_in_capitals_or_not(folder, read, name):
    picture(folder / "a.PNG")
    (folder / name).write_text("sks toy in the snow")
    assert captions(read()) == ["sks toy in the snow"]


def test_pictures_that_differ_in_capitals_alone_keep_their_own_captions(folder, read):
    for stem in ("a", "A"):
        picture(folder / f"{stem}.png")
        (folder / f"{stem}.txt").write_text(f"sks toy {stem}")
    if len(list(folder.glob("*.png"))) == 1:
        pytest.skip("this file system knows no capitals")
    assert sorted(captions(read())) == ["sks toy A", "sks toy a"]


def test_a_wrong_caption_names_the_file_that_it_is_in(folder, read):
    picture(folder / "a.png")
    (folder / "a.caption").write_text("a toy")
    with pytest.raises(ValueError, match=r"a\.caption: 'a toy' does not hold the identifier"):
        read()


def test_of_two_captions_one_is_used_and_both_are_named(folder, read, caplog):
    picture(folder / "a.png")
    (folder / "a.txt").write_text("sks toy one")
    (folder / "a.caption").write_text("sks toy two")
    assert captions(read()) == ["sks toy one"] and "that of a.txt is used, not that of a.caption" in remarks(caplog)


def test_an_empty_caption_is_said_to_be_empty(folder, read, caplog):
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf \n")
    assert captions(read()) == ["a photo of a sks toy"] and "a.txt is empty" in remarks(caplog)


def test_every_picture_that_is_not_read_is_named(folder, read, caplog):
    picture(folder / "a.png")
    left = ["b.heic", "c.AVIF", "d.gif", "e.tiff", "f.tif", "g.jxl", "h.NEF", "i.heif"]
    for name in left:
        (folder / name).write_bytes(b"something")
    (folder / "notes.md").write_text("no picture")
    assert len(read().examples) == 1
    assert all(name in remarks(caplog) for name in left) and "notes.md" not in remarks(caplog)
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match=r"holds no pictures .*b\.heic.*i\.heif.*save as PNG or JPEG"):
        read()


def test_a_jpeg_as_browsers_on_windows_save_it_is_read(folder, read):
    Image.new("RGB", (100, 100)).save(folder / "a.jfif", "JPEG")
    assert len(read().examples) == 1


def test_folders_in_the_folder_are_named_when_they_hold_pictures(folder, read, caplog):
    picture(folder / "a.png")
    (folder / "10_sks toy").mkdir()
    picture(folder / "10_sks toy" / "b.png")
    (folder / "logs").mkdir()
    read()
    assert "10_sks toy" in remarks(caplog) and "logs" not in remarks(caplog)


@pytest.fixture
def link(tmp_path):
    def create(path: Path, target: Path) -> None:
        try:
            path.symlink_to(target, target_is_directory=target.is_dir())
        except OSError:
            pytest.skip("no links here")
    return create


def test_a_link_to_a_folder_elsewhere_is_a_folder(host, folder, read, link, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("sks toy far away")
    link(folder / "there", tmp_path)
    assert captions(read(f"{NAME}/there")) == ["sks toy far away"]
    changed = host.nodes["DreamMatcherTrainingSet"].IS_CHANGED
    before = changed(folder=f"{NAME}/there")
    os.utime(tmp_path / "a.txt", (1, 1))
    assert before and changed(folder=f"{NAME}/there") != before


def test_a_link_does_not_open_the_way_to_its_neighbours(folder, read, link, tmp_path):
    (tmp_path / "in").mkdir(), (tmp_path / "beside").mkdir()
    link(folder / "there", tmp_path / "in")
    with pytest.raises(ValueError, match="is no folder in|lies outside of"):
        read(f"{NAME}/there/../beside")


def test_a_link_to_a_picture_is_a_picture(folder, read, link, tmp_path):
    picture(tmp_path / "far.png")
    link(folder / "a.png", tmp_path / "far.png")
    assert len(read().examples) == 1


def test_links_to_nothing_are_named_and_break_nothing(host, folder, read, link, tmp_path, caplog):
    picture(folder / "a.png")
    link(folder / "b.png", tmp_path / "gone.png")
    link(folder / "a.txt", tmp_path / "gone.txt")
    assert captions(read()) == ["a photo of a sks toy"]
    assert "b.png is a link to nothing" in remarks(caplog) and "a.txt is a link to nothing" in remarks(caplog)
    state = host.nodes["DreamMatcherTrainingSet"].IS_CHANGED
    before = state(folder=NAME)
    assert before == state(folder=NAME)
    picture(tmp_path / "gone.png")
    assert before != state(folder=NAME), "what the link leads to is there now"


def test_a_folder_that_is_a_link_to_nothing_is_named_with_where_it_led(folder, read, link, tmp_path):
    link(folder / "there", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"is a link to nothing \(there leads to .*gone\)"):
        read(f"{NAME}/there")
