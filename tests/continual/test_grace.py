"""GRACE: its values as from whole passes, and a history of its edits that keeps every promise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase
from continual.editors.grace import Grace, GraceConfig
from continual.editors.grace.scale import first_keys, nearest_other
from continual.editors.grace.training import Keyed, KeyedPass
from continual.effects.codebook import Codebook
from continual.effects.places import GatePlace
from continual.errors import CeditError
from continual.history.rehearsing import recompute
from continual.history.replaying import rebuild, verify
from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.passes.suffix import keeps_prefixes
from continual.patches.codebook import CodebookPatch
from continual.proposals import EditContext
from continual.requests import Request
from continual.session import Session, open_session
from continual.site import Site
from continual.step.pipeline import Step
from continual.tasks import Encoding, Question, make_task
from tests import tiny_language as language
from tests.continual.associative_bench import edit_of
from tests.continual.conftest import reopened
from tests.continual.recheck.conftest import from_scratch
from tests.tiny_language import CAPITALS, ask, capital, correction
from tests.tiny_models import tiny_model

TWO = f"{CAPITALS[2]} {CAPITALS[3]}"
THREE = f"{CAPITALS[4]} {CAPITALS[1]} {CAPITALS[4]}"


def corrections() -> list[Request]:
    """New capitals: for countries known and unknown, of one, two and three words."""
    records = [
        correction(20, CAPITALS[1]),
        correction(21, TWO),
        correction(33, CAPITALS[2]),
        correction(22, THREE),
        correction(34, f"{CAPITALS[6]} {CAPITALS[0]}"),
        correction(23, CAPITALS[5]),
    ]
    return [Request.from_json(record) for record in records]


def apply(session: Session, requests: Sequence[Request], **changes: object) -> list[Step]:
    table = {"grace": changes.pop("table", {})}
    settings = session.settings(chain=("grace",), editors=table, **changes)
    return list(session.apply_requests(requests, settings))


def book_of(session: Session) -> Codebook:
    return CodebookPatch.book(session.edited, 0)


def state(session: Session) -> list[Tensor]:
    book = book_of(session)
    return [book.keys.clone(), book.values.clone(), book.radii.clone()]


def is_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def edited(knowing: Session) -> Session:
    """All corrections, one by one."""
    steps = apply(knowing, corrections())
    assert [o.outcome for step in steps for o in step.outcomes] == ["applied"] * 6
    return knowing


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "opt", "gptj"])
def test_kept_passes_give_the_logits_of_whole_ones(name, packs):
    model = tiny_model(name)
    edited = EditedModel(PretrainedBase(model, language.tokenizer(), find_anatomy(model), "base"))
    with edited:
        site = Site(edited, make_task(edited.base, {}))
        if packs and not keeps_prefixes(edited.model, edited.anatomy):
            pytest.skip("its attention is not to be had by ends")
        texts = [
            Encoding(Question((9, 12, 31, 8)), (3, 4, 5), (17, 22, 40)),
            Encoding(Question((14, 10)), (1, 2), (35, 21)),
        ]
        keyed = [Keyed(text, text.positions) for text in texts]
        kept = KeyedPass(site, 1, keyed, packs)
        draw = torch.Generator().manual_seed(0)
        values = torch.randn(5, edited.anatomy.width, generator=draw).requires_grad_()
        found = kept.logits(values)
        found.square().sum().backward()
        gradient = values.grad.clone()
        values.grad = None
        expected = torch.cat(
            [
                whole(edited, text, own)
                for text, own in zip(texts, values.split([3, 2]), strict=True)
            ]
        )
        expected.square().sum().backward()
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (gradient - values.grad).abs().max() < 1e-3 * values.grad.abs().max()
        queries = torch.cat([query_of(edited, text) for text in texts])
        assert torch.equal(kept.keys, queries)


def whole(edited: EditedModel, text: Encoding, values: Tensor) -> Tensor:
    """The answer's logits by a plain pass with a hook that replaces the FFN's output."""
    down = edited.anatomy.down_module(edited.model, 1)

    def replaced(_module: object, _args: object, output: Tensor) -> Tensor:
        flat = output.reshape(-1, output.shape[-1])
        places = torch.tensor(text.positions)
        return flat.index_put((places,), values).view(output.shape)

    handle = down.register_forward_hook(replaced)
    try:
        logits = logits_of(edited.model, {"input_ids": torch.tensor([text.ids])})
    finally:
        handle.remove()
    return logits[0, list(text.positions)]


def query_of(edited: EditedModel, text: Encoding) -> Tensor:
    """The FFN's inputs of one plain pass where the answer is predicted."""
    seen: list[Tensor] = []
    module = edited.anatomy.query_module(edited.model, 1)
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        logits_of(edited.model, {"input_ids": torch.tensor([text.ids])})
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])[list(text.positions)]


