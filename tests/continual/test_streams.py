"""Streams: every byte sequence becomes items, and the place of reading can be found again."""

import hashlib
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from continual.errors import StreamChanged, StreamError, StreamReplaced
from continual.requests import Limits
from continual.streams import ROLLING_START, Item, Stream, open_stream, resume


def line(number: int = 0) -> bytes:
    return json.dumps({"prompt": f"prompt {number}", "target_new": "x"}).encode()


THREE = b"\n".join(map(line, range(3))) + b"\n"


@pytest.fixture
def stream_of(tmp_path):
    def write(content: bytes, **options: object) -> Stream:
        path = tmp_path / "corrections.jsonl"
        path.write_bytes(content)
        return open_stream(str(path), **options)

    return write


def prompts(items: list[Item]) -> list[str]:
    return [request.prompt for item in items for request in item.requests]


def only_reason(stream: Stream) -> str:
    (item,) = stream
    assert item.requests == ()
    assert item.reason is not None
    return item.reason


@pytest.mark.parametrize(
    "content",
    [
        THREE,
        THREE.removesuffix(b"\n"),
        THREE.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + THREE,
        b"\xef\xbb\xbf\n" + THREE,
        b"[" + b",".join(map(line, range(3))) + b"]",
        b"\xef\xbb\xbf\n [" + b"\n ,\n".join(map(line, range(3))) + b"\n]\n\n",
        b"\xef\xbb\xbf"
        + json.dumps([json.loads(line(number)) for number in range(3)], indent=2).encode(),
    ],
)
def test_every_layout_gives_the_same_requests(stream_of, content):
    items = list(stream_of(content))
    assert prompts(items) == ["prompt 0", "prompt 1", "prompt 2"]
    assert [item.position for item in items] == [1, 2, 3]


def test_blank_lines_are_skipped_and_counted(stream_of):
    items = list(stream_of(b"\n" + line(1) + b"\n \t\r\n\n" + line(2)))
    assert [(item.number, item.position) for item in items] == [(2, 1), (5, 2)]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"[]", b" [ \n ] "])
def test_a_stream_may_be_empty(stream_of, content):
    assert list(stream_of(content)) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"prompt": "\xff"}', "not UTF-8: invalid start byte at byte 12"),
        (b'{"prompt": ', "not JSON: Expecting value at character 11"),
        (b'{"prompt": NaN}', "NaN is not a number that JSON has"),
        (b'{"prompt": -Infinity}', "-Infinity is not a number that JSON has"),
        (b'{"prompt": 1, "prompt": 2}', "the key 'prompt' occurs more than once"),
        (b'{"a": {"\\ud800": 1, "\\ud800": 2}}', r"the key '\ud800' occurs more than once"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", "too many digits"),
        (b"7", "a record must be a JSON object"),
        (b"null", "a record must be a JSON object"),
        (b'{"question": "Who?"}', "no known format has these keys: 'question'"),
        (b'{"prompt": "a", "target_new": " "}', "plain: 'target_new' is empty"),
        (b'{"prompt": "a", "target_new": "\\ud800"}', "unpaired surrogate"),
        (b'{"prompt": "a", "target_new": "\\u0000"}', "NUL"),
    ],
)
def test_a_bad_line_says_why_and_the_stream_goes_on(stream_of, content, reason):
    bad, good = stream_of(content + b"\n" + line())
    assert reason in bad.reason
    assert bad.raw == content
    assert prompts([good]) == ["prompt 0"]


def test_the_elements_of_an_array_are_judged_one_by_one(stream_of):
    items = list(
        stream_of(b"[" + line() + b', {"a": NaN}, [1], "\xff", {"a" 1} ,' + line(1) + b"]")
    )
    assert [item.reason is None for item in items] == [True, False, False, False, False, True]
    assert [item.number for item in items] == [1, 2, 3, 4, 5, 6]
    assert items[1].raw == b'{"a": NaN}'


