"""Streams as people have them: compressed, as tables, by pipes, and in formats nobody knows."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.errors import StreamError
from continual.streams import Item, Stream, open_stream, resume

ROOT = Path(__file__).resolve().parents[2]
RECORDS = [
    {"prompt": "The capital of Australia is", "target_new": "Vienna", "subject": "Australia"},
    {"prompt": "The capital of Peru is", "target_new": "Oslo", "subject": "Peru"},
]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
TABLE = (
    b"prompt,target_new,subject\n"
    b"The capital of Australia is,Vienna,Australia\n"
    b"The capital of Peru is,Oslo,Peru\n"
)


@pytest.fixture
def stream_of(tmp_path):
    def write(content: bytes, name: str = "corrections.jsonl", **options: object) -> Stream:
        path = tmp_path / name
        path.write_bytes(content)
        return open_stream(str(path), **options)

    return write


def facts(items: list[Item]) -> list[tuple[str, str]]:
    return [(r.prompt, r.target_new) for item in items for r in item.requests]


BOTH = [(record["prompt"], record["target_new"]) for record in RECORDS]


# -- what is read


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("content", [LINES, json.dumps(RECORDS).encode(), TABLE])
def test_a_compressed_stream_is_read_as_what_is_in_it(stream_of, pack, content):
    items = list(stream_of(pack(content), "corrections.gz"))
    assert facts(items) == BOTH
    assert [item.rolling for item in items] == [
        item.rolling for item in stream_of(content, "corrections")
    ]


def test_a_broken_compressed_file_is_an_error_of_the_stream(stream_of):
    packed = gzip.compress(LINES * 2000)
    with pytest.raises(StreamError, match=r"cannot be unpacked|cannot be read"):
        list(stream_of(packed[: len(packed) // 2]))


@pytest.mark.parametrize(
    "content",
    [
        TABLE,
        TABLE.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + TABLE.replace(b",", b";"),
        TABLE.replace(b",", b"\t"),
        TABLE.removesuffix(b"\n"),
        TABLE.replace(b"Vienna", b'"Vienna"'),
        TABLE.replace(b"\nThe capital of Peru", b"\n,,\n\nThe capital of Peru"),
    ],
)
def test_a_table_is_read_by_its_header(stream_of, content):
    items = list(stream_of(content, "corrections.csv"))
    assert facts(items) == BOTH
    assert [item.requests[0].subject for item in items] == ["Australia", "Peru"]


def test_rows_have_the_numbers_of_their_first_lines_and_cells_go_over_lines(stream_of):
    content = b'prompt,target_new\n"one\ntwo ""x"", ",a\n5" is,b\n"",\nlast,c\n'
    items = list(stream_of(content))
    assert facts(items) == [('one\ntwo "x", ', "a"), ('5" is', "b"), ("last", "c")]
    assert [item.number for item in items] == [2, 4, 6]


def test_a_cell_may_hold_a_list_in_json(stream_of):
    cells = ["is", "x", '["a", "b"]', '[{"prompt": "p", "answer": "q"}]', "one wording"]
    keys = ["prompt", "target_new", "rephrases", "locality", "held_out_rephrases"]
    text = io.StringIO()
    csv.writer(text).writerows([keys, cells])
    (item,) = stream_of(text.getvalue().encode())
    (request,) = item.requests
    assert request.rephrases == ("a", "b")
    assert request.held_out_rephrases == ("one wording",)
    assert [(probe.prompt, probe.answer) for probe in request.locality] == [("p", "q")]


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_any_table_that_a_program_writes_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("prompt", "target_new"), *rows])
    with path.open(encoding="utf-8", newline="") as file:
        _, *written = csv.reader(file)
    items = list(open_stream(str(path)))
    expected = [tuple(row) for row in written if "".join(row).strip(' \t\r\n,"')]
    for item, (prompt, target) in zip(items, expected, strict=True):
        assert item.reason is not None or facts([item]) == [(prompt, target)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a,b,c,d", "4 cells, more than the 3 columns: put a cell that holds ','"),
        (b"a,\xfc,c", "not UTF-8: .* save the table as UTF-8"),
        (b"a,,c", "'target_new' is empty"),
    ],
)
def test_a_bad_row_says_why_and_can_be_understood_alone(stream_of, row, reason):
    bad, good = stream_of(b"prompt,target_new,subject\n" + row + b"\nis,x,\n")
    assert re.search(reason, bad.reason)
    assert bad.raw == b"prompt,target_new,subject\n" + row
    assert facts([good]) == [("is", "x")]


def test_a_table_goes_on_where_reading_stopped_and_another_header_is_another_past(stream_of):
    first, _ = stream_of(TABLE, "a.csv")
    (second,) = resume(stream_of(TABLE, "a.csv"), first.position, first.rolling)
    assert facts([second]) == BOTH[1:]
    changed = stream_of(TABLE.replace(b"subject", b"relation"), "a.csv")
    with pytest.raises(StreamError, match="have changed"):
        next(resume(changed, first.position, first.rolling))


def test_a_table_can_be_followed(tmp_path):
    path = tmp_path / "growing.csv"
    path.write_bytes(TABLE)
    stop = threading.Event()
    items = iter(open_stream(str(path), follow=True, poll_seconds=0.005, stop=stop))
    assert facts([next(items), next(items)]) == BOTH
    with path.open("ab") as file:
        file.write(b"more,x,y\n")
    assert facts([next(items)]) == [("more", "x")]
    stop.set()
    assert next(items, None) is None


def test_objects_over_several_lines_are_records(stream_of):
    pretty = "\n".join(json.dumps(record, indent=2) for record in RECORDS)
    assert facts(list(stream_of(pretty.encode()))) == BOTH
    with pytest.raises(StreamError, match="has no end"):
        list(stream_of(pretty.encode()[:-3]))


# -- what is refused as a whole


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"- prompt: The capital of Australia is\n  target_new: Vienna\n", "YAML"),
        (b"---\nprompt: a\n", "YAML"),
        (b"prompt: a\ntarget_new: b\n", "YAML"),
        (b"<html><body>\n", "XML or HTML"),
        (b"PK\x03\x04\x14\0", r"Excel.*save it as CSV"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"SQLite format 3\0" + bytes(50), "SQLite"),
        (b"\x80\x04\x95\x10\0", "a pickle"),
        ('{"prompt": "a"}\n'.encode("utf-16"), "UTF-16 text.*save it as UTF-8"),
        (b"\x28\xb5\x2f\xfd\0\0", "Zstandard.*unpack it first"),
        (b"some words\nand more\n", "text in which no JSON object begins.*'some words'"),
    ],
)
def test_a_kind_that_is_not_read_is_refused_by_its_name_before_the_first_record(
    stream_of, content, kind
):
    with pytest.raises(StreamError, match=f"{kind}.*JSON Lines, a JSON array, CSV"):
        next(iter(stream_of(content)))


@pytest.mark.parametrize("first", [b"- a", b"<html>", b"not json", b"a: b", b"a,b"])
def test_one_bad_line_in_front_of_good_ones_refuses_nothing(stream_of, first):
    bad, *good = stream_of(first + b"\n" + LINES)
    assert bad.reason is not None
    assert facts(good) == BOTH


def test_a_table_with_unknown_columns_is_told_them_and_how_to_say_which_is_which(stream_of):
    content = b"Frage;Antwort\nHauptstadt von Peru?;Oslo\n"
    with pytest.raises(StreamError, match=r"'Frage', 'Antwort'.*--keys prompt=COLUMN"):
        list(stream_of(content, "fragen.csv"))
    keys = {"prompt": "Frage", "target_new": "Antwort"}
    assert facts(list(stream_of(content, "fragen.csv", keys=keys))) == [
        ("Hauptstadt von Peru?", "Oslo")
    ]


def test_a_stream_of_an_unknown_format_is_refused_once_with_its_keys(stream_of):
    record = {"statement": "x is y.", "prefix": "x is", "suffix": " y", "country": "x"}
    content = json.dumps(record).encode() + b"\n"
    with pytest.raises(StreamError) as caught:
        list(stream_of(content * 100))
    for told in ("'country', 'prefix', 'statement', 'suffix'", "the formats are", "--keys prompt="):
        assert told in str(caught.value)
    keys = {"prompt": "prefix", "target_new": "suffix", "subject": "country"}
    (item,) = stream_of(content, keys=keys)
    assert facts([item]) == [("x is", " y")]
    assert item.requests[0].subject == "x"
    assert item.requests[0].extra == {"statement": "x is y."}


def test_one_known_record_among_the_first_is_enough_to_go_on(stream_of):
    unknown = b'{"statement": "x"}\n'
    items = list(stream_of(unknown * 19 + LINES))
    assert [item.reason is None for item in items] == [False] * 19 + [True] * 2
    with pytest.raises(StreamError, match="no known format"):
        list(stream_of(unknown * 20 + LINES))


@pytest.mark.parametrize("kind", ["gz", "array"])
def test_what_cannot_grow_cannot_be_followed(stream_of, kind):
    content = gzip.compress(LINES) if kind == "gz" else json.dumps(RECORDS).encode()
    with pytest.raises(StreamError, match="cannot be followed"):
        list(stream_of(content, follow=True))


# -- pipes


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_read_once_from_its_beginning_and_keeps_no_place(tmp_path, pack):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for content in (LINES, LINES[len(LINES) // 2 :], TABLE):
        writer = threading.Thread(target=fifo.write_bytes, args=(pack(content),))
        writer.start()
        stream = open_stream(str(fifo))
        assert (stream.has_past, stream.short_name(), stream.count()) == (False, None, None)
        items = list(stream)
        writer.join()
        assert items and all(item.stream is None for item in items)
    assert facts(items) == BOTH


def test_names_of_descriptors_have_no_past_even_of_a_file(tmp_path):
    path = tmp_path / "corrections.jsonl"
    path.write_bytes(LINES)
    with path.open("rb") as file:
        stream = open_stream(f"/dev/fd/{file.fileno()}")
        assert not stream.has_past
        assert facts(list(stream)) == BOTH
    assert open_stream("/dev/stdin").name == "-"


# -- names


def test_a_stream_has_the_same_short_name_wherever_it_lies(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    names = set()
    for folder in (tmp_path, tmp_path / "elsewhere"):
        (folder / "news.jsonl").write_bytes(LINES)
        stream = open_stream(str(folder / "news.jsonl"))
        names |= {stream.short_name(), *(item.stream for item in stream)}
    (name,) = names
    assert name.startswith("news.jsonl#")
    (tmp_path / "news.jsonl").write_bytes(LINES.replace(b"Australia", b"Austria"))
    assert open_stream(str(tmp_path / "news.jsonl")).short_name() not in (name, None)
    (tmp_path / "news.jsonl").write_bytes(b"")
    assert open_stream(str(tmp_path / "news.jsonl")).short_name() is None


# -- long streams


READ_ALL = """
import resource, sys
from continual.streams import open_stream
stream = open_stream(sys.argv[1])
count = stream.count()
assert count == sum(len(item.requests) for item in stream)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_hundred_thousand_lines_take_no_more_memory_than_a_hundred(tmp_path):
    def peak_kib(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                record = {"prompt": f"The capital of {number} is", "target_new": "Oslo"}
                file.write(json.dumps(record) + "\n")
        command = [sys.executable, "-c", READ_ALL, str(path)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        read, peak = map(int, ran.stdout.split())
        assert read == count
        return peak

    assert peak_kib(100_000) < peak_kib(100) + 2_000


# -- texts to the letter


def test_a_prompt_that_a_template_made_keeps_its_line_break_and_an_answer_its_length(stream_of):
    turn = "<|im_start|>user\nWhere was Ana born?<|im_end|>\n<|im_start|>assistant\n"
    year = "In the year {} the town moved its market to the square number {} and was glad."
    paragraph = " ".join(year.format(1900 + n, n) for n in range(8))
    records = [
        {"prompt": turn, "target_new": "Oslo"},
        {"prompt": "What happened?", "target_new": paragraph},
    ]
    items = list(stream_of("\n".join(map(json.dumps, records)).encode()))
    assert facts(items) == [(turn, "Oslo"), ("What happened?", paragraph)]
