"""Streams as people have them, from the command line: nothing is lost without a word."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Cedit, Start, request, save_model, write_lines
from tests.cli.test_commands import imports_of


def born(*names: str) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} was born in", "target_new": "Minsk"} for name in names]


def text_of(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def in_force(cedit: Cedit) -> int:
    return int(cedit("status", "--json").last["requests_active"])


# -- pipes


def test_a_pipe_of_the_same_name_is_read_each_time(
    cedit: Cedit, store: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    contents = [born("Ana Marlo"), born("Ana Vekt", "Ana Tuck", "Ana Pell"), born("Bor Vekt")]
    for content in contents:
        writer = threading.Thread(target=fifo.write_text, args=(text_of(content),))
        writer.start()
        ran = cedit("apply", fifo, "--json")
        writer.join()
        assert ran.last["read"] == len(content)
    assert in_force(cedit) == 5
    assert cedit("status", "--json").last["streams"] == {}


def test_a_process_substitution_counts_every_time(store: Path) -> None:
    script = f"""
    rec() {{ echo "{{\\"prompt\\": \\"$1 was born in\\", \\"target_new\\": \\"Minsk\\"}}"; }}
    {sys.executable} -m cli.main apply <(rec "Ana Marlo") --json
    {sys.executable} -m cli.main apply <(rec "Ana Vekt") --json
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", script]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [r["applied"] for r in records if r["type"] == "summary"] == [1, 1]


def test_standard_input_of_any_name_keeps_no_place(
    cedit: Cedit, start: Start, store: Path, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "one.jsonl", born("Ana Marlo"))
    for name in ("/dev/stdin", "-"):
        with file.open() as stdin:
            child = start("apply", name, "--json", stdin=stdin)
            assert child.wait(timeout=60) == 0
        head = cedit("show", "head", "--json").last
        assert head["seq"] == 1  # given again, it makes no revision
        assert [outcome["outcome"] for outcome in head["outcomes"]] == ["applied"]
    assert cedit("status", "--json").last["streams"] == {}


# -- files


def test_the_same_corrections_give_the_same_ids_wherever_they_lie(
    cedit: Cedit, store: Path, stream: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(store, tmp_path / "other")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = shutil.copy(stream, elsewhere / stream.name)
    here = cedit("apply", stream, "--json").last
    there = cedit("apply", moved, "--store", other, "--json").last
    assert here["head"] == there["head"]
    again = cedit("apply", moved)
    assert "Nothing new" in again.out


def test_a_place_that_an_older_version_kept_by_path_is_found(
    cedit: Cedit, store: Path, stream: Path
) -> None:
    from store import Draft, Store

    cedit("apply", stream, "--limit", 2)
    with Store.open(store, writable=True) as opened:
        ((name, state),) = opened.streams().items()
        head = opened.head
        old = {name: None, str(stream.absolute()): state}
        opened.commit(Draft("edit", head.id, head.fingerprint, {"streams": {}}, streams=old))
    assert cedit("apply", stream, "--json").last["read"] == 1


@pytest.mark.parametrize("pack", ["csv", "gz", "csv.gz"])
def test_what_a_spreadsheet_or_a_tool_wrote_is_applied(
    cedit: Cedit, store: Path, tmp_path: Path, pack: str
) -> None:
    table = "prompt,target_new,subject\nA is,Lyon,A\nB is,Oslo,B\n"
    lines = text_of(
        [{"prompt": "A is", "target_new": "Lyon"}, {"prompt": "B is", "target_new": "Oslo"}]
    )
    content = (table if "csv" in pack else lines).encode()
    file = tmp_path / f"corrections.{pack}"
    file.write_bytes(gzip.compress(content) if pack.endswith("gz") else content)
    ran = cedit("apply", file, "--json")
    assert (ran.code, ran.last["applied"], ran.last["quarantined"]) == (0, 2, 0)
    assert "Nothing new" in cedit("apply", file).out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("- prompt: a\n  target_new: b\n", "YAML"),
        ('{"statement": "x", "prefix": "y"}\n' * 3, "'prefix', 'statement'"),
        ('[{"event": "x", "fact": {"qas": []}}]', "--keys prompt=KEY"),
    ],
)
def test_another_kind_is_refused_as_a_whole_and_nothing_is_set_aside(
    cedit: Cedit, store: Path, tmp_path: Path, content: str, told: str
) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    ran = cedit("apply", file)
    assert ran.code == 1
    assert told in ran.err
    assert not (store / "quarantine.jsonl").exists()