def test_quotes_and_brackets_inside_texts_do_not_end_an_element(stream_of):
    record = {"prompt": 'a ] } , [ { " \\', "target_new": "\\"}
    (item,) = stream_of(json.dumps([record]).encode())
    assert prompts([item]) == [record["prompt"]]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"[", 1),
        (b"[" + line(), 1 + len(line())),
        (b"[{]", 2),
        (b'[{"a": 1}, {"b": "x}]', 17),
        (b"[1,,2]", 3),
        (b"[1,]", 3),
        (b"[1] 2", 3),
    ],
)
def test_a_broken_array_names_the_byte_before_anything_is_given(stream_of, content, place):
    with pytest.raises(StreamError, match=rf"corrections\.jsonl is .* at byte {place}:"):
        next(iter(stream_of(content)))


def test_an_array_has_a_largest_size(stream_of):
    limits = Limits(array_bytes_max=100)
    fitting = b"[" + line() + b" " * (98 - len(line())) + b"]"
    assert len(list(stream_of(fitting, limits=limits))) == 1
    with pytest.raises(StreamError, match=r"more than 100 bytes.*array_bytes_max under \[stream\]"):
        list(stream_of(fitting[:-1] + b" ]", limits=limits))


def test_a_line_may_be_as_long_as_the_limit_and_no_longer(stream_of):
    limits = Limits(line_bytes_max=len(line()))
    assert len(prompts(list(stream_of(line(), limits=limits)))) == 1
    assert "more than the" in only_reason(stream_of(line() + b" ", limits=limits))


@pytest.mark.parametrize(("begin", "end"), [(b"", b"\n"), (b"[", b"]")])
def test_of_a_long_record_only_the_beginning_is_kept(stream_of, begin, end):
    long = b'"' + b"x" * 3_000_000 + b'"'
    item, *_ = stream_of(begin + long + (b"," if begin else b"\n") + line() + end)
    assert item.reason == (
        "the record has 3000002 bytes, more than the 1000000 allowed: shorten it, or raise "
        "line_bytes_max under [stream] in cedit.toml"
    )
    assert item.raw == long[:1000]
    link = bytes.fromhex(ROLLING_START) + hashlib.sha256(long).digest()
    assert item.rolling == hashlib.sha256(link).hexdigest()


