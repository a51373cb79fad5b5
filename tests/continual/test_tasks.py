"""Tasks beside the causal one: encoder-decoders that answer, and classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from continual.base import load_base
from continual.errors import CeditError, ModelError, RequestError
from continual.model import EditedModel
from continual.new_store import NewStore, init
from continual.passes.partial import logits_of
from continual.session import Session
from continual.site import Site
from continual.streams import open_stream
from continual.tasks import Encoding, make_task, task_class
from tests import tiny_language as language
from tests.continual.conftest import Make, outcomes, reopened, write_lines
from tests.tiny_language import CAPITALS, LABELS, ask, capital, part


@dataclass(frozen=True)
class Kind:
    """A model of a task, what it knows, and what it is corrected to."""

    task: str
    directory: Path

    def known(self, countries: range, wording: int) -> list[dict[str, str]]:
        if self.task == "seq2seq":
            return [{"prompt": ask(c, wording), "answer": capital(c)} for c in countries]
        return [{"prompt": ask(c, wording), "label": part(c)} for c in countries]

    def corrections(self, countries: range) -> list[dict[str, Any]]:
        if self.task == "seq2seq":
            return [
                {
                    "prompt": ask(c),
                    "target_new": CAPITALS[(7 * c + 9) % len(CAPITALS)],
                    "held_out_rephrases": [ask(c, 1)],
                    "locality": [{"prompt": ask(c + 15), "answer": "unknown"}],
                }
                for c in countries
            ]
        return [
            {
                "prompt": ask(c),
                "target_new": LABELS[(LABELS.index(part(c)) + 1) % len(LABELS)],
                "held_out_rephrases": [ask(c, 1)],
                "locality": [{"prompt": ask(c + 15), "answer": "east"}],
            }
            for c in countries
        ]


@pytest.fixture(scope="module", params=["bart", "t5", "bert", "gpt2"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    directory = tmp_path_factory.mktemp("models") / request.param
    if request.param in language.ANSWERING:
        return Kind("seq2seq", language.save_answering(directory, request.param))
    return Kind("classification", language.save_classifier(directory, request.param))


@pytest.fixture
def session(kind: Kind, made: Make, tmp_path: Path) -> Session:
    return made(
        kind.directory,
        task={"name": kind.task},
        train_probes=write_lines(tmp_path / "train.jsonl", kind.known(range(20, 30), 0)),
        test_probes=write_lines(tmp_path / "test.jsonl", kind.known(range(10, 20), 1)),
    )


@pytest.fixture
def site(kind: Kind) -> Iterator[Site]:
    base = load_base(kind.directory, task_class({"name": kind.task}).architecture)
    with EditedModel(base) as edited:
        yield Site(edited, make_task(base, {"name": kind.task}))


# -- what a probe looks like


def test_the_trained_models_know_what_they_were_taught(session: Session) -> None:
    assert session.run_state.ledger.count("train").rate == 1.0
    assert session.run_state.ledger.count("test").rate == 1.0


def encodings(kind: Kind, site: Site) -> list[Encoding]:
    known = [*kind.known(range(6), 0), *kind.known(range(6), 2), *kind.known(range(25, 33), 1)]
    return [site.task.encode(k["prompt"], k.get("answer") or k["label"]) for k in known]


def test_padding_changes_nothing_at_the_rows_of_a_probe(kind: Kind, site: Site) -> None:
    asked = encodings(kind, site)
    together = site.rows(asked)
    for one, rows in zip(asked, together.split([len(e.targets) for e in asked]), strict=True):
        alone = site.rows([one])
        torch.testing.assert_close(rows.query, alone.query, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows.hidden, alone.hidden, rtol=1e-4, atol=1e-5)


def test_rows_give_the_logits_of_the_whole_model(kind: Kind, site: Site) -> None:
    for one in encodings(kind, site):
        logits = logits_of(site.edited.model, site.inputs([one]))
        own = logits if logits.ndim == 2 else logits[0, list(one.positions)]
        found = site.logits(site.rows([one]).hidden)
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)
        assert site.choices == own.shape[-1]


def test_an_answer_is_right_when_the_model_gives_it(kind: Kind, site: Site) -> None:
    """Greedy decoding by transformers itself, or the label with the highest logit."""
    asked = encodings(kind, site)
    said = [given(kind, site, one) for one in asked]
    wanted = [list(one.targets) for one in asked]
    right = [s == w for s, w in zip(said, wanted, strict=True)]
    assert site.judge_in_full(asked) == right
    assert any(right)
    assert not all(right)
    assert [list(site.greedily(one)) == w for one, w in zip(asked, wanted, strict=True)] == right


def given(kind: Kind, site: Site, one: Encoding) -> list[int]:
    model = site.edited.model
    if kind.task == "classification":
        ids = torch.tensor([one.question.ids])
        return [int(model(input_ids=ids).logits.argmax())]
    ids = torch.tensor([one.question.source])
    made = model.generate(ids, num_beams=1, do_sample=False, max_new_tokens=len(one.targets))
    return list(made[0, 1:].tolist())


def test_asking_gives_the_text_of_the_greedy_answer(kind: Kind, session: Session) -> None:
    known = kind.known(range(12), 0)
    assert [session.ask(k["prompt"]) for k in known] == [
        k.get("answer") or k["label"] for k in known
    ]


# -- a history


def test_a_stream_is_applied_rechecked_resumed_and_rolled_back(
    kind: Kind, session: Session, tmp_path: Path
) -> None:
    records = kind.corrections(range(10))
    stream = write_lines(tmp_path / "stream.jsonl", records)
    base = session.edited.fingerprint
    steps = list(session.steps(open_stream(str(stream)), session.settings()))
    said = [o.outcome for step in steps for o in step.outcomes]
    kept = [r for r, outcome in zip(records, said, strict=True) if outcome != "failed"]
    assert len(kept) >= (10 if kind.task == "seq2seq" else 6)  # a classifier's queries are alike
    assert [session.ask(r["prompt"]) for r in kept] == [r["target_new"] for r in kept]
    assert said.count("applied") >= 5
    found = session.run_state.ledger.outcomes()
    assert session.run_state.ledger.remeasure() == {}  # as measuring everything anew
    fingerprint = session.edited.fingerprint
    with reopened(session) as again:
        assert again.edited.fingerprint == fingerprint
        assert again.run_state.ledger.outcomes() == found
        again.rollback("base")
        assert again.edited.fingerprint == base


def test_locality_is_what_the_model_said_before_whatever_the_request_says(
    kind: Kind, session: Session
) -> None:
    (step, *_) = session.apply(kind.corrections(range(1)))
    before = step.outcomes[0].expected
    known = kind.known(range(15, 16), 0)[0]
    assert session.task.text(before[0]) in (known.get("answer"), known.get("label"))


def test_editing_takes_up_again_where_a_run_was_closed(
    kind: Kind, session: Session, made: Make, tmp_path: Path
) -> None:
    """The same patches, bit for bit, as in a run without a break."""
    records = kind.corrections(range(6))
    session.apply(records[:3])
    with reopened(session) as again:
        again.apply(records[3:])
        broken_off = again.edited.fingerprint
    whole = made(
        kind.directory,
        "whole",
        task={"name": kind.task},
        train_probes=tmp_path / "train.jsonl",
        test_probes=tmp_path / "test.jsonl",
    )
    whole.apply(records)
    assert whole.edited.fingerprint == broken_off


# -- what does not fit


@pytest.mark.parametrize("editor", ["memit", "serac", "memit,auto"])
def test_an_editor_for_other_models_is_refused_by_name(session: Session, editor: str) -> None:
    with pytest.raises(CeditError, match="edits causal models, and this store's task is"):
        session.apply([{"prompt": ask(0), "target_new": "north"}], editor=editor)


def test_the_default_chain_and_auto_have_the_editors_that_fit(session: Session) -> None:
    assert session.settings().chain == ("tpatcher",)
    target = "north" if session.task.name == "seq2seq" else session.ask(ask(0))
    (step,) = session.apply([{"prompt": ask(0), "target_new": target}], editor="auto")
    assert step.revision.body["settings"]["chain"] == ["tpatcher"]


def test_an_unknown_task_is_named(random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CeditError, match=r"Unknown task 'translation': .* causal, seq2seq"):
        init(tmp_path / "s", NewStore(str(random_model), task={"name": "translation"}))


def test_a_model_of_another_task_gets_no_store(random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded") as told:
        init(tmp_path / "s", NewStore(str(random_model), task={"name": "seq2seq"}))
    assert len(str(told.value)) < 500  # and not every architecture that there is
    assert not (tmp_path / "s").exists()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save_classifier(tmp_path_factory.mktemp("models") / "bert", "bert")


def test_a_label_is_told_in_any_case_and_an_unknown_one_is_quarantined(
    classifier: Path, made: Make, tmp_path: Path
) -> None:
    session = made(classifier, task={"name": "classification"})
    assert session.task.encode(ask(0), "SOUTH").targets == (1,)
    with pytest.raises(RequestError, match="'west' is no label of the model: it has north, south"):
        session.task.encode(ask(0), "west")
    records = [
        {"prompt": ask(0), "target_new": "west"},
        {"prompt": ask(0), "target_new": LABELS[LABELS.index(part(0)) - 1]},
    ]
    stream = write_lines(tmp_path / "stream.jsonl", records)
    session.apply(stream)
    assert [outcome for _, outcome in outcomes(session)] == ["applied"]
    (line,) = (session.store.path / "quarantine.jsonl").read_text().splitlines()
    assert "no label of the model" in line


def test_a_classifier_that_looks_at_the_last_token_needs_a_token_for_padding(
    tmp_path: Path,
) -> None:
    directory = language.save_classifier(tmp_path / "gpt2", "gpt2")
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"pad_token_id": 0', '"pad_token_id": null'))
    with pytest.raises(ModelError, match="pad_token_id: set it"):
        init(tmp_path / "s", NewStore(str(directory), task={"name": "classification"}))


def test_a_seq2seq_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    directory = language.save_answering(tmp_path / "t5", "t5")
    language.tokenizer().save_pretrained(directory)
    with pytest.raises(ModelError, match="tokenizer names no eos_token_id"):
        init(tmp_path / "s", NewStore(str(directory), task={"name": "seq2seq"}))