def test_the_distance_is_a_small_quantile_of_those_to_the_nearest_with_another_answer():
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(30, 5, generator=draw)
    answers = [(int(n),) for n in torch.randint(0, 3, (30,), generator=draw)]
    nearest = [
        min(
            float((a.double() - b.double()).norm())
            for b, m in zip(keys, answers, strict=True)
            if m != n
        )
        for a, n in zip(keys, answers, strict=True)
    ]
    expected = torch.tensor(nearest, dtype=torch.double).quantile(0.05)
    assert nearest_other(keys, answers) == pytest.approx(float(expected), rel=1e-12)
    assert nearest_other(keys, [(1,)] * 30) is None


# --- edits ----------------------------------------------------------------------------------------


def test_every_answer_is_right_and_is_what_generation_reads(edited):
    for request in corrections():
        answer = edited.ask(request.prompt, tokens_max=len(request.target_new.split()))
        assert answer.strip() == request.target_new, request
    assert edited.run_state.ledger.remeasure() == {}
    rates = edited.store.ledger(edited.store.head.seq)["rates"]
    assert rates["SR"] == rates["ER"] == 1.0


def test_there_is_a_row_for_each_token_of_an_answer(edited):
    parts = [edited.patches(r.patch)[0] for r in edited.store.lineage("head") if r.patch]
    assert [part.rows for part in parts] == [1, 2, 1, 3, 2, 1]
    task = edited.site.task
    for request, part in zip(corrections(), parts, strict=True):
        targets = task.encode(request.prompt, request.target_new).targets
        assert part.labels == tuple(targets[i:] for i in range(len(targets)))
        assert set(part.owners) == {request.id}


def test_after_every_step_the_ledger_is_exact(knowing):
    for request in corrections():
        apply(knowing, [request])
        assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)
    apply(knowing, [Request.from_json(correction(c, CAPITALS[c % 5])) for c in range(24, 30)])
    assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)


def test_what_opens_no_entry_is_as_it_was_bit_for_bit(knowing):
    apply(knowing, corrections()[:3], table={"epsilon": 0.1})
    site, book = knowing.site, book_of(knowing)
    silent = []
    for country in (*range(30), 20, 21):
        inputs = site.inputs(
            [site.task.encode(ask(country, 1 if len(silent) < 30 else 0), capital(country))]
        )
        with knowing.edited.mount(GatePlace.at(0)).shown() as queries, torch.no_grad():
            now = logits_of(knowing.edited.model, inputs)
        with knowing.edited.bare(), torch.no_grad():
            before = logits_of(knowing.edited.model, inputs)
        is_open = bool((book.rows_of(queries[0].reshape(-1, queries[0].shape[-1])) >= 0).any())
        assert is_open or torch.equal(now, before)
        silent.append(not is_open)
    assert 15 < sum(silent) < len(silent)


def test_an_entry_of_the_same_label_is_widened_where_its_value_answers(knowing):
    """Two phrasings of one correction as two requests, near enough, but outside of each other."""
    first, second = (
        Request.from_json({**correction(20, CAPITALS[5]), "prompt": ask(20, phrasing)})
        for phrasing in (0, 1)
    )
    place, task = GatePlace.at(0), knowing.site.task
    encodings = [task.encode(request.prompt, request.target_new) for request in (first, second)]
    one, other = first_keys(knowing.site, encodings, place)
    apart = float((one - other).norm())
    near = {"epsilon": 0.6 * apart}
    apply(knowing, [first], table=near)
    (step,) = apply(knowing, [second], table=near)
    (outcome,) = step.outcomes
    assert outcome.outcome == "applied"
    assert (outcome.notes["entries"], outcome.notes["shared"]) == (0, 1)
    (radius,) = book_of(knowing).radii.tolist()
    assert apart < radius < 1.05 * apart  # by more than rounding moves the key
    assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)
    knowing.revert(
        first.id
    )  # the second one has an entry of its own, with the value that it shared
    assert book_of(knowing).radii.tolist() == pytest.approx([0.6 * apart])
    assert knowing.ask(second.prompt, tokens_max=1).strip() == second.target_new


@pytest.mark.parametrize(
    "table", [{"replaced": "key"}, {"start": "cold"}, {"rephrases": True}, {"epsilon": 0.5}]
)
def test_its_settings_do_what_they_say(knowing, table):
    target = CAPITALS[5] if table.get("replaced") == "key" else TWO
    request = Request.from_json(correction(23, target))
    (step,) = apply(knowing, [request], table=table)
    assert step.outcomes[0].outcome == "applied"
    (part,) = knowing.patches(step.revision.patch)
    texts = 1 + len(request.rephrases) if table.get("rephrases") else 1
    assert part.rows == texts * (1 if table.get("replaced") == "key" else 2)
    if "epsilon" in table:
        assert part.radii.tolist() == [0.5] * part.rows
    assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)


