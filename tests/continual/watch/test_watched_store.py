"""A store on the atlas that watches general text and neighbours, as a new one does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from continual.editors.serac import Serac
from continual.editors.tpatcher import TPatcher
from continual.effects.records import EmbeddedRecords
from continual.embedded import ATLAS
from continual.errors import CeditError
from continual.history.inspection import details, rates_at
from continual.history.rehearsing import recompute
from continual.memory.encoder import SentenceEncoder
from continual.memory.inputs import Queries
from continual.memory.scope import ThresholdScope
from continual.new_store import NewStore, init
from continual.patches.neuron import NeuronPatch
from continual.proposals import Edit, EditContext, Proposal
from continual.recheck.ledger import WATCHED, Ledger
from continual.recheck.retention import outcomes_of
from continual.session import Session, open_session
from continual.step.editing import NARROWER_MAX
from continual.watch.neighbours import Neighbourhood
from continual.watch.passages import UNSAID, Passage
from tests.continual.conftest import write_lines

pytestmark = pytest.mark.watched
FEW = {"texts": 16, "tokens": 12, "neighbours": 12}
ONE = {"prompt": "The capital of France is", "target_new": "Lima", "subject": "France"}


def corrections(count: int) -> list[dict[str, Any]]:
    with ATLAS.corrections.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


def made(path: Path, watch: dict[str, Any] = FEW, **new: Any) -> Session:
    """A store with a few of the atlas's probes: to measure all of them takes longer than a test."""
    probes = {}
    for name, file in ATLAS.probes.items():
        with file.open(encoding="utf-8") as lines:
            few = path.with_name(f"{path.name}-{name}.jsonl")
            few.write_text("".join(islice(lines, 40)), encoding="utf-8")
        probes[f"{name}_probes"] = few
    return init(path, NewStore(watch=watch, **probes, **new))


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with made(tmp_path / "store") as opened:
        yield opened


def watched_outcomes(ledger: Ledger) -> dict[str, bool]:
    roles = {f":{role}:" for role in WATCHED}
    return {k: v for k, v in ledger.outcomes().items() if any(role in k for role in roles)}


def neighbourhoods(session: Session) -> list[Neighbourhood]:
    return [
        Neighbourhood.from_json(outcome.neighbours)
        for revision in session.store.lineage("head")
        for outcome in outcomes_of(revision.body)
    ]


def test_the_base_writes_the_same_text_with_the_same_seed(tmp_path: Path) -> None:
    bodies = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with made(tmp_path / name, seed=seed) as opened:
            bodies.append(opened.store.base.body["watch"])
    assert bodies[0] == bodies[1] != bodies[2]
    assert len(bodies[0]["passages"]) == FEW["texts"]


def test_what_is_expected_is_what_the_base_says(session: Session) -> None:
    for passage in session.run_state.general.text.held_out:
        ids = torch.tensor([passage.ids])
        said = session.model(input_ids=ids).logits[0, passage.first :].argmax(-1).tolist()
        assert all(t in (s, -1) for t, s in zip(passage.said, said, strict=True))


def test_a_new_store_measures_all_of_the_watch_set(session: Session) -> None:
    session.apply(corrections(4))
    rates = rates_at(session.store, session.store.head)
    assert rates["ER_incl"] == 1.0
    for name in ("Watch", "Neighbours", "Continuation", "Fluency"):
        assert rates[name] is not None
    assert rates["Watch"] == 1.0  # every neuron asks for its subject


def test_neighbours_do_not_state_the_fact_and_are_held_apart(session: Session) -> None:
    session.apply([ONE])
    (near,) = neighbourhoods(session)
    assert near.memory and near.held_out and near.behind
    questions = {p.ids[: p.first + 1] for p in near.held_out}
    assert questions.isdisjoint(p.ids[: p.first + 1] for p in near.memory)
    decode = session.tokenizer.decode
    stated = [p for p in near.held_out if "France" in decode(p.ids) and "Paris" in decode(p.said)]
    assert stated == []