def test_keys_say_which_key_is_which_on_the_command_line_and_in_the_settings(
    cedit: Cedit, store: Path, tmp_path: Path
) -> None:
    records = [{"prefix": "A is", "suffix": " Lyon", "country": "A", "n": 1}]
    file = write_lines(tmp_path / "odd.jsonl", records)
    ran = cedit(
        "apply", file, "--keys", "prompt=prefix,target_new=suffix", "--keys", "subject=country"
    )
    assert ran.code == 0
    assert "kept beside their requests: n (1)" in ran.out
    (outcome,) = cedit("show", "head", "--json").last["outcomes"]
    assert (outcome["prompt"], outcome["target_new"], outcome["extra"]) == (
        "A is",
        " Lyon",
        {"n": 1},
    )
    with (store / "cedit.toml").open("a") as settings:
        settings.write('\n[stream.keys]\nprompt = "prefix"\ntarget_new = "suffix"\n')
    write_lines(file, [*records, {"prefix": "B is", "suffix": " Oslo"}])
    assert cedit("apply", file, "--json").last["applied"] == 1
    wrong = cedit("apply", file, "--keys", "question=prefix")
    assert (wrong.code, "names no key of a correction" in wrong.err) == (1, True)
    assert cedit("apply", file, "--keys", "prompt").code == 2


def test_keys_nobody_knows_are_kept_and_counted_in_one_line(
    cedit: Cedit, store: Path, tmp_path: Path
) -> None:
    records = [{**request(n), "fact_id": f"geo_{n}", "case": n} for n in range(3)]
    records[2]["held_out_rephrase"] = "typo"
    ran = cedit("apply", write_lines(tmp_path / "ids.jsonl", records))
    assert ran.code == 0
    (line,) = (line for line in ran.out.splitlines() if "fact_id" in line)
    assert "fact_id (3), held_out_rephrase (1)" in line
    shown = cedit("show", "head")
    assert "beside it: case 2, fact_id geo_2, held_out_rephrase typo" in shown.out
    assert cedit("verify").code == 0


def test_a_key_that_looks_like_a_missing_one_is_named(
    cedit: Cedit, store: Path, tmp_path: Path
) -> None:
    records = [{"prompt": "A is", "target_new": "Lyon", "rephrase": "A's is", "subject": "Q"}]
    ran = cedit("apply", write_lines(tmp_path / "typo.jsonl", records))
    assert "Did you mean rephrases by rephrase?" in ran.out
    assert "1 request names a subject that the prompt does not" in ran.out


def test_the_reasons_of_what_is_quarantined_are_on_the_terminal(
    cedit: Cedit, store: Path, tmp_path: Path
) -> None:
    bad = ["not json", {"prompt": "A is", "target": "Lyon"}, "not json"]
    file = write_lines(tmp_path / "mixed.jsonl", [request(0), *bad, request(1)])
    ran = cedit("apply", file)
    assert ran.code == 3
    assert "quarantined, 2 records, lines 2, 4: not JSON" in ran.out
    assert "quarantined, line 3: no known format has these keys: 'prompt', 'target'" in ran.out
    assert "did you mean 'target_new' by 'target'?" in ran.out
    told = cedit("quarantine")
    assert told.out.count("mixed.jsonl") == 3
    assert told.out.splitlines()[-1] == "3 records in quarantine"
    (latest,) = cedit("quarantine", "-n", 1, "--json").records
    assert (latest["line"], latest["raw"]) == (4, "not json")
    assert "quarantined  line 2" in cedit("show", "@2").out


# -- given again


@pytest.fixture
def hopeless(store: Path) -> str:
    """An editor that gets nothing right."""
    with (store / "cedit.toml").open("a") as settings:
        settings.write("\n[editor.ft-last]\nsteps_max = 1\nlearning_rate = 1e-12\n")
    return "ft-last"


def test_what_failed_and_what_was_quarantined_can_be_given_again(
    cedit: Cedit, store: Path, tmp_path: Path, hopeless: str
) -> None:
    odd = {"question": "C is", "answer": "Rome"}
    file = write_lines(tmp_path / "all.jsonl", [request(0), odd, request(1)])
    first = cedit("apply", file, "--editor", hopeless)
    assert first.code == 3
    assert "2 failed, 1 quarantined" in first.out
    assert "--retry failed" in first.out and "--retry quarantined" in first.out
    again = cedit("apply", file)
    assert "Nothing new" in again.out
    assert "2 corrections of this history failed" in again.out
    assert "1 record of it went to quarantine" in again.out
    place = cedit("status", "--json").last["streams"]
    retried = cedit("apply", file, "--retry", "failed", "--json")
    assert (retried.code, retried.last["applied"], retried.last["failed"]) == (0, 2, 0)
    assert cedit("status", "--json").last["streams"] == place
    keys = ("--keys", "prompt=question,target_new=answer")
    assert cedit("apply", file, "--retry", "quarantined", "--json").last["read"] == 0
    read = cedit("apply", file, "--retry", "quarantined", *keys, "--json").last
    assert (read["read"], read["applied"]) == (1, 1)
    assert cedit("apply", file, "--retry", "quarantined", *keys, "--json").last["read"] == 0
    assert in_force(cedit) == 3