def test_a_block_that_it_cannot_stand_at_is_refused(knowing):
    for block in (knowing.site.block, 7):
        with pytest.raises(CeditError, match=r"\[editor\.grace\] block"):
            apply(knowing, corrections()[:1], table={"block": block})
    for wrong in ({"epsilon": 0.0}, {"rate": -1.0}, {"steps_max": 0}):
        with pytest.raises(CeditError, match=r"\[editor\.grace\]"):
            GraceConfig(**wrong)


def test_a_value_that_is_not_found_is_said(knowing):
    (step,) = apply(knowing, corrections()[:1], table={"steps_max": 1, "rate": 1e-9})
    assert step.outcomes[0].outcome == "failed"
    assert "no value that gives its target was found" in str(step.outcomes[0].reason)
    assert knowing.edited.depth == 0 or step.revision.patch is None


def test_one_that_changed_too_much_comes_back_with_half_of_its_radius(knowing):
    edit = edit_of(knowing.site, correction(23, CAPITALS[5]))
    depth, radii = knowing.edited.depth, []
    for narrow in (0, 1, 2):
        draw = torch.Generator().manual_seed(0)
        context = EditContext(knowing.site, knowing.run_state.memory, draw, narrow=narrow)
        proposal = Grace(GraceConfig(epsilon=1.0)).edit([edit], context)
        assert isinstance(proposal.patch, CodebookPatch) and knowing.edited.depth == depth
        radii += proposal.patch.radii.tolist()
    assert Grace.narrows and radii == [1.0, 0.5, 0.25]


# --- the history ----------------------------------------------------------------------------------


def crowded(session: Session) -> list[list[Tensor]]:
    """Edits with wide entries, so that radii meet: the codebook after each of them."""
    states = [state(session)]
    for request in corrections():
        apply(session, [request], table={"epsilon": 9.0})
        states.append(state(session))
    return states


def test_a_rollback_restores_every_radius(knowing):
    states = crowded(knowing)
    earlier = [old[2] for old in states]
    assert any(not torch.equal(b[: len(a)], a) for a, b in itertools.pairwise(earlier))
    marks = [r for r in knowing.store.lineage("head") if r.operation == "edit"]
    for number in (4, 2, 5, 1):
        knowing.rollback(f"@{marks[number - 1].seq}")
        assert is_same(state(knowing), states[number])
        assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)
    knowing.rollback("base")
    assert len(book_of(knowing).radii) == 0


def test_a_request_out_of_the_middle_leaves_the_codebook_that_never_had_it(knowing):
    crowded(knowing)
    requests = corrections()
    parts = [knowing.patches(r.patch)[0] for r in knowing.store.lineage("head") if r.patch]
    knowing.revert(requests[1].id)
    without = Codebook(knowing.edited.mount(GatePlace.at(0)))
    for part in (part for part in parts if requests[1].id not in part.owners):
        without.extend(part)
    assert is_same(state(knowing), [without.keys, without.values, without.radii])
    assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)
    path = knowing.store.path
    knowing.close()
    assert verify(path) == []


def test_replays_and_recomputed_steps_have_the_same_bits(edited):
    revisions = list(edited.store.revisions())
    assert all(made.is_same for made in rebuild(edited, revisions))
    session = reopened(edited)
    made = list(recompute(session, session.store.lineage("head")))
    assert len(made) == 6 and [m.difference for m in made if not m.is_same] == []
    session.close()


def test_a_run_that_is_resumed_comes_to_the_same_bits(knowing, made, knowing_model, probe_files):
    whole = made(knowing_model, "whole", **probe_files)
    apply(whole, corrections())
    path = knowing.store.path
    knowing.close()
    for request in corrections():
        with open_session(path) as session:
            apply(session, [request])
    with open_session(path, writable=False) as resumed:
        assert [r.fingerprint for r in resumed.store.revisions()] == [
            r.fingerprint for r in whole.store.revisions()
        ]


def test_snapshots_lead_to_the_same_state(knowing, monkeypatch):
    states = crowded(knowing)
    path, fingerprint = knowing.store.path, knowing.edited.fingerprint
    knowing.close()
    monkeypatch.setattr("store.store.PATCHES", 2)
    open_session(path).close()  # makes them
    assert list((path / "snapshots").rglob("*.safetensors"))
    with open_session(path) as session:
        assert session.edited.fingerprint == fingerprint
        assert is_same(state(session), states[-1])
    assert verify(path) == []


def test_a_batch_comes_to_the_rows_of_its_edits_one_by_one(
    knowing, made, knowing_model, probe_files
):
    apply(knowing, corrections()[:3], batch_size=3)
    single = made(knowing_model, "single", **probe_files)
    apply(single, corrections()[:3])
    assert is_same(state(knowing)[::2], state(single)[::2])  # keys and radii
    assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)
