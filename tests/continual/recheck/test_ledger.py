"""The ledger is exact: what it follows by what has changed is what measuring from scratch finds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from continual.new_store import NewStore, init
from continual.recheck.ledger import (
    EDIT,
    HELD_OUT,
    LOCALITY,
    PORTABILITY,
    ROLES,
    TEST,
    TRAIN,
    WATCHED,
)
from continual.recheck.run_state import RunState
from continual.requests import Request
from continual.session import Session, open_session
from continual.step.pipeline import Step
from continual.step.settings import Recheck
from tests import tiny_language as language
from tests.continual.conftest import reopened
from tests.tiny_language import CAPITALS, ask, capital, correction


def rich(country: int, target: str | None = None) -> dict:
    """A correction with every kind of probe around it."""
    near = (country + 1) % 40
    return correction(
        country,
        target,
        rephrases=[ask(country, 1)],
        held_out_rephrases=[ask(country, 2), ask(country, 3)],
        locality=[
            {"prompt": ask(near), "answer": capital(near)},
            {"prompt": ask(near, 3), "answer": f"{capital(near)} {capital(country)}"},
        ],
        portability=[{"prompt": f"the king of {ask(country, 2)}", "answer": CAPITALS[country]}],
    )


STREAM = [
    *[rich(country) for country in range(20, 40)],
    rich(25, CAPITALS[1]),  # supersedes
    rich(31, f"{CAPITALS[2]} {CAPITALS[3]}"),  # supersedes, with an answer of two tokens
    rich(25),  # comes back
    correction(25),  # the same answer with no probes: skipped
    rich(22),  # a repeat
    rich(12),  # what a test probe says
    rich(3),  # what a training probe says
    {"prompt": "the capital of Erewhon is", "target_new": CAPITALS[1]},
    {"prompt": "the capital of Laputa is", "target_new": CAPITALS[2]},  # the same tokens: fails
    rich(24, CAPITALS[7]),
]


QUICK = {"tpatcher": {"steps_max": 20, "value_steps_max": 25}}  # for what fails in the end

Walked = tuple[Session, list[Step]]


@pytest.fixture(scope="module")
def walked(
    tmp_path_factory: pytest.TempPathFactory, knowing_model: Path, probe_files: dict[str, Path]
) -> Iterator[Walked]:
    """A session behind the whole stream, and its steps."""
    path = tmp_path_factory.mktemp("walked") / "store"
    session = init(path, NewStore(str(knowing_model), **probe_files))
    yield session, session.apply(STREAM, editors=QUICK)
    session.close()


def from_scratch(session: Session) -> dict[str, bool]:
    """Every active probe by forward passes of the whole edited model."""
    wanted = session.run_state.ledger.outcomes()
    entries = [e for e in session.run_state.ledger.entries if e.key in wanted]
    entries = list({entry.key: entry for entry in entries}.values())  # the latest of each key
    found = session.site.judge_in_full([entry.encoding for entry in entries])
    return {entry.key: right for entry, right in zip(entries, found, strict=True)}


def roles_of(outcomes: dict[str, bool]) -> set[str]:
    return {key.split(":")[1] for key in outcomes}


@pytest.mark.parametrize("size", [1, 4])
def test_after_every_step_the_outcomes_are_those_measured_from_scratch(knowing, size):
    requests = [Request.from_json(record) for record in STREAM]
    turned = 0
    for step in knowing.apply_requests(requests, knowing.settings(batch_size=size, editors=QUICK)):
        found = knowing.run_state.ledger.outcomes()
        assert found == from_scratch(knowing)
        turned += len(step.measured.turned)
        if step.revision.seq % 6 == 0:
            assert RunState(knowing.store, knowing.site).ledger.outcomes() == found
    assert roles_of(found) == set(ROLES) - set(WATCHED)
    assert turned > 50
    again = reopened(knowing)
    try:
        assert again.run_state.ledger.outcomes() == found == from_scratch(again)
    finally:
        again.close()


def test_what_the_journal_has_of_turns_adds_up_to_the_outcomes(walked):
    knowing, _ = walked
    recorded: dict[str, bool] = {}
    for revision in knowing.store.lineage("head"):
        recorded.update(knowing.store.ledger(revision.seq)["turned"])
    found = knowing.run_state.ledger.outcomes()
    assert {key: recorded.get(key, True) for key in found} == found


def records_of(session) -> list[dict]:
    """The ledger's records, without when and how long."""
    revisions = session.store.lineage("head")
    found = [session.store.ledger(revision.seq) for revision in revisions]
    times = {"at", "edit_s", "probe_s", "recheck_s"}
    return [{key: value for key, value in record.items() if key not in times} for record in found]


