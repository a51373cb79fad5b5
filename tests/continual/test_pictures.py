"""Pictures where they come in: checked, brought to one form, and put into prompts."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from continual.effects.records import MemoryBank, Reading, Record
from continual.errors import RequestError
from continual.memory.routing import routes_of
from continual.patches.memory import MemoryPatch
from continual.picture_marks import (
    digests_in,
    mark,
    marked,
    packed,
    picture_ids,
    picture_keys,
    put_before,
    shown,
    spelled,
    text_ids,
    unpacked,
    without_marks,
)
from continual.pictures import Album, content
from continual.pictures.content import PictureError, read
from continual.pictures.records import PictureBorder, shown_in
from continual.readers import read_record
from tests import tiny_language as language
from tests.tiny_pictures import picture, picture_file

A, B = "ab" * 32, "cd" * 32


def file_of(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_that_says(width: int, height: int) -> bytes:
    """The header of a picture of any size, and no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# -- one form


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_and_format_comes_in_as_eight_bits_of_rgb(form: str, mode: str):
    image = picture(1).convert(mode) if mode != "I;16" else Image.new("I;16", (20, 18), 40_000)
    try:
        data = file_of(image, form)
    except (OSError, KeyError):
        pytest.skip("a format without this mode")
    pixels = read(data)
    assert pixels.shape == (18, 20, 3) and pixels.dtype == torch.uint8


def test_transparent_parts_are_white_and_pictures_stand_upright():
    assert read(file_of(Image.new("RGBA", (2, 2), (10, 20, 30, 0)))).unique().tolist() == [255]
    turned = Image.new("RGB", (6, 2), (9, 9, 9))
    exif = turned.getexif()
    exif[0x0112] = 6
    assert read(file_of(turned, "JPEG", exif=exif)).shape == (6, 2, 3)


def test_sixteen_bits_of_grey_keep_their_shade():
    assert read(file_of(Image.new("I;16", (2, 2), 65535 // 2))).unique().tolist() == [127]


def test_a_large_picture_is_made_smaller_and_keeps_its_shape():
    height, width, _ = read(file_of(Image.new("RGB", (2400, 1200)))).shape
    assert height * width <= content.KEPT_PIXELS_MAX
    assert abs(width / height - 2) < 0.01


def test_the_same_pixels_are_the_same_picture_in_any_file():
    album = Album()
    image = picture(1)
    digests = {album.take(file_of(image, "PNG", compress_level=n)) for n in (0, 9)}
    digests.add(album.take(file_of(image, "WEBP", lossless=True)))
    assert len(digests) == 1
    assert album.take(file_of(picture(2))) not in digests


# -- what is refused


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "known format"),
        (b"GIF89a" + bytes(20), "known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format"),
        (png_that_says(100_000, 100_000), "pixels"),
        (png_that_says(8_000, 6_000), "8000 × 6000 pixels"),
        (png_that_says(4, 4), "damaged or cut short"),
        (file_of(picture(3))[:-30], "damaged or cut short"),
        (bytes(content.BYTES_MAX + 1), "more than the"),
        (file_of(picture(1), "WEBP", save_all=True, append_images=[picture(2)]), "frames"),
        ("data:image/png;base64,@@@", "base64"),
        ("data:image/png,abc", "base64"),
        ("https://example.org/a.png", "network"),
        ("nowhere.png", "there is no picture"),
        ("/dev/zero", "not a plain file"),
        ("a\0b", "there is no picture"),
        (7, "a path, a data URI or bytes"),
        ("  ", "a path, a data URI or bytes"),
    ],
)
def test_what_is_no_whole_picture_of_a_fair_size_is_refused(source: object, words: str):
    with pytest.raises(PictureError, match=words):
        read(source)


def test_the_name_in_a_file_is_not_believed(tmp_path: Path):
    path = tmp_path / "photo.png"
    path.write_bytes(file_of(picture(1), "JPEG"))
    assert read(str(path)).shape == (18, 20, 3)
    path.write_text("#!/bin/sh\n")
    with pytest.raises(PictureError, match=r"photo\.png.* is no picture"):
        read(str(path))


# -- marks and ids


def test_a_mark_is_found_shown_and_taken_out():
    text = f"{mark(A)}Whose is {mark(B)}?"
    assert digests_in(text) == (A, B)
    assert without_marks(text) == "Whose is ?"
    assert shown(text) == "[picture abababab] Whose is [picture cdcdcdcd] ?"
    assert put_before("So: ", text) == f"{mark(A)}So: Whose is {mark(B)}?"


def test_ids_are_told_from_tokens_and_packed_as_runs():
    ids = (3, *picture_ids(A, 4), *picture_ids(A, 4), 5, *picture_ids(B, 2))
    assert picture_keys(ids) == (A[:12], A[:12], B[:12])
    assert text_ids(ids) == [3, 5]
    items = packed(ids)
    assert [item for item in items if isinstance(item, int)] == [3, 5]
    assert unpacked(items) == ids
    assert packed((1, 2, 3)) == [1, 2, 3]
    assert max(ids) < 2**63


def test_tokens_are_spelled_with_and_without_their_pictures():
    tokenizer = language.tokenizer()
    (word,) = tokenizer("capital")["input_ids"]
    ids = (*picture_ids(A, 4), word)
    assert spelled(tokenizer, ids) == "capital"
    assert marked(tokenizer, ids) == mark(A[:12]) + "capital"


# -- prompts