def test_everything_that_failed_is_given_again_without_a_stream(
    cedit: Cedit, store: Path, stream: Path, hopeless: str
) -> None:
    assert cedit("apply", stream, "--editor", hopeless, "--json").last["failed"] == 3
    assert cedit("apply", "--retry", "failed", "--json").last["applied"] == 3
    assert "Nothing to give again" in cedit("apply", "--retry", "failed").out
    assert cedit("apply").code == 2


def test_corrections_that_stand_already_make_one_step(
    cedit: Cedit, store: Path, stream: Path, tmp_path: Path
) -> None:
    cedit("apply", stream)
    more = write_lines(tmp_path / "more.jsonl", [request(n) for n in range(4)])
    ran = cedit("apply", more, "--limit", 1, "--json")
    assert (ran.last["read"], ran.last["skipped"], ran.last["applied"]) == (4, 3, 1)


# -- followed


def test_a_rotated_log_is_followed_into_its_new_file(
    cedit: Cedit, start: Start, store: Path, tmp_path: Path
) -> None:
    log = write_lines(tmp_path / "news.jsonl", born("Ana Marlo"))
    child = start("apply", log, "--follow", "--json")
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["applied"] == 1
    log.rename(tmp_path / "news.jsonl.1")
    write_lines(tmp_path / "new", born("Ana Vekt", "Ana Tuck")).rename(log)
    assert [json.loads(child.stdout.readline())["applied"] for _ in range(2)] == [1, 1]
    child.terminate()
    _, err = child.communicate(timeout=30)
    assert "another file now" in err
    assert in_force(cedit) == 3
    again = cedit("apply", log)
    assert "Nothing new: this history has read all of the stream, 2 records." in again.out


def test_a_log_that_is_cut_short_is_followed_from_its_beginning(
    cedit: Cedit, start: Start, store: Path, tmp_path: Path
) -> None:
    log = write_lines(tmp_path / "news.jsonl", born("Ana Marlo", "Ana Pell"))
    child = start("apply", log, "--follow", "--json")
    assert child.stdout is not None
    assert [json.loads(child.stdout.readline())["applied"] for _ in range(2)] == [1, 1]
    log.write_text("")
    time.sleep(1.2)  # longer than the file is left alone
    write_lines(log, born("Ana Vekt"))
    assert json.loads(child.stdout.readline())["applied"] == 1
    child.terminate()
    _, err = child.communicate(timeout=30)
    assert "cut short" in err
    assert in_force(cedit) == 3


# -- looking first


def test_a_dry_run_reads_and_changes_nothing(cedit: Cedit, store: Path, tmp_path: Path) -> None:
    records = [request(0), "not json", {**request(1), "fact_id": 7}]
    file = write_lines(tmp_path / "some.jsonl", records)
    ran = cedit("apply", file, "--dry-run")
    assert ran.code == 3
    assert "3 records to read: 2 requests, 0 in force already, 1 to be quarantined" in ran.out
    assert "The capital of country 1 is → Oslo  (subject: country 1)" in ran.out
    assert "fact_id (1)" in ran.out
    assert cedit("status", "--json").last["revisions"] == 1
    assert not (store / "quarantine.jsonl").exists()


@pytest.mark.parametrize("what", ["again", "missing", "empty", "yaml"])
def test_where_there_is_nothing_to_apply_no_model_is_loaded(
    cedit: Cedit, store: Path, stream: Path, what: str
) -> None:
    if what == "again":
        cedit("apply", stream)
    if what in ("empty", "yaml"):
        stream.write_text("" if what == "empty" else "- a: b\n")
    if what in ("again", "empty"):
        assert imports_of(("torch", "transformers"), "apply", str(stream)) == []
    else:
        source = stream if what == "yaml" else "nowhere.jsonl"
        begun = time.perf_counter()
        assert cedit("apply", source).code == 1
        assert time.perf_counter() - begun < 2


def test_an_empty_stream_says_that_it_is_empty(cedit: Cedit, store: Path, tmp_path: Path) -> None:
    ran = cedit("apply", write_lines(tmp_path / "none.jsonl", []))
    assert (ran.code, "The stream is empty" in ran.out) == (0, True)