def test_a_full_recheck_gives_the_same_records(knowing, walked):
    full, (exact, _) = knowing, walked
    full.apply(STREAM, editors=QUICK, recheck=Recheck(full=True))
    assert exact.edited.fingerprint == full.edited.fingerprint
    assert records_of(exact) == records_of(full)


def test_a_fresh_count_gives_the_rates_on_record(walked):
    """By hand, from the outcomes: every role over the requests that count."""
    knowing, steps = walked
    found = from_scratch(knowing)
    rates = steps[-1].measured.rates
    current = {outcome.id for outcome in steps[-1].outcomes}

    def rate(role: str, without: frozenset[str] | set[str] = frozenset()) -> float:
        named = [(key.split(":"), right) for key, right in found.items()]
        counted = [right for key, right in named if key[1] == role and key[0] not in without]
        return sum(counted) / len(counted)

    assert rates.ER_incl == rate(EDIT)
    assert rates.ER == rate(EDIT, current)
    assert rates.Locality == rate(LOCALITY)
    assert rates.TrainR == rate(TRAIN)  # the model knew all of them
    assert rates.TestR == rate(TEST)
    said = [outcome.outcome for step in steps for outcome in step.outcomes]
    attempted = said.count("applied") + said.count("failed")
    assert rates.SR == said.count("applied") / attempted


def test_the_run_state_reads_and_measures_when_it_is_told(knowing):
    knowing.apply(STREAM[:2], recheck=Recheck(every=5))
    head = knowing.store.head
    run_state = RunState(knowing.store, knowing.site)
    assert knowing.store.ledger(head.seq) is None
    run_state.record()
    first = knowing.store.ledger(head.seq)
    assert first is not None and first["rates"]["SR"] == 1.0
    run_state.record()
    assert knowing.store.ledger(head.seq) == first


def test_outcomes_stay_exact_where_steps_are_not_rechecked(knowing):
    knowing.apply(STREAM[:8], recheck=Recheck(every=5))
    knowing.apply(STREAM[8:12])
    assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)


def test_a_run_rechecked_now_and_then_ends_at_the_outcomes_of_one_always_rechecked(
    made, knowing_model, probe_files
):
    always, rarely = (made(knowing_model, name, **probe_files) for name in ("always", "rarely"))
    always.apply(STREAM[:10])
    rarely.apply(STREAM[:10], recheck=Recheck(every=5))
    assert always.run_state.ledger.outcomes() == rarely.run_state.ledger.outcomes()
    assert always.store.ledger(10)["rates"] == rarely.store.ledger(10)["rates"]


def test_locality_is_the_answer_before_the_edit_and_not_the_one_that_the_request_gives(knowing):
    near = {"prompt": ask(10), "answer": CAPITALS[0]}
    assert capital(10) != CAPITALS[0]
    (step,) = knowing.apply([correction(30, locality=[near])])
    (outcome,) = step.outcomes
    wanted = knowing.task.encode(ask(10), capital(10)).targets
    assert outcome.expected == (wanted,)
    assert step.measured.rates.Locality == 1.0