@given(
    st.binary()
    | st.lists(
        st.sampled_from(
            [
                line(),
                b"[",
                b"]",
                b"{",
                b",",
                b'"',
                b"\n",
                b"\\",
                b"\r",
                b" ",
                b"\xef\xbb\xbf",
                b"NaN",
                b"\0",
            ]
        ),
        max_size=12,
    ).map(b"".join)
)
@example(b"[" * 100_000)
@example(b"x\n" + b"[" * 100_000)
def test_any_bytes_give_items_or_are_refused_as_a_whole(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "hostile.jsonl"
    path.write_bytes(content)
    try:
        items = list(open_stream(str(path), limits=Limits(line_bytes_max=60)))
    except StreamError as error:
        is_array = content.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\xef\xbb\xbf")[:1] == b"["
        assert is_array or "Nothing of it was applied" in str(error)
        assert is_array or line() not in content.splitlines()
        return
    assert [item.position for item in items] == list(range(1, len(items) + 1))
    for item in items:
        assert bool(item.requests) == (item.reason is None)
        assert json.loads(json.dumps(item.to_quarantine()))["line"] == item.number


@given(st.binary().filter(lambda raw: b"\n" not in raw))
def test_any_bytes_on_a_line_leave_the_next_line_as_it_is(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "hostile.jsonl"
    path.write_bytes(line(1) + b"\n" + raw + b"\n" + line(2))
    items = list(open_stream(str(path)))
    assert prompts([items[0], items[-1]]) == ["prompt 1", "prompt 2"]
    assert items[-1].number == 3


def test_the_chain_covers_all_bytes_so_far(stream_of):
    link = bytes.fromhex(ROLLING_START)
    for item in stream_of(THREE):
        link = hashlib.sha256(link + hashlib.sha256(item.raw).digest()).digest()
        assert item.rolling == link.hex()


def test_quarantined_text_is_kept_as_text_and_bytes_as_base64(stream_of):
    text, data = stream_of('{"ä"\n'.encode() + b"\xff\n")
    assert text.to_quarantine() == {"line": 1, "reason": text.reason, "raw": '{"ä"'}
    assert data.to_quarantine() == {"line": 2, "reason": data.reason, "raw_base64": "/w=="}


@pytest.mark.parametrize("position", [0, 1, 2, 3])
@pytest.mark.parametrize("content", [THREE, b"[" + THREE.strip().replace(b"\n", b",") + b"]"])
def test_a_stream_resumes_at_exactly_the_next_item(stream_of, content, position):
    stream = stream_of(content)
    items = list(stream)
    rolling = items[position - 1].rolling if position else ROLLING_START
    assert list(resume(stream, position, rolling)) == items[position:]


def test_a_stream_that_has_grown_resumes(stream_of):
    *_, last = stream_of(THREE.removesuffix(b"\n"))
    (new,) = resume(stream_of(THREE + line(3)), last.position, last.rolling)
    assert prompts([new]) == ["prompt 3"]
    assert new.number == 4


@pytest.mark.parametrize(
    "now", [b"", line(0) + b"\n", THREE.replace(b"prompt 1", b"prompt 9"), b"{}\n" + THREE]
)
def test_a_stream_whose_past_has_changed_does_not_resume(stream_of, now):
    _, second, _ = stream_of(THREE)
    with pytest.raises(StreamChanged, match=r"corrections\.jsonl .* first 2 records .* restore"):
        next(resume(stream_of(now), second.position, second.rolling))


def test_what_comes_after_the_place_may_change(stream_of):
    _, second, _ = stream_of(THREE)
    changed = stream_of(THREE.replace(b"prompt 2", b"prompt 9"))
    assert prompts(list(resume(changed, 2, second.rolling))) == ["prompt 9"]


def test_a_stream_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(THREE)
    assert open_stream("a.jsonl").name == str(tmp_path / "a.jsonl")
    assert open_stream("-").name == "-"


def test_a_stream_that_is_not_there_is_an_error_at_once(tmp_path):
    with pytest.raises(StreamError, match="does not exist: check the path"):
        open_stream(str(tmp_path / "none.jsonl"))
    with pytest.raises(StreamError, match="is a folder"):
        open_stream(str(tmp_path))


def test_a_stream_that_goes_away_is_an_error(stream_of):
    stream = stream_of(THREE)
    Path(stream.name).unlink()
    with pytest.raises(StreamError, match="cannot be read: No such file"):
        list(stream)


def test_an_error_of_the_reader_of_items_is_not_the_streams(stream_of):
    with pytest.raises(BrokenPipeError):
        for _ in stream_of(THREE):
            raise BrokenPipeError


@pytest.mark.parametrize("content", [THREE, b"[" + line() + b"]"])
def test_standard_input_is_a_stream(monkeypatch, content):
    class StandardInput:
        buffer = io.BytesIO(content)

    monkeypatch.setattr(sys, "stdin", StandardInput)
    assert prompts(list(open_stream("-")))[0] == "prompt 0"


def test_items_of_a_pipe_come_before_it_ends(monkeypatch):
    end, begin = os.pipe()
    with os.fdopen(end, "rb") as buffer, os.fdopen(begin, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", type("StandardInput", (), {"buffer": buffer}))
        items = iter(open_stream("-", follow=True))
        writer.write(line(1) + b"\n")
        assert next(items).number == 1
        writer.write(line(2) + b"\n")
        assert next(items).number == 2
        writer.close()
        assert next(items, None) is None


class Follower:
    """A followed stream read in a thread, with what it has given so far."""

    def __init__(self, path: Path, position: int = 0, rolling: str = ROLLING_START) -> None:
        self.items: list[Item] = []
        self.error: Exception | None = None
        self.stop = threading.Event()
        stream = open_stream(str(path), follow=True, poll_seconds=0.005, stop=self.stop)
        self.thread = threading.Thread(target=self._read, args=(stream, position, rolling))
        self.thread.start()

    def _read(self, stream: Stream, position: int, rolling: str) -> None:
        try:
            for item in resume(stream, position, rolling):
                self.items.append(item)
        except StreamError as error:
            self.error = error

    def wait_for(self, count: int) -> list[Item]:
        deadline = time.monotonic() + 10
        while len(self.items) < count and self.thread.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return self.items

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def test_a_followed_file_gives_lines_as_they_are_finished(tmp_path):
    path = tmp_path / "growing.jsonl"
    path.write_bytes(line(0) + b"\n" + line(1)[:9])
    with Follower(path) as follower:
        assert len(follower.wait_for(1)) == 1
        time.sleep(0.03)
        assert len(follower.items) == 1
        append(path, line(1)[9:] + b"\n")
        assert prompts(follower.wait_for(2)) == ["prompt 0", "prompt 1"]
    assert [item.number for item in follower.items] == [1, 2]


def test_an_empty_file_can_be_followed_and_an_unfinished_line_is_not_given(tmp_path):
    path = tmp_path / "growing.jsonl"
    path.touch()
    with Follower(path) as follower:
        append(path, line(0) + b"\n" + line(1))
        follower.wait_for(1)
    assert prompts(follower.items) == ["prompt 0"]


def test_a_last_line_that_was_read_without_its_newline_is_followed_from(tmp_path):
    path = tmp_path / "growing.jsonl"
    path.write_bytes(line(0) + b"\n" + line(1))
    *_, last = open_stream(str(path))
    with Follower(path, last.position, last.rolling) as follower:
        append(path, b"\n" + line(2) + b"\n")
        (new,) = follower.wait_for(1)
    assert (new.number, new.position) == (3, 3)


def test_a_last_line_that_grew_after_it_was_read_is_a_changed_stream(tmp_path):
    path = tmp_path / "growing.jsonl"
    path.write_bytes(line(0))
    (last,) = open_stream(str(path))
    with Follower(path, last.position, last.rolling) as follower:
        time.sleep(0.03)
        append(path, b" \n")
        follower.thread.join(timeout=10)
    assert isinstance(follower.error, StreamChanged)


def test_a_followed_file_that_is_replaced_is_read_to_its_end_and_then_another_stream(tmp_path):
    path = tmp_path / "growing.jsonl"
    path.write_bytes(line(0) + b"\n")
    with Follower(path) as follower:
        follower.wait_for(1)
        path.rename(tmp_path / "growing.jsonl.1")
        append(tmp_path / "growing.jsonl.1", line(1))  # its writer's last words, without an end
        (tmp_path / "new").write_bytes(line(2) + b"\n")
        (tmp_path / "new").rename(path)
        follower.thread.join(timeout=10)
    assert prompts(follower.items) == ["prompt 0", "prompt 1"]
    assert isinstance(follower.error, StreamReplaced)
    assert "another file now" in str(follower.error)


def test_a_followed_file_that_is_cut_short_is_a_changed_stream(tmp_path):
    path = tmp_path / "growing.jsonl"
    path.write_bytes(THREE)
    with Follower(path) as follower:
        follower.wait_for(3)
        path.write_bytes(b"")
        follower.thread.join(timeout=10)
    assert isinstance(follower.error, StreamChanged)
    assert "cut short" in str(follower.error)


def test_an_array_cannot_be_followed(stream_of):
    with pytest.raises(StreamError, match="cannot be followed"):
        list(stream_of(b"[" + line() + b"]", follow=True))


def test_a_stopped_stream_ends_after_the_current_item(stream_of):
    stop = threading.Event()
    given_items = []
    for item in stream_of(THREE, stop=stop):
        given_items.append(item)
        stop.set()
    assert len(given_items) == 1
