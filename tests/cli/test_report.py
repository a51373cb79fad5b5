"""`cedit report`: the page and the facts, of small real stores."""

from __future__ import annotations

import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cli.report.markup import VOID
from store import Store
from tests.cli.conftest import Cedit, request, write_lines
from tests.cli.test_commands import imports_of

GOLDEN = Path(__file__).parents[1] / "store" / "golden"
HOSTILE = {
    "prompt": "</style><script>alert(1)</script> &amp; \u202eevil\x07 is",
    "target_new": "<img src=http://example.com/x onerror=alert(1)>",
}


class Page(HTMLParser):
    """What a browser sees: every element closed, its attributes, and all the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    @property
    def drawings(self) -> list[ElementTree.Element]:
        found = re.findall(r"<svg.*?</svg>", self.source, re.DOTALL)
        return [ElementTree.fromstring(drawing) for drawing in found]


def facts(cedit: Cedit) -> dict[str, Any]:
    ran = cedit("report", "--json")
    assert ran.code == 0, ran.err
    assert len(ran.records) == 1
    return ran.last


@pytest.fixture
def page(cedit: Cedit, tmp_path: Path) -> Any:
    """Render the store that commands find."""

    def rendered() -> Page:
        ran = cedit("report", "--output", tmp_path / "report.html")
        assert ran.code == 0, ran.err
        return Page(tmp_path / "report.html")

    return rendered


# -- the facts


def test_the_facts_are_those_of_the_history(cedit: Cedit, store: Path, stream: Path) -> None:
    cedit("apply", stream)
    status = cedit("status", "--json").last
    report = facts(cedit)
    assert report["title"]["head"] == status["head"]
    assert report["title"]["active"] == status["requests_active"] == 3
    assert report["title"]["revisions"] == 3
    assert report["rates"]["SR"] == status["SR"] == 1.0
    assert [point["seq"] for point in report["points"]] == [0, 1, 2, 3]
    assert report["points"][-1]["rates"] == report["rates"]
    assert report["corrections"]["counts"]["applied"] == 3
    assert report["settings"]["task"]["name"] == "causal"
    (editor,) = report["editors"]
    assert (editor["editors"], editor["steps"], editor["edits"]) == (["tpatcher"], 3, 3)
    patches = list((store / "patches").rglob("*.safetensors"))
    assert report["sizes"]["patch_count"] == len(patches)
    assert report["sizes"]["patches"] == sum(patch.stat().st_size for patch in patches)
    assert report["sizes"]["unnamed_patches"] == 0


def test_steps_keep_how_long_they_took(cedit: Cedit, store: Path, stream: Path) -> None:
    steps = [r for r in cedit("apply", stream, "--json").records if r["type"] == "step"]
    report = facts(cedit)
    assert report["steps"]["timed"] == report["steps"]["total"] == 3
    for step, kept in zip(steps, report["steps"]["times"], strict=True):
        assert kept["recheck_s"] == pytest.approx(step["recheck_s"], abs=1e-6)
        assert 0 < kept["edit_s"] < step["edit_s"]  # the commit is not in it
    every = [
        sum(t[name] for name in ("edit_s", "probe_s", "recheck_s"))
        for t in report["steps"]["times"]
    ]
    slowest = [time["seq"] for time in report["steps"]["slowest"]]
    assert slowest == sorted((1, 2, 3), key=lambda seq: -every[seq - 1])


def test_what_went_back_is_marked(cedit: Cedit, store: Path, stream: Path) -> None:
    cedit("apply", stream)
    taken = cedit("show", "@1", "--json").last["outcomes"][0]["id"]
    assert cedit("rollback", "@2").code == 0
    assert cedit("revert", taken).code == 0
    report = facts(cedit)
    rollback, revert = report["marks"]
    assert (rollback["kind"], rollback["place"], rollback["left"]) == ("rollback", 2, 3)
    assert (revert["kind"], revert["place"], revert["requests"]) == ("revert", 3, [taken])
    assert [one["request"]["id"] for one in report["corrections"]["reverted"]] == [taken]
    assert report["title"]["active"] == 1
    assert report["title"]["entries"] == 6


def test_what_was_superseded_and_quarantined_is_listed(
    cedit: Cedit, store: Path, tmp_path: Path, page: Any
) -> None:
    lines = [request(0, "Lyon"), '{"prompt": 3, "<b>broken', request(0, "Oslo")]
    assert cedit("apply", write_lines(tmp_path / "s.jsonl", lines)).code == 3
    found = facts(cedit)["corrections"]
    (superseded,) = found["superseded"]
    assert superseded["request"]["target_new"] == "Lyon"
    assert superseded["by"]["target_new"] == "Oslo"
    (bad,) = found["quarantined"]
    assert (bad["line"], bad["raw"]) == (2, '{"prompt": 3, "<b>broken')
    assert '{"prompt": 3, "<b>broken' in page().text


def test_an_edit_is_broken_until_it_is_right_again(
    cedit: Cedit, store: Path, stream: Path, page: Any
) -> None:
    cedit("apply", stream)
    broken = cedit("show", "@1", "--json").last["outcomes"][0]
    turn(store, 2, {f"{broken['id']}:edit:0": False})
    found = facts(cedit)["corrections"]
    assert [(b["request"]["id"], b["since_seq"]) for b in found["broken"]] == [(broken["id"], 2)]
    assert found["wrong"]["edit"] == 1
    assert found["repaired"] == []
    assert broken["prompt"] in page().text
    turn(store, 3, {f"{broken['id']}:edit:0": True})
    found = facts(cedit)["corrections"]
    assert found["broken"] == []
    (repaired,) = found["repaired"]
    assert (repaired["broke_seq"], repaired["mended_seq"]) == (2, 3)
    assert repaired["by"] == "a later step"


def test_the_corrections_in_force_are_listed(
    cedit: Cedit, store: Path, tmp_path: Path, page: Any
) -> None:
    lines = [{**request(0, "Lyon"), "target_old": "Gent"}, request(1, "Oslo"), request(2, "Rome")]
    cedit("apply", write_lines(tmp_path / "s.jsonl", lines))
    taken = cedit("show", "@3", "--json").last["outcomes"][0]["id"]
    assert cedit("revert", taken).code == 0
    newest, oldest = facts(cedit)["corrections"]["in_force"]
    listed = {c["id"]: c for c in cedit("list", "--json").records if c["type"] == "correction"}
    for row in (newest, oldest):
        known = listed.pop(row["request"]["id"])
        names = ("prompt", "target_new", "editor", "seq", "measured_at")
        assert [known[name] for name in names] == [
            *(row["request"][name] for name in ("prompt", "target_new")),
            *(row[name] for name in ("editor", "seq", "at")),
        ]
    assert listed == {}
    assert (newest["seq"], oldest["seq"]) == (2, 1)
    assert oldest["request"]["target_old"] == "Gent"
    assert newest["request"]["target_old"] is None
    shown = page()
    assert {"Gent", "Lyon", "Oslo", newest["at"][:10]} <= set(shown.texts)


def test_what_was_rolled_back_is_a_branch(
    cedit: Cedit, store: Path, stream: Path, tmp_path: Path, page: Any
) -> None:
    cedit("apply", stream)
    cedit("tag", "v1", "@1")
    cedit("tag", "left", "@3")
    cedit("rollback", "@1")
    cedit("apply", write_lines(tmp_path / "more.jsonl", [request(4, "Bonn")]))  # @5
    cedit("rollback", "@2")
    cedit("apply", write_lines(tmp_path / "late.jsonl", [request(5, "Graz")]))  # @7, upon @2
    cedit("rollback", "@5")
    report = facts(cedit)
    assert [stop["seq"] for stop in report["way"]] == [0, 1, 5]
    assert [stop["tags"] for stop in report["way"]] == [[], ["v1"], []]
    first, second = report["branches"]
    names = ("fork_seq", "place", "first_seq", "last_seq", "revisions", "applied", "left_seq")
    assert [first[name] for name in names] == [1, 1, 2, 3, 2, 2, 4]
    assert [second[name] for name in names] == [2, 2, 7, 7, 1, 1, 8]
    assert first["tags"] == ["left"]
    assert first["editors"] == ["tpatcher"]
    shown = page()
    assert "@2 to @3" in shown.texts
    assert any(text.startswith("@2 to @3 was rolled back: tpatcher") for text in shown.texts)
    assert "@1 is tagged v1" in shown.texts
    cedit("rollback", "@3")
    assert facts(cedit)["rates"] == first["rates"]


def test_the_page_has_a_chart_when_everything_is_rolled_back(
    cedit: Cedit, store: Path, stream: Path, page: Any
) -> None:
    cedit("apply", stream)
    cedit("rollback", "base")
    shown = page()
    assert any(text.startswith("@1 to @3 was rolled back") for text in shown.texts)
    assert "None." in shown.texts  # of the corrections in force


def test_the_numbers_above_are_those_of_the_lists(
    cedit: Cedit, store: Path, stream: Path, page: Any
) -> None:
    cedit("apply", stream)
    with Store.open(store, writable=True) as opened:
        record = opened.ledger(3) or {}
        identity = opened.revision("@1").body["requests"][0]["id"]
        opened.record_ledger(3, {**record, "turned": {f"{identity}:edit:0": False}})
    shown = page()
    assert "1 broken now; none: failed, quarantined, repaired, superseded, reverted." in shown.text
    assert re.search(r"Answered wrongly at head: prompts 1[,.]", shown.text)


def turn(store: Path, seq: int, turned: dict[str, bool]) -> None:
    """Let the ledger say that probes turned at a revision."""
    with Store.open(store, writable=True) as opened:
        record = opened.ledger(seq) or {}
        opened.record_ledger(seq, {**record, "turned": {**record["turned"], **turned}})


# -- the page


def test_an_empty_store_has_a_page(store: Path, page: Any) -> None:
    shown = page()
    assert "Nothing was measured after an edit yet." in shown.text
    assert shown.drawings == []


def test_a_page_needs_nothing_else(cedit: Cedit, store: Path, stream: Path, page: Any) -> None:
    cedit("apply", stream)
    shown = page()
    assert shown.tags.isdisjoint({"script", "link", "img", "iframe", "object", "base"})
    for _, attributes in shown.elements:
        assert attributes.keys().isdisjoint({"src", "style", "onload", "xlink:href"})
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    links = [attributes["href"] for _, attributes in shown.elements if "href" in attributes]
    assert len(set(ids)) == len(ids)
    assert {f"#{name}" for name in ids} >= set(links) >= {"#corrections-in-force", "#time"}
    assert "url(" not in shown.source
    assert "@import" not in shown.source
    addresses = set(re.findall(r"https?://[^\s\"'<]+", shown.source))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nothing is fetched from


def test_the_drawings_are_svg_with_titles(
    cedit: Cedit, store: Path, stream: Path, page: Any
) -> None:
    cedit("apply", stream)
    cedit("rollback", "@2")
    drawings = page().drawings
    assert len(drawings) == 4  # metrics and durations, for wide and for narrow windows
    name = "{http://www.w3.org/2000/svg}"
    for drawing in drawings:
        assert drawing.tag == f"{name}svg"
        assert drawing.findall(f"{name}polyline")
        assert len(drawing.findall(f"{name}rect/{name}title")) >= 2
    (flag,) = drawings[0].findall(f"{name}g/{name}title")
    assert flag.text == "@4: rolled back from @3 to here"


def test_hostile_texts_stay_texts(cedit: Cedit, store: Path, tmp_path: Path, page: Any) -> None:
    cedit("apply", write_lines(tmp_path / "s.jsonl", [HOSTILE, {**HOSTILE, "target_new": "b"}]))
    shown = page()
    assert shown.tags.isdisjoint({"script", "img"})
    assert r"</style><script>alert(1)</script> &amp; \u202eevil\x07 is" in shown.texts
    assert HOSTILE["target_new"] in shown.texts
    assert not {"\u202e", "\x07"} & set(shown.source)


def test_a_long_text_is_folded_and_whole(
    cedit: Cedit, store: Path, tmp_path: Path, page: Any
) -> None:
    line = "x" * 10_000
    cedit("apply", write_lines(tmp_path / "s.jsonl", [line, request(0)]))
    shown = page()
    fold = shown.elements.index(("details", {"class": "fold"}))
    assert shown.elements[fold + 1][0] == "summary"
    assert f"{'x' * 160}…" in shown.texts
    assert line in shown.texts


def test_a_long_table_says_how_many_more_there_are(
    cedit: Cedit, store: Path, tmp_path: Path, page: Any
) -> None:
    cedit(
        "apply", write_lines(tmp_path / "s.jsonl", [*(f"bad {n}" for n in range(25)), request(0)])
    )
    shown = page()
    assert "bad 19" in shown.texts
    assert "bad 20" not in shown.texts
    assert "and 5 more: " in shown.texts


@pytest.mark.parametrize("number", [1, 2, 3])
def test_golden_stores_have_a_page(
    cedit: Cedit, tmp_path: Path, page: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with tarfile.open(GOLDEN / f"format-{number}.tar.gz") as archive:
        archive.extractall(tmp_path / "golden")
    (toml,) = (tmp_path / "golden").rglob("cedit.toml")
    monkeypatch.setenv("CEDIT_STORE", str(toml.parent))
    assert cedit("migrate").code == 0
    shown = page()
    report = facts(cedit)
    assert report["title"]["head"][:12] in shown.texts
    assert report["steps"]["timed"] == 0  # these are older than durations
    assert report["steps"]["seconds"] is None


# -- the file


def test_a_report_is_replaced_and_nothing_else_is(
    cedit: Cedit, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cedit("report").code == 0
    assert cedit("report").code == 0
    Path("report.html").write_text("<p>mine</p>")
    ran = cedit("report")
    assert ran.code == 1
    assert "--force" in ran.err
    assert Path("report.html").read_text() == "<p>mine</p>"
    assert cedit("report", "--force").code == 0
    assert Page(Path("report.html")).texts
    assert cedit("report", "--output", tmp_path, "--force").code == 1
    assert list(tmp_path.glob(".tmp-*")) == []


def test_json_alone_writes_no_page(
    cedit: Cedit, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cedit("report", "--json").last["type"] == "report"
    assert not Path("report.html").exists()
    assert cedit("report", "--json", "--output", "both.html").last["type"] == "report"
    assert Path("both.html").exists()


def test_a_report_needs_no_torch_and_no_lock(store: Path, tmp_path: Path) -> None:
    with Store.open(store, writable=True):
        wanted = ("report", "--output", str(tmp_path / "page.html"))
        assert imports_of(("torch", "transformers"), *wanted) == []