def test_probes_that_nothing_has_touched_keep_their_outcomes_bit_by_bit(knowing):
    """Held-out probes of a request that has been superseded are no longer counted."""
    knowing.apply([rich(25), rich(25, CAPITALS[1])])
    found = knowing.run_state.ledger.outcomes()
    owners = {key.split(":")[0] for key in found if key.split(":")[1] == HELD_OUT}
    assert len(owners) == 1
    assert sum(key.split(":")[1] == PORTABILITY for key in found) == 1


# -- ties


@pytest.fixture(scope="module")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder to which two capitals are nearly one: the second's logit is lower by a share that
    float rounding does not reach and that still counts as close."""
    model = language.decoder()
    read = language.tokenizer()
    first, second = (read.convert_tokens_to_ids(CAPITALS[i]) for i in (1, 2))
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[second] = embedding[first] * (1 - 2.0**-16)
    return language.save_decoder(tmp_path_factory.mktemp("models") / "tied", model)


def test_near_ties_are_decided_by_a_pass_over_the_probe_alone_in_both_ways(made, tied_model):
    session = made(tied_model)
    records = [
        correction(0, CAPITALS[1], held_out_rephrases=[ask(0, 1), ask(0, 2)]),
        correction(1, CAPITALS[2], held_out_rephrases=[ask(1, 1), ask(1, 2)]),
        correction(3, portability=[{"prompt": ask(2, 1), "answer": CAPITALS[2]}]),
    ]
    steps = session.apply(records)
    assert [s.outcomes[0].outcome for s in steps] == ["applied", "failed", "applied"]
    ledger, site = session.run_state.ledger, session.site
    alone = {entry.key: site.judge_alone(entry.encoding) for entry in ledger.entries}
    assert ledger.outcomes() == from_scratch(session) == alone
    close = site.judge(ledger.rows).close
    decided = [alone[e.key] for e, c in zip(ledger.entries, close.tolist(), strict=True) if c]
    assert True in decided  # every entry has one row here
    encodings = [entry.encoding for entry in ledger.entries]
    chosen = range(0, len(encodings), 2)
    assert site.are_right(encodings, ledger.rows, chosen) == list(alone.values())[::2]
    assert ledger.remeasure() == {}


def test_exact_ties_go_to_the_same_token_in_both_ways(made, tmp_path):
    model = language.decoder()
    read = language.tokenizer()
    first, second = (read.convert_tokens_to_ids(CAPITALS[i]) for i in (1, 2))
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[second] = embedding[first]
    session = made(language.save_decoder(tmp_path / "twins", model))
    session.apply([correction(c, CAPITALS[1 + c % 2]) for c in range(6)])
    assert session.run_state.ledger.outcomes() == from_scratch(session)
    assert session.run_state.ledger.remeasure() == {}


def crowded(country: int, chance: random.Random) -> dict:
    """A correction among many places at which the model is far from sure."""
    places = [(ask(chance.randrange(40), chance.randrange(4)), country) for _ in range(30)]
    locality = [{"prompt": prompt, "answer": CAPITALS[c]} for prompt, c in places]
    return correction(country, locality=locality, held_out_rephrases=[ask(country, 1)])


def test_the_outcomes_are_exact_in_half_precision_too(made, knowing_model):
    session = made(knowing_model, dtype="bfloat16")
    chance = random.Random(1)
    requests = [Request.from_json(crowded(country, chance)) for country in range(25)]
    turned = 0
    for step in session.apply_requests(requests, session.settings(editors=QUICK)):
        turned += len(step.measured.turned)
        if step.revision.seq % 5 == 0:
            assert session.run_state.ledger.outcomes() == from_scratch(session)
    assert turned > 20


def test_a_reader_finds_the_same_outcomes_and_writes_nothing(knowing):
    knowing.apply(STREAM[:6], recheck=Recheck(every=4))
    knowing.close()
    reader = open_session(knowing.store.path, writable=False)
    try:
        assert reader.run_state.ledger.outcomes() == from_scratch(reader)
        assert reader.store.ledger(6) is None
    finally:
        reader.close()
