"""Sessions: runs are killed and go on, histories walked back and forth, stores opened twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import continual
from continual.base import WrongBaseModel
from continual.editors.chains import chain_of
from continual.errors import CeditError, ModelError, RequestError
from continual.new_store import NewStore, init
from continual.passes.partial import logits_of
from continual.recheck import run_state
from continual.session import Session, open_session
from continual.step.settings import Recheck
from continual.streams import open_stream
from continual.watch.config import UNWATCHED
from store import StoreError
from store.check import verify
from store.errors import NoStore, StoreLocked, UnknownRevision
from tests import tiny_language as language
from tests.continual.conftest import answers, outcomes, reopened, write_lines
from tests.tiny_language import CAPITALS, COUNTRIES, ask, capital, correction

KILLS = 20 if os.environ.get("CEDIT_FULL") else 5


# -- killed and resumed

PRELOADED = [  # once for all processes, as loading them takes longer than the runs
    "continual.session",
    "continual.editors.tpatcher",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "tests.tiny_language",
    "pytest",
]


def run_through(store: Path, stream: Path, size: int, said: Any) -> None:
    """A process of its own: apply the whole stream, and say each step when it is acknowledged."""
    torch.set_num_threads(1)
    with open_session(store) as session:
        said.send("ready")
        for step in session.steps(open_stream(str(stream)), session.settings(batch_size=size)):
            said.send(step.revision.id)
    said.send("done")


def lines() -> list[dict | str]:
    """Seventy lines with everything in them: probes, repeats, a change of mind, bad lines."""
    made: list[dict | str] = []
    for n in range(60):
        country = 10 + n % 30
        made.append(
            correction(
                country,
                CAPITALS[(n // 30 + country) % 40],
                held_out_rephrases=[ask(country, 1)],
                locality=[{"prompt": ask((n * 7) % 30, 2), "answer": capital((n * 7) % 30)}],
            )
        )
    for place, line in ((55, "{not json"), (40, made[39]), (30, ""), (12, "[]"), (7, made[0])):
        made.insert(place, line)
    return made


class Runner:
    """Runs streams in processes that may be killed."""

    def __init__(self, stream: Path, size: int) -> None:
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(PRELOADED)
        self._stream, self._size = stream, size

    def run(self, store: Path, kill_after: int | None = None, pause_s: float = 0.0) -> list[str]:
        """The revisions acknowledged, and "done" at the end; killed `pause_s` after so many, when
        it has the store open."""
        hears, says = self._processes.Pipe(duplex=False)
        child = self._processes.Process(
            target=run_through, args=(store, self._stream, self._size, says)
        )
        child.start()
        says.close()
        heard: list[str] = []
        try:
            assert hears.recv() == "ready"
            while len(heard) != kill_after:
                heard.append(hears.recv())
            time.sleep(pause_s)
        except EOFError:
            pass
        child.kill()
        child.join()
        while hears.poll():  # what it had said before it was killed
            try:
                heard.append(hears.recv())
            except EOFError:
                break
        return heard


def told(store: Path) -> dict[str, Any]:
    """All that a history says, but for ids, times and where the stream lies."""
    with open_session(store) as session:
        lineage = session.store.lineage("head")
        session.settle()
        ledgers = [dict(session.store.ledger(revision.seq) or {}) for revision in lineage]
        for ledger in ledgers:
            for name in ("at", "edit_s", "probe_s", "recheck_s"):
                ledger.pop(name, None)
        (stream,) = session.store.streams().values()
        return {
            "fingerprints": [revision.fingerprint for revision in lineage],
            "patches": [revision.patch and revision.patch.sha256 for revision in lineage],
            "requests": [revision.body.get("requests") for revision in lineage],
            "outcomes": outcomes(session),
            "ledgers": ledgers,
            "stream": stream,
            "quarantined": [entry["line"] for entry in session.store.quarantined()],
            "sound": [problem for problem in verify(session.store) if not problem.harmless],
        }


@pytest.mark.parametrize("size", [1, 4])
def test_a_run_killed_at_random_times_ends_where_an_uninterrupted_one_does(
    knowing_model, probe_files, tmp_path, size
):
    new = NewStore(str(knowing_model), watch=UNWATCHED, **probe_files)
    stream = write_lines(tmp_path / "stream.jsonl", lines())
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for path in (straight, broken):
        init(path, new).close()
    runner = Runner(stream, size)
    assert runner.run(straight)[-1] == "done"

    chance = random.Random(size)
    acknowledged: list[str] = []
    killed = 0
    for _ in range(KILLS):
        heard = runner.run(broken, chance.randrange(0, 16 // size), chance.uniform(0, 0.05))
        killed += "done" not in heard
        acknowledged += [identity for identity in heard if identity != "done"]
        with open_session(broken, writable=False) as session:
            present = [revision.id for revision in session.store.lineage("head")][1:]
        assert present[: len(acknowledged)] == acknowledged  # nothing acknowledged is lost
        assert len(present) - len(acknowledged) in (0, 1)
        acknowledged = present
    assert killed >= 3
    runner.run(broken)
    expected, found = told(straight), told(broken)
    assert found["fingerprints"][-1] == expected["fingerprints"][-1]
    assert found == expected
    assert expected["quarantined"] == [14, 60]
    assert expected["sound"] == []


# -- back and forth


def asked(session: Session) -> torch.Tensor:
    """The logits for all countries, as bits to compare."""
    ids = session.tokenizer([ask(c) for c in range(40)], return_tensors="pt")
    return logits_of(session.model, dict(ids))


HISTORY = [
    *[correction(c) for c in range(20, 30)],
    correction(22, CAPITALS[1]),
    correction(25, capital(25)),  # takes a correction back
    {"prompt": "the capital of Erewhon is", "target_new": CAPITALS[1]},
    correction(31, f"{CAPITALS[2]} {CAPITALS[3]}"),
]


def test_every_revision_comes_back_bit_for_bit(knowing):
    states = {"base": (knowing.edited.fingerprint, asked(knowing))}
    for step in knowing.apply_requests(
        [continual.requests.Request.from_json(r) for r in HISTORY], knowing.settings()
    ):
        states[step.revision.id] = (knowing.edited.fingerprint, asked(knowing))
    names = list(states)
    chance = random.Random(7)
    for name in [chance.choice(names) for _ in range(12)] + ["base", names[-1]]:
        target = knowing.rollback(name)
        fingerprint, logits = states[name]
        assert knowing.store.head.id == target.id
        assert knowing.edited.fingerprint == target.fingerprint == fingerprint
        assert torch.equal(asked(knowing), logits)
    again = reopened(knowing)
    try:
        assert torch.equal(asked(again), states[names[-1]][1])
        for name in chance.sample(names, 5):
            again.stand_at(name)
            assert torch.equal(asked(again), states[name][1])
    finally:
        again.close()


def test_a_rollback_takes_the_metrics_and_the_retained_requests_back(knowing):
    steps = knowing.apply(HISTORY[:6])
    active = len(knowing.run_state.retention.requests)
    knowing.rollback("head~2")
    assert len(knowing.run_state.retention.requests) == active - 2
    assert len(knowing.run_state.memory.edits) == 4
    (step,) = knowing.apply([HISTORY[4]])
    assert step.measured.rates == steps[4].measured.rates
    assert step.revision.fingerprint == steps[4].revision.fingerprint


@pytest.mark.parametrize("together", [1, 5, run_state.REGISTERED_TOGETHER])
def test_what_is_registered_on_opening_is_what_the_steps_had_registered(
    knowing, monkeypatch, together
):
    monkeypatch.setattr(run_state, "REGISTERED_TOGETHER", together)
    knowing.apply(HISTORY)
    outcomes_then = knowing.run_state.ledger.outcomes()
    edits_then = knowing.run_state.memory.edits.clone()
    again = reopened(knowing)
    try:
        assert again.run_state.ledger.outcomes() == outcomes_then
        assert torch.equal(again.run_state.memory.edits, edits_then)
    finally:
        again.close()


def test_after_a_rollback_the_stream_goes_on_from_that_revision(knowing, tmp_path):
    stream = write_lines(tmp_path / "stream.jsonl", HISTORY[:8])
    steps = knowing.apply(stream)
    knowing.rollback("head~3")
    again = reopened(knowing)
    try:
        resumed = again.apply(stream)
        assert [s.outcomes[0].id for s in resumed] == [s.outcomes[0].id for s in steps[5:]]
        assert again.edited.fingerprint == steps[-1].revision.fingerprint
        again.rollback(steps[-1].revision.id)  # forward, to what had been undone
        assert again.apply(stream) == []
        again.rollback("base")
        assert len(again.apply(stream)) == 8
    finally:
        again.close()


def test_nothing_is_lost_by_a_rollback(knowing):
    steps = knowing.apply(HISTORY[:4])
    knowing.rollback("base")
    kept = {revision.id for revision in knowing.store.revisions()}
    assert {step.revision.id for step in steps} <= kept
    assert answers(knowing, HISTORY[:4]) == [False] * 4
    knowing.rollback(steps[-1].revision.id[:8])
    assert answers(knowing, HISTORY[:4]) == [True] * 4


def test_looking_at_an_earlier_revision_does_not_lead_the_next_step_astray(knowing):
    knowing.apply(HISTORY[:2])
    knowing.stand_at("base")
    (step,) = knowing.apply([HISTORY[2]])
    assert step.outcomes[0].outcome == "applied"
    again = reopened(knowing)
    try:
        assert answers(again, HISTORY[:3]) == [True] * 3
    finally:
        again.close()


def test_a_name_that_no_revision_has_moves_nothing(knowing):
    knowing.apply(HISTORY[:2])
    head, before = knowing.store.head.id, asked(knowing)
    for name in ("nowhere", "head~9", "@99"):
        with pytest.raises(UnknownRevision):
            knowing.rollback(name)
    assert knowing.store.head.id == head
    assert torch.equal(asked(knowing), before)


# -- streams that change


def test_a_stream_that_has_grown_goes_on_with_what_is_new(knowing, tmp_path):
    stream = write_lines(tmp_path / "stream.jsonl", HISTORY[:3])
    assert len(knowing.apply(stream)) == 3
    write_lines(stream, HISTORY[:5])
    assert [s.outcomes[0].outcome for s in knowing.apply(stream)] == ["applied"] * 2
    assert knowing.apply(stream) == []


def test_a_changed_stream_is_read_again_from_its_beginning(knowing, tmp_path):
    stream = write_lines(tmp_path / "stream.jsonl", HISTORY[:4])
    knowing.apply(stream)
    write_lines(stream, [HISTORY[0], HISTORY[7], *HISTORY[2:4]])
    heard: list[str] = []
    steps = knowing.steps(open_stream(str(stream)), knowing.settings(), on_change=heard.append)
    said = [sorted(outcome.outcome for outcome in step.outcomes) for step in steps]
    assert said == [["applied", "repeated"], ["repeated", "repeated"]]
    assert len(heard) == 1 and "changed or are gone" in heard[0]
    assert answers(knowing, [*HISTORY[:4], HISTORY[7]]) == [True] * 5


def test_a_stream_that_was_cut_short_is_read_again(knowing, tmp_path):
    stream = write_lines(tmp_path / "stream.jsonl", HISTORY[:4])
    knowing.apply(stream)
    write_lines(stream, HISTORY[:2])
    assert knowing.apply(stream) == []  # all of it is in force
    write_lines(stream, [*HISTORY[:2], HISTORY[7]])
    (step,) = knowing.apply(stream)
    assert sorted(o.outcome for o in step.outcomes) == ["applied", "repeated", "repeated"]


# -- a model that is saved


def test_a_model_is_not_saved_without_its_edits(knowing, tmp_path):
    knowing.model.save_pretrained(tmp_path / "bare")
    knowing.apply(HISTORY[:1], editor="grace")
    with pytest.raises(ModelError, match=r"stand beside its weights.*cedit export FILE"):
        knowing.model.save_pretrained(tmp_path / "edited")
    assert not (tmp_path / "edited").exists()
    knowing.rollback("base")
    knowing.model.save_pretrained(tmp_path / "again")
    names = ("bare", "again")
    bare, again = ((tmp_path / n / "model.safetensors").read_bytes() for n in names)
    assert bare == again


def test_edits_of_weights_are_saved_with_the_model(knowing, tmp_path):
    knowing.apply(HISTORY[:1], editor="ft-last")
    knowing.model.save_pretrained(tmp_path / "edited")
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    own = knowing.model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())
    base = hf.AutoModelForCausalLM.from_pretrained(knowing.store.settings["model"]["path"])
    assert any(not torch.equal(tensor, own[n]) for n, tensor in base.state_dict().items())


# -- opening


def test_another_base_model_is_refused(made, knowing_model, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(knowing_model, directory)
    session = made(directory)
    session.apply(HISTORY[:1])
    session.close()
    shutil.rmtree(directory)
    language.save_decoder(directory)
    with pytest.raises(WrongBaseModel, match="fingerprint") as caught:
        open_session(session.store.path)
    assert caught.value.exit_code == 21
    shutil.rmtree(directory)
    with pytest.raises(ModelError, match=r"is not in .* any more"):
        open_session(session.store.path)
    shutil.copytree(knowing_model, directory)
    with open_session(session.store.path) as back:
        assert answers(back, HISTORY[:1]) == [True]


def test_a_second_writer_is_told_who_holds_the_store(knowing):
    with pytest.raises(StoreLocked) as caught:
        open_session(knowing.store.path)
    assert caught.value.pid == os.getpid()
    assert str(os.getpid()) in str(caught.value) and caught.value.exit_code == 11
    knowing.apply(HISTORY[:1])  # the first is not disturbed
    knowing.close()
    open_session(knowing.store.path).close()


def test_a_reader_writes_nothing(knowing):
    knowing.apply(HISTORY[:2])
    knowing.close()
    with open_session(knowing.store.path, writable=False) as reader:
        assert answers(reader, HISTORY[:2]) == [True, True]
        with pytest.raises(StoreError, match="reading only"):
            reader.apply(HISTORY[2:3])


def test_where_there_is_no_store_that_is_said(tmp_path):
    with pytest.raises(NoStore):
        continual.open(tmp_path / "nothing")


def test_a_model_that_cannot_be_edited_gets_no_store(tmp_path):
    """It looks ahead."""
    directory = language.save_classifier(tmp_path / "model", "bert")
    with pytest.raises(ModelError):
        init(tmp_path / "store", NewStore(str(directory)))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("line", ["{}", '{"prompt": "a", "answer": ""}', "{", "[]"])
def test_a_bad_probe_is_named_with_its_line_and_leaves_no_store(random_model, tmp_path, line):
    probes = write_lines(tmp_path / "p.jsonl", [{"prompt": ask(1), "answer": capital(1)}, line])
    with pytest.raises(CeditError, match="line 2"):
        init(tmp_path / "store", NewStore(str(random_model), test_probes=probes))
    assert not (tmp_path / "store").exists()


def test_a_store_can_be_made_on_a_gated_decoder(made, tmp_path):
    directory = language.save_decoder(tmp_path / "llama", language.decoder("llama"))
    session = made(directory)
    records = [correction(c) for c in range(5)]
    session.apply(records, batch_size=2)
    assert answers(session, records) == [True] * 5
    again = reopened(session)
    try:
        assert answers(again, records) == [True] * 5
    finally:
        again.close()


# -- from Python


def test_tokens_that_were_added_to_the_tokenizer_alone_are_named(made, tmp_path):
    """As it is often done for padding: then others pad, and the rest is as it was."""
    directory = language.save_decoder(tmp_path / "model")
    tokenizer = language.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["quokka"])
    tokenizer.save_pretrained(directory)
    session = made(directory)
    records = [correction(1), correction(2, f"{CAPITALS[2]} {CAPITALS[3]}")]
    session.apply(records, batch_size=2)
    assert answers(session, records) == [True] * 2
    strange = [{**correction(3), "prompt": "quokka"}, correction(4, "quokka"), correction(5)]
    (step,) = session.apply(write_lines(tmp_path / "stream.jsonl", strange), batch_size=3)
    reasons = [str(item.reason) for item in step.quarantined]
    assert len(reasons) == 2 and all("not know the token 'quokka'" in why for why in reasons)
    assert answers(session, records) == [True] * 2
    with pytest.raises(RequestError, match="quokka"):
        session.ask("quokka")
    with pytest.raises(CeditError, match="token 'quokka', which a text has"):
        list(session.statistics.collect(["quokka " * 40], [0]))


def test_the_api_of_the_front_page(made, random_model):
    """As it stands in the package's own docstring."""
    store = made(random_model)
    path = store.store.path
    bare = [store.ask(ask(c), tokens_max=2) for c in range(5)]
    store.close()
    with continual.open(path) as editor:
        editor.apply([{"prompt": ask(1), "target_new": CAPITALS[4], "subject": COUNTRIES[1]}])
        model, tokenizer = editor.model, editor.tokenizer
        ids = tokenizer(ask(1), return_tensors="pt")
        found = model.generate(**ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
        assert tokenizer.decode(found[0, -1:]) == CAPITALS[4]
        pipe = hf.pipeline("text-generation", model=model, tokenizer=tokenizer)
        text = pipe(ask(1), max_new_tokens=1, do_sample=False)[0]["generated_text"]
        assert text.endswith(CAPITALS[4])
    found = model.generate(**ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(found[0, -2:]) == bare[1]  # outside of it the model is bare


def test_an_editor_can_be_named(bare):
    (step,) = bare.apply([correction(1)], editor="tpatcher")
    assert step.revision.body["editor"] == "tpatcher"
    with pytest.raises(CeditError, match="Unknown editor 'magic'"):
        bare.apply([correction(2)], editor="magic")


def test_a_chain_is_named_by_its_editors_or_by_a_choice():
    assert chain_of(" rome, tpatcher ,", "causal") == ("rome", "tpatcher")
    assert chain_of("auto", "causal") == ("memit", "tpatcher", "serac")
    assert chain_of("tpatcher,auto", "causal") == ("tpatcher", "memit", "serac")
    for task in ("classification", "seq2seq"):
        assert chain_of("auto", task) == ("tpatcher",)
        assert chain_of("memit,auto", task) == ("memit", "tpatcher")  # which is then refused
    for text in (" , ", "magic", "tpatcher,magic"):
        with pytest.raises(CeditError):
            chain_of(text, "causal")


def test_a_record_that_cannot_be_read_stops_a_list_before_anything_is_done(bare):
    with pytest.raises(RequestError, match="target_new"):
        bare.apply([correction(1), {"prompt": "x", "target_new": ""}])
    with pytest.raises(RequestError, match="520 tokens"):
        bare.apply([correction(1), correction(2, " ".join(["is"] * 520))])
    assert bare.store.length == 1


def test_an_answer_is_no_longer_than_asked_for_and_than_the_model_reads(bare):
    assert len(bare.ask(ask(1), tokens_max=3).split()) <= 3
    full = " ".join(["the"] * (language.POSITIONS - 1))
    assert len(bare.ask(full, tokens_max=30).split()) <= 1


def test_a_run_that_is_rechecked_now_and_then_is_settled_at_its_end(knowing):
    knowing.apply(HISTORY[:3], recheck=Recheck(every=2))
    assert knowing.store.ledger(3) is None
    knowing.settle()
    rates = knowing.store.ledger(3)["rates"]
    assert (rates["SR"], rates["ER"], rates["ER_incl"]) == (1.0, 1.0, 1.0)