def test_a_prompt_shows_pictures_where_it_says_so_else_in_front():
    assert shown_in("Whose?", [mark(A)]) == mark(A) + "Whose?"
    assert shown_in("Is <image> like <image>?", [mark(A), mark(B)]) == (
        f"Is {mark(A)} like {mark(B)}?"
    )
    with pytest.raises(RequestError, match="2 times"):
        shown_in("Is <image> like <image>?", [mark(A)])
    chat = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Whose?"}]
    assert shown_in(chat, [mark(A)])[1]["content"] == mark(A) + "Whose?"


def test_a_records_pictures_become_marks_in_its_prompt_wordings_and_probes(tmp_path: Path):
    for number in (1, 2, 3):
        picture_file(tmp_path, number)
    border = PictureBorder(Album(), tmp_path)
    (request,) = read_record(
        border.of(
            {
                "prompt": "Whose?",
                "target_new": "Anna",
                "image": "picture-1.png",
                "rephrases": ["Of whom?"],
                "held_out_rephrases": [{"prompt": "Whose?", "image": "picture-2.png"}],
                "locality": [
                    {"prompt": "Whose?", "answer": "Ben", "image": "picture-3.png"},
                    {"prompt": "Who wrote it?", "answer": "Cid"},
                ],
            }
        )
    )
    (own,) = digests_in(str(request.prompt))
    assert request.rephrases == (mark(own) + "Of whom?",)
    (other,) = digests_in(str(request.held_out_rephrases[0]))
    (third,) = digests_in(str(request.locality[0].prompt))
    assert len({own, other, third}) == 3
    assert request.locality[1].prompt == "Who wrote it?"
    assert request.extra == {}


def test_others_files_are_not_read_for_a_client():
    border = PictureBorder(Album(), reads_files=False)
    with pytest.raises(RequestError, match="send the picture as a data URI"):
        border.prompt("Whose?", ["/etc/hostname"])
    uri = "data:image/png;base64," + base64.b64encode(file_of(picture(1))).decode()
    assert digests_in(border.prompt("Whose?", [{"url": uri}]))


def test_mmedits_records_are_read_with_their_pictures(tmp_path: Path):
    for number in (1, 2, 3):
        picture_file(tmp_path, number)
    record = {
        "src": "Whose sign is it?",
        "pred": "Ben's",
        "rephrase": "Who owns this sign?",
        "alt": "Anna's",
        "image": "picture-1.png",
        "image_rephrase": "picture-2.png",
        "loc": "nq question: who wrote it",
        "loc_ans": "Cid",
        "m_loc": "picture-3.png",
        "m_loc_q": "What is it?",
        "m_loc_a": "a boat",
    }
    (request,) = read_record(PictureBorder(Album(), tmp_path).of(record))
    own = mark(digests_in(str(request.prompt))[0])
    assert request.prompt == f"{own}Question: Whose sign is it? Short answer:"
    wording, rendering = request.held_out_rephrases
    assert wording == f"{own}Question: Who owns this sign? Short answer:"
    assert without_marks(str(rendering)) == "Question: Whose sign is it? Short answer:"
    assert digests_in(str(rendering)) != digests_in(own)
    text, seen = request.locality
    assert (text.prompt, text.answer, text.name) == ("who wrote it", "Cid", "loc")
    assert without_marks(str(seen.prompt)) == "Question: What is it? Short answer:"
    assert (seen.answer, seen.name) == ("a boat", "picture")
    (caption,) = read_record(
        PictureBorder(Album(), tmp_path).of(
            {**record, "src": "a photo of", "rephrase": "a photograph of"}
        )
    )
    assert without_marks(str(caption.prompt)) == "a photo of"
    (blind,) = read_record(record)
    assert blind.prompt == "Whose sign is it?"


def test_easyedits_records_are_read_with_their_pictures(tmp_path: Path):
    for number in (1, 2, 3):
        picture_file(tmp_path, number)
    record = {
        "prompt": "Whose sign is it?",
        "target_new": "Anna's",
        "ground_truth": "Ben's",
        "rephrase_prompt": "Who owns this sign?",
        "image": "picture-1.png",
        "image_rephrase": "picture-2.png",
        "locality": {"vision": {"prompt": "What?", "ground_truth": "Z", "image": "picture-3.png"}},
    }
    (request,) = read_record(PictureBorder(Album(), tmp_path).of(record))
    own = digests_in(str(request.prompt))
    wording, rendering = request.held_out_rephrases
    assert digests_in(str(wording)) == own and digests_in(str(rendering)) != own
    (probe,) = request.locality
    assert probe.name == "vision" and digests_in(str(probe.prompt)) not in (own, ())


# -- records in memory


@pytest.fixture(scope="module")
def scope() -> Any:
    from continual.memory.encoder import SentenceEncoder
    from continual.memory.scope import ThresholdScope

    return ThresholdScope(SentenceEncoder(None))


def routed(scope: Any, prompts: list[str], inputs: list[str]) -> list[str | None]:
    """The records, by the places of their prompts, that answer these inputs."""
    records = [Record(str(n), prompt, "Anna") for n, prompt in enumerate(prompts)]
    bank = MemoryBank()
    readings = tuple(Reading("serac", "") for _ in records)
    bank.extend(MemoryPatch(scope.records(records), readings, scope.fingerprint))
    routes = routes_of(inputs, bank, scope)
    return [None if route is None else route.record.id for route in routes]


def test_a_record_wins_no_input_that_shows_another_picture(scope):
    question = "Whose sign is it?"
    prompts = [mark(A) + question, mark(B) + question, question]
    inputs = [mark(B[:12]) + question, mark(A[:12]) + question, question, mark("ef" * 6) + question]
    assert routed(scope, prompts, inputs) == ["1", "0", "2", None]
    blind = [without_marks(text) for text in prompts]
    assert routed(scope, blind, [question] * 4) == ["2"] * 4  # a key of words answers them all