def test_the_history_lends_its_prompts(session: Session) -> None:
    """Those of other relations are neighbours of the subject, those of its own are wordings."""
    session.apply([*of_other_relations(), {**ONE, "relation": "Capital"}])
    *_, near = neighbourhoods(session)
    has_prompts_of_others(session, near)
    assert Neighbourhood.from_json(near.to_json()) == near


def test_the_stream_lends_its_prompts_to_the_requests_before_them(
    session: Session, tmp_path: Path
) -> None:
    stream = write_lines(
        tmp_path / "stream.jsonl", [{**ONE, "relation": "Capital"}, *of_other_relations()]
    )
    session.apply(str(stream))
    near, *_ = neighbourhoods(session)
    has_prompts_of_others(session, near)


def of_other_relations() -> list[dict[str, str]]:
    """Three requests: one says the same of another subject, two say something else."""
    relations = {"capital": "has a capital called", "money": "is paid for in", "sea": "lies on"}
    return [
        {"prompt": f"{subject} {words}", "target_new": "Lima", "subject": subject, "relation": name}
        for subject, (name, words) in zip(("Zug", "Pula", "Brno"), relations.items(), strict=True)
    ]


def has_prompts_of_others(session: Session, near: Neighbourhood) -> None:
    """The neighbourhood of ONE has the other relations' prompts, about its own subject."""
    decode = session.tokenizer.decode
    assert near.wordings == ("France has a capital called",)
    questions = {decode(p.ids[: p.first + 1]).strip() for p in (*near.memory, *near.held_out)}
    assert {"France is paid for in", "France lies on"} <= questions
    assert "France has a capital called" not in questions


def test_a_full_recheck_agrees_probe_by_probe(session: Session) -> None:
    session.apply(corrections(6))
    ledger = session.run_state.ledger
    before = ledger.outcomes()
    assert len(watched_outcomes(ledger)) > 100
    assert ledger.remeasure() == {}
    assert ledger.outcomes() == before


def test_a_store_that_is_opened_again_stands_where_it_stood(tmp_path: Path) -> None:
    with made(tmp_path / "store") as opened:
        opened.apply(corrections(6))
        before = opened.run_state.ledger.outcomes()
        memory = opened.run_state.memory.all()
    with open_session(tmp_path / "store") as again:
        assert again.run_state.ledger.outcomes() == before
        assert torch.equal(again.run_state.memory.all(), memory)


def test_steps_are_recomputed_to_the_same_bits(session: Session) -> None:
    session.apply(corrections(4))
    made_again = list(recompute(session, session.store.lineage("head")))
    assert [step.difference for step in made_again] == [None] * 4


class Loud(TPatcher):
    """An editor that adds a neuron of its own: it says Tokyo wherever the text has the word "a"."""

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        proposal = super().edit(edits, context)
        patch, tokenizer = proposal.patch, context.site.edited.tokenizer
        assert isinstance(patch, NeuronPatch)
        (token,) = tokenizer(" Tokyo")["input_ids"]
        value = 1000 * context.site.edited.model.get_output_embeddings().weight[token].clone()
        loud = NeuronPatch(
            patch.block,
            torch.cat([patch.keys, torch.zeros_like(patch.keys[:1])]),
            torch.cat([patch.bias, torch.ones(1)]),
            torch.cat([patch.values, value[None]]),
            (*patch.owners, patch.owners[0]),
            (*(patch.subjects or ("",) * len(patch.bias)), "a"),
        )
        return Proposal(loud, proposal.failed, proposal.notes)

    def objection(self, *_: object) -> None:
        """Let it be as large as it is."""


Loud.__name__ = "TPatcher"  # its settings are looked for beside it by this name
TOKYO = {"prompt": "The capital of France is", "target_new": "Tokyo", "subject": "France"}
FREE = {**FEW, "watch_max": 1.0, "neighbours_max": 1.0}


