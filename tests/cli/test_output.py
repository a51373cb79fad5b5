"""What is printed, to whom."""

from __future__ import annotations

import json

import pytest

from cli.output import Output, columns, one_line, rate, size
from cli.watching import is_round


def test_json_is_for_programs_and_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).result({"answer": "Zürich\n"}, "Zürich")
    Output(as_json=False).result({"answer": "Zürich\n"}, "Zürich")
    line, text = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"answer": "Zürich\n"}
    assert text == "Zürich"


def test_a_table_in_a_file_has_no_blanks_at_the_ends_of_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(as_json=False).text(columns(("n", "name"), [(1, "a"), (20, "long" * 40)], right="n"))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [" n  name", " 1  a", "20  " + "long" * 40]


def test_brackets_and_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).text("[bold] :smile: [/x]")
    assert capsys.readouterr().out == "[bold] :smile: [/x]\n"


def test_what_would_move_the_cursor_is_spelt_out() -> None:
    assert one_line("a\nb\x1b[2Jc\u202ed é") == r"a\nb\x1b[2Jc\u202ed é"


def test_what_was_not_measured_is_a_dash() -> None:
    assert (rate(None), rate(0.98765), rate(1.0)) == ("–", "0.988", "1.000")


def test_sizes_have_units() -> None:
    assert [size(n) for n in (0, 1023, 1024, 5 * 2**20)] == ["0 B", "1023 B", "1.0 KiB", "5.0 MiB"]


def test_rows_become_sparse() -> None:
    assert [n for n in range(1, 1001) if is_round(n)] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