def test_limits_of_streams_are_settings(cedit: Cedit, store: Path, stream: Path) -> None:
    settings = store / "cedit.toml"
    before = settings.read_text()
    settings.write_text(before + "\n[stream]\nline_bytes_max = 20\n")
    ran = cedit("apply", stream)
    assert "raise line_bytes_max under [stream] in cedit.toml" in ran.out
    settings.write_text(before + "\n[stream]\nline_bytes_max = 0\n")
    assert "[stream] line_bytes_max = 0" in cedit("apply", stream).err
    told = before.replace("[task]", "[task]\nprobes_max = 0").replace(
        "probes_max = 0", "probes_max = 1"
    )
    settings.write_text(told)
    many = {**request(5), "rephrases": ["a", "b"]}
    ran = cedit("apply", write_lines(stream, [many]))
    assert "raise probes_max under [task] in cedit.toml" in ran.out


# -- probes


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"prompt": "x and", "answer": "b"}\n',
        '{"prompt": "A\u2028B", "answer": "b"}\n'.encode(),
        b'[{"prompt": "x and", "answer": "b"}]',
        gzip.compress(b'{"prompt": "x and", "answer": "b"}\n'),
        b"prompt,answer\nx and,b\n",
    ],
)
def test_probe_files_are_read_as_streams_are(
    cedit: Cedit, model: Path, tmp_path: Path, content: bytes
) -> None:
    probes = tmp_path / "probes"
    probes.write_bytes(content)
    told = ("--model", model, "--train-probes", probes, "--no-watch", "--json")
    assert cedit("init", tmp_path / "new", *told).code == 0
    assert cedit("verify", "--store", tmp_path / "new").code == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"prompt": "x and"}\n', "line 1: 'answer' is missing"),
        (b'\n{"prompt": "x and", "answer": "b"', "line 2: not JSON"),
        (b"- prompt: x\n", "YAML"),
        (b"Frage,Antwort\nx,y\n", "no JSON object begins"),
    ],
)
def test_a_bad_probe_file_says_where_and_why(
    cedit: Cedit, model: Path, tmp_path: Path, content: bytes, told: str
) -> None:
    probes = tmp_path / "probes"
    probes.write_bytes(content)
    ran = cedit("init", tmp_path / "new", "--model", model, "--train-probes", probes)
    assert ran.code == 1
    assert told in ran.err
    assert not (tmp_path / "new").exists()


# -- asking, and terminals


def test_many_prompts_are_asked_with_one_model(
    cedit: Cedit, store: Path, stream: Path, tmp_path: Path
) -> None:
    cedit("apply", stream)
    file = tmp_path / "prompts"
    prompts = [request(n)["prompt"] for n in range(3)]
    lines = [prompts[0], json.dumps(prompts[1]), json.dumps({"prompt": prompts[2]})]
    file.write_text("\n".join(lines) + "\n\n")
    answers = cedit("ask", "--file", file, "--json", "--tokens", 6).records
    alone = [cedit("ask", prompt, "--json", "--tokens", 6).last for prompt in prompts]
    assert answers == alone
    assert cedit("ask", "--file", file, "one more").code == 2
    file.write_text('{"answer": "x"}\n')
    assert "line 1 has no prompt" in cedit("ask", "--file", file).err


def test_characters_that_a_terminal_lacks_are_replaced(
    store: Path, stream: Path, cedit: Cedit
) -> None:
    cedit("apply", stream)
    for arguments in (("show", "head"), ("show", "head", "--json"), ("log",), ("status",)):
        child = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=True,
        )
        assert child.stdout.isascii() and child.stderr == b""
        if "--json" in arguments:
            assert json.loads(child.stdout) == cedit(*arguments).last


# -- a base that was moved


def test_a_base_that_was_moved_is_named_with_its_setting_and_can_be_found_again(
    cedit: Cedit, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    store = tmp_path / "own"
    assert cedit("init", store, "--model", folder, "--no-watch").code == 0
    monkeypatch.setenv("CEDIT_STORE", str(store))
    moved = folder.rename(tmp_path / "moved")
    ran = cedit("ask", "a")
    assert ran.code == 1
    assert "([model] path)" in ran.err and "cedit relocate DIR" in ran.err
    before = (store / "cedit.toml").read_text()
    save_model(tmp_path / "another", seed=1)
    assert cedit("relocate", tmp_path / "another").code == 21
    assert cedit("relocate", tmp_path).code == 1
    assert (store / "cedit.toml").read_text() == before
    assert cedit("relocate", moved, "--json").last["model"] == str(moved)
    assert cedit("ask", "a").code == 0
    assert "damaged" not in cedit("verify").out