def loudly(path: Path, watch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Session:
    """A store whose answers have no end, edited by the loud editor."""
    monkeypatch.setattr("continual.editors.tpatcher.TPatcher", Loud)
    return made(path, watch, task={"terminator": ""})


def test_an_edit_that_changes_what_is_held_out_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loudly(tmp_path / "store", FEW, monkeypatch) as session:
        before = session.edited.fingerprint
        (step,) = session.apply([TOKYO], editor="tpatcher")
        (outcome,) = step.outcomes
        assert outcome.outcome == "failed"
        assert "that are held out, over" in str(outcome.reason)
        assert "no longer goes on with" in str(outcome.reason)
        assert session.edited.fingerprint == before
        assert rates_at(session.store, session.store.head)["Watch"] == 1.0


WIDE = FEW | {"neighbours_max": 1.0, "watch_max": 0.0}
FAR = {"ft-last": {"learning_rate": 0.05}}


@pytest.mark.parametrize(
    ("spread_max", "chain", "by"),
    [
        (0.0, ("ft-last",), None),
        (1.0, ("ft-last",), "ft-last"),
        (1.0, ("ft-last", "serac"), "serac"),
    ],
)
def test_the_last_editor_of_a_chain_may_spread_as_far_as_is_allowed(
    tmp_path: Path, spread_max: float, chain: tuple[str, ...], by: str | None
) -> None:
    watch = WIDE | {"spread_max": spread_max}
    with made(tmp_path / "store", watch, task={"terminator": ""}) as session:
        (step,) = session.apply([TOKYO], chain=chain, editors=FAR)
        (outcome,) = step.outcomes
        assert outcome.editor == by, outcome.reason
        assert (by == "ft-last") == (rates_at(session.store, session.store.head)["Watch"] < 1.0)


class Heeding(Loud):
    """The loud editor until its memory has more rows than at first."""

    tries: ClassVar[list[tuple[int, int]]] = []  # narrower retries, rows in memory

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        assert edits[0].near is not None
        self.tries.append((context.narrow, len(edits[0].near.query)))
        has_learned = self.tries[-1][1] > self.tries[0][1]
        return TPatcher.edit(self, edits, context) if has_learned else super().edit(edits, context)


Heeding.__name__ = "TPatcher"


def test_the_last_narrower_retry_has_what_it_changed_before_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Heeding.tries.clear()
    monkeypatch.setattr("continual.editors.tpatcher.TPatcher", Heeding)
    with made(tmp_path / "store", FEW, task={"terminator": ""}) as session:
        (step,) = session.apply([TOKYO], editor="tpatcher")
        assert step.outcomes[0].outcome == "applied"
        assert rates_at(session.store, session.store.head)["Watch"] == 1.0
    narrow, rows = zip(*Heeding.tries, strict=True)
    assert narrow == tuple(range(NARROWER_MAX + 1))
    assert len(set(rows[:-1])) == 1
    assert rows[-1] > rows[0]


def test_the_next_editor_of_a_chain_begins_as_wide_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    class Noted(Serac):
        def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
            tries.append(context.narrow)
            return super().edit(edits, context)

    Noted.__name__ = "Serac"
    monkeypatch.setattr("continual.editors.serac.Serac", Noted)
    with loudly(tmp_path / "store", FEW, monkeypatch) as session:
        (step,) = session.apply([TOKYO], editor="tpatcher,serac")
        assert step.outcomes[0].editor == "serac", step.outcomes[0].reason
    assert tries[0] == 0


class Everybody(ThresholdScope):
    """A scope in which a text is about a record as soon as it has one letter of it: the share of
    common letters is the score."""

    def scores(
        self, queries: Queries, records: EmbeddedRecords, pairs: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        shares = []
        for i, j in pairs:
            text, prompt = set(queries.texts[i]), set(records.records[j].prompt)
            shares.append(len(text & prompt) / len(text | prompt))
        return torch.tensor(shares)


def test_a_record_that_answers_its_neighbours_is_narrowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "continual.memory.recall.make_scope",
        lambda config: Everybody(SentenceEncoder(), threshold=0.05),
    )
    with made(tmp_path / "store", FEW) as session:
        (step,) = session.apply([ONE], editor="serac")
        assert step.outcomes[0].outcome == "applied", step.outcomes[0].reason
        (record,) = session.edited.memory.records
        assert record.score_min > 0.05
        assert rates_at(session.store, session.store.head)["Watch"] == 1.0
        made_again = list(recompute(session, session.store.lineage("head")))
        assert [one.difference for one in made_again] == [None]
    with open_session(tmp_path / "store") as again:
        assert again.edited.memory.records == [record]


def test_what_changed_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loudly(tmp_path / "store", FREE, monkeypatch) as opened:
        opened.apply([TOKYO], editor="tpatcher")
        record = details(opened.store, opened.store.head)
        assert record["Neighbours"] < 1.0
        change = record["changed"][0]
        assert change.keys() == {"role", "prompt", "before", "after"}
        assert change["before"] != change["after"] == "Tokyo"


def test_a_request_that_another_edit_answers_is_followed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loudly(tmp_path / "store", FREE, monkeypatch) as opened:
        (first,) = opened.apply([TOKYO], editor="tpatcher")
        spilt = {"prompt": "Spain has a capital called", "target_new": "Tokyo", "subject": "Spain"}
        monkeypatch.undo()
        (second,) = opened.apply([spilt], editor="tpatcher")
        (outcome,) = second.outcomes
        assert outcome.notes["answered_by"] == first.outcomes[0].id
        assert (outcome.outcome, second.patch_bytes) == ("applied", 0)


def test_text_of_a_user_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    texts = [{"text": f"The capital of country number {n} is a city."} for n in range(20)]
    file = write_lines(tmp_path / "own.jsonl", texts)
    with made(tmp_path / "store", text=(file,)) as opened:
        assert opened.run_state.general.text.source == "own.jsonl"
        revision = opened.watch()
        assert revision is not None
        assert opened.run_state.general.text.source == "base"
        opened.apply(corrections(2))
        assert rates_at(opened.store, opened.store.head)["Watch"] == 1.0


def certainties(session: Session, passages: Sequence[Passage]) -> list[tuple[int, float]]:
    """For each position the token that is measured there, and the base's highest probability."""
    found = []
    for passage in passages:
        with session.edited.bare(), torch.no_grad():
            logits = session.edited.model(torch.tensor([passage.ids])).logits[0, passage.first :]
        highest = logits.float().softmax(-1).amax(-1).tolist()
        found += list(zip(passage.said, highest, strict=True))
    return found


def test_held_out_text_is_measured_where_the_base_is_certain(tmp_path: Path) -> None:
    with made(tmp_path / "store") as opened:
        text = opened.run_state.general.text
        held_out = certainties(opened, text.held_out)
        assert all((token != UNSAID) == (p >= 0.5) for token, p in held_out)
        assert {token != UNSAID for token, _ in held_out} == {True, False}
        assert any(p < 0.5 and token != UNSAID for token, p in certainties(opened, text.memory))
    with made(tmp_path / "all", {**FEW, "certain_min": 0.0}) as opened:
        held_out = certainties(opened, opened.run_state.general.text.held_out)
        assert any(p < 0.5 and token != UNSAID for token, p in held_out)


def test_files_without_text_are_an_error(tmp_path: Path, session: Session) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(CeditError, match="text"):
        session.watch([empty])


def test_an_older_store_gets_its_text_before_the_next_edit(tmp_path: Path) -> None:
    with made(tmp_path / "store", {"texts": 0, "neighbours": 0}) as opened:
        opened.apply(corrections(2))
        assert rates_at(opened.store, opened.store.head)["Watch"] is None
    toml = tmp_path / "store" / "cedit.toml"
    lines = toml.read_text().splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if not line.startswith(("[watch]", "texts", "neighbours", "per_edit", "certain_min"))
    ]
    toml.write_text("".join(kept))
    with open_session(tmp_path / "store") as opened:
        opened.apply(corrections(3))
        operations = [revision.operation for revision in opened.store.lineage("head")]
        assert operations[:4] == ["base", "edit", "edit", "watch"]
        assert rates_at(opened.store, opened.store.head)["Watch"] is not None
        made_again = list(recompute(opened, opened.store.lineage("head")))
        assert len(made_again) > 2
        assert all(step.difference is None for step in made_again)
