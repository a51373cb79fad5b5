"""Documents are read from files as they are written, and what is no text is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from continual.atlas.facts import load_facts
from continual.atlas.texts import AtlasTexts
from continual.statistics import texts
from continual.statistics.texts import TextError, TextFiles

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: str | bytes, name: str = "file.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


def documents(*paths: Path) -> list[str]:
    return list(TextFiles(paths))


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file.jsonl", "file.json", "file.txt", "file"])
def test_json_lines_give_what_stands_under_text_or_content(write: Write, name: str) -> None:
    lines = '{"text": "one\\n\\nstill one", "id": 1}\n\n{"title": "x", "content": "two"}\n'
    assert documents(write(lines, name)) == ["one\n\nstill one", "two"]


@pytest.mark.parametrize("name", ["file.json", "file.txt"])
def test_an_array_gives_the_texts_of_its_objects(write: Write, name: str) -> None:
    array = json.dumps([{"text": "one"}, {"content": "two"}], indent=1)
    assert documents(write(array, name)) == ["one", "two"]


def test_plain_text_is_read_in_paragraphs(write: Write) -> None:
    text = "\ufeffThe first,\nof two lines.\r\n \t\n\n[2] A second.\n\n\n{third}"
    assert documents(write(text)) == ["The first,\nof two lines.", "[2] A second.", "{third}"]


def test_text_that_only_begins_with_a_bracket_is_no_json(write: Write) -> None:
    assert documents(write("[1] Of notes.\n")) == ["[1] Of notes."]


def test_a_byte_order_mark_is_no_part_of_json(write: Write) -> None:
    assert documents(write('\ufeff{"text": "one"}\n')) == ["one"]
    assert documents(write('\ufeff[{"text": "one"}]')) == ["one"]


def test_blank_documents_are_left_out(write: Write) -> None:
    lines = '{"text": ""}\n{"text": " \\n"}\n{"text": "one"}\n'
    assert documents(write(lines)) == ["one"]


def test_a_long_paragraph_goes_on_as_another_document(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PARAGRAPH_BYTES_MAX", 9)
    assert documents(write("1234\n5678\n90\n\nabc")) == ["1234\n5678", "90", "abc"]


def test_files_follow_each_other_and_can_be_read_again(write: Write) -> None:
    files = TextFiles((write("a", "1.txt"), write('{"text": "b"}', "2.jsonl")))
    assert list(files) == list(files) == ["a", "b"]


def test_a_file_is_read_only_as_far_as_it_is_wanted(write: Write) -> None:
    path = write('{"text": "one"}\n{"text": "two"}\nnot json\n', "file.jsonl")
    assert list(islice(TextFiles((path,)), 2)) == ["one", "two"]


# --- what is no text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"fine\nb\xffd\n", "file.txt", "line 2: is not UTF-8"),
        (b'{"text": "fine"}\n{"text": "\xc3("}\n', "file.jsonl", "line 2: is not UTF-8"),
        (b'[{"text": "\xff"}]', "file.json", "the array: is not UTF-8"),
        (b"fine\n\nno\0ne\n", "file.txt", "line 3: holds a NUL"),
        (b'{"text": "\\u0000"}\n', "file.jsonl", "line 1: holds a NUL"),
        (b'{"text": "\\ud800"}\n', "file.jsonl", "line 1: holds half of a surrogate pair"),
        (b'{"text": "fine"}\n{"text": \n', "file.jsonl", "line 2: is not JSON"),
        (b'{"text": "fine"}\n"text"\n', "file.jsonl", "line 2: is not a JSON object"),
        (b'{"title": "x"}\n', "file.jsonl", "line 1: has no text under 'text' or 'content'"),
        (b'{"text": 7}\n', "file.jsonl", "line 1: has no text"),
        (b'[{"text": "fine"},\n{"text"}]', "file.json", "line 2: is not JSON"),
        (b'[{"text": "fine"}, 3]', "file.json", "element 2: is not a JSON object"),
        (b'{"text": ' + b"[" * 100_000, "file.jsonl", "line 1: cannot be read as JSON"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(
    write: Write, content: bytes, name: str, message: str
) -> None:
    path = write(content, name)
    with pytest.raises(TextError) as caught:
        documents(path)
    assert str(caught.value).startswith(f"{path}, {message}")


@pytest.mark.parametrize("content", ["", "\n \n\n", "\ufeff", '{"text": ""}\n'])
@pytest.mark.parametrize("name", ["file.txt", "file.json"])
def test_a_file_without_text_is_named(write: Write, content: str, name: str) -> None:
    with pytest.raises(TextError, match=f"{name} holds no text"):
        documents(write(content, name))


def test_an_empty_array_holds_no_text(write: Write) -> None:
    with pytest.raises(TextError, match="holds no text"):
        documents(write("[]", "file.json"))


def test_what_was_fine_before_a_bad_line_has_been_given(write: Write) -> None:
    given = iter(TextFiles((write('{"text": "one"}\n?\n', "file.jsonl"),)))
    assert next(given) == "one"
    with pytest.raises(TextError, match="line 2"):
        next(given)


@pytest.mark.parametrize("name", ["file.txt", "file.jsonl"])
def test_a_line_without_end_is_not_read_into_memory(
    write: Write, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "LINE_BYTES_MAX", 100)
    assert documents(write('{"text": "' + 88 * "x" + '"}', name)) == [88 * "x"]
    with pytest.raises(TextError, match="line 2: has more than 100 bytes"):
        documents(write('{"text": "fine"}\n{"text": "' + 99 * "x" + '"}', name))


def test_an_array_that_is_too_large_is_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "ARRAY_BYTES_MAX", 30)
    with pytest.raises(TextError, match="more than 30 bytes: write one object to a line"):
        documents(write(json.dumps([{"text": "a long one"}, {"text": "b"}]), "file.json"))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(TextError, match=f"{path.name} cannot be read"):
            documents(path)


# --- the atlas ------------------------------------------------------------------------------------


def test_the_atlas_states_every_fact_in_every_trained_phrasing_once() -> None:
    stated = list(AtlasTexts())
    trained = [f"{p} {f.object}\n" for f in load_facts() for p in f.trained_prompts]
    assert stated != trained
    assert sorted(stated) == sorted(trained)


def test_the_atlas_states_every_fact_once_before_any_again() -> None:
    facts = load_facts()
    fact_of = {f"{p} {f.object}\n": (f.subject, f.relation.name) for f in facts for p in f.prompts}
    first = [fact_of[text] for text in islice(AtlasTexts(), len(facts))]
    assert len(set(first)) == len(facts)


def test_the_atlas_speaks_in_the_same_order_each_time_and_in_another_for_another_seed() -> None:
    assert list(islice(AtlasTexts(), 50)) == list(islice(AtlasTexts(), 50))
    assert list(islice(AtlasTexts(), 50)) != list(islice(AtlasTexts(seed=1), 50))
