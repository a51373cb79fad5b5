"""KN: values of knowledge neurons rewritten, as a patch in the history as every other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from continual.analysis.neurons import FfnNeuron
from continual.editors.kn import KnConfig
from continual.errors import CeditError
from continual.history.corrections import UnknownRequest
from continual.history.erasing import erase
from continual.history.replaying import rebuild
from continual.patches import Patch
from continual.patches.low_rank import FfnLowRankPatch
from continual.requests import Request
from continual.session import Session
from tests import tiny_language as language
from tests.continual.conftest import Make, reopened


def request(country: int) -> Request:
    return Request.from_json(language.correction(country))


def apply(session: Session, *countries: int, **settings: Any) -> list[str]:
    """Apply corrections as one batch by kn alone; return the outcome of each."""
    tables = {"kn": {"neurons_max": 10, **settings}}
    run = session.settings(chain=("kn",), editors=tables, batch_size=len(countries))
    (step,) = session.apply_requests([request(country) for country in countries], run)
    return [outcome.outcome for outcome in step.outcomes]


def weights(session: Session) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in session.model.state_dict().items()}


def is_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def patch_of(session: Session) -> FfnLowRankPatch:
    parts: tuple[Patch, ...] = session.patches(session.head.patch)
    (part,) = parts
    assert isinstance(part, FfnLowRankPatch)
    return part


def test_a_correction_is_a_low_rank_patch_that_rolls_back_bit_for_bit(knowing: Session) -> None:
    before = weights(knowing)
    assert apply(knowing, 3) == ["applied"]
    assert knowing.ask(language.ask(3), tokens_max=1) == request(3).target_new
    assert not is_same(before, weights(knowing))
    after = weights(knowing)
    again = reopened(knowing)
    assert is_same(after, weights(again))
    again.rollback("base")
    assert is_same(before, weights(again))
    again.close()


def test_the_rows_of_a_patch_are_the_published_update(knowing: Session) -> None:
    table = knowing.model.get_input_embeddings().weight
    values = {b: knowing.edited.weight(b).base.clone() for b in range(knowing.site.block + 1)}
    said = knowing.tokenizer(language.capital(3))["input_ids"][0]
    wanted = knowing.tokenizer(request(3).target_new)["input_ids"][0]
    assert apply(knowing, 3, old_weight=1.5, new_weight=8.0) == ["applied"]
    old, new = table[said], table[wanted]
    expected = 8.0 * new / new.norm() - 1.5 * old / old.norm()
    for name, factors in patch_of(knowing).factors.items():
        scale = float(factors.right.norm() / expected.norm())
        assert scale == pytest.approx(1.0) or scale == pytest.approx(2.0)  # of the retry
        torch.testing.assert_close(factors.right, scale * expected[None])
        places = factors.left[:, 0].nonzero().squeeze(1)
        lengths = values[int(name)][places].norm(dim=1)
        torch.testing.assert_close(factors.left[places, 0], lengths)


def test_one_is_taken_out_of_the_middle_and_the_next_stays_bit_for_bit(knowing: Session) -> None:
    assert apply(knowing, 3) == ["applied"]
    assert apply(knowing, 7) == ["applied"]
    later = patch_of(knowing)
    knowing.revert(request(3).id)
    after = weights(knowing)
    knowing.edited.take_off(0)
    knowing.edited.put([later])
    assert is_same(after, weights(knowing))


def test_a_request_of_a_patch_leaves_with_its_columns(knowing: Session) -> None:
    assert apply(knowing, 3) == ["applied"]
    one = patch_of(knowing)
    other = replace(one, owners=("another",))
    (both,) = FfnLowRankPatch.joined([one, other])
    both = replace(both, owners=(*one.owners, *other.owners))
    left = both.without(one.owners[0])
    assert left is not None and left.owners == other.owners
    for name, factors in left.factors.items():
        assert torch.equal(factors.left, other.factors[name].left)


def test_a_history_of_kn_is_built_again_to_the_same_bits(knowing: Session) -> None:
    apply(knowing, 3)
    apply(knowing, 7)
    assert all(state.is_same for state in rebuild(knowing, knowing.store.lineage("head")))


def test_an_encoder_decoder_is_edited_in_its_decoder(made: Make, models: dict[str, Path]) -> None:
    session = made(models["seq2seq"], task={"name": "seq2seq"})
    assert session.ask(language.ask(3)) == language.capital(3)
    (outcome,) = apply(session, 3, new_weight=4.0)
    assert outcome in ("applied", "failed")
    if outcome == "applied":
        assert session.ask(language.ask(3)) == request(3).target_new


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"of_max": 0.0}, {"share": 1.1}, {"neurons_max": 0}, {"new_weight": 0.0}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(CeditError, match=r"editor\.kn"):
        KnConfig.of(settings)


# -- a relation erased


def test_an_erased_relation_is_a_revision_that_rolls_back_bit_for_bit(knowing: Session) -> None:
    before = weights(knowing)
    neurons = [FfnNeuron(0, 3), FfnNeuron(1, 5), FfnNeuron(1, 2)]
    revision = erase(knowing, "capital", neurons)
    assert (revision.operation, knowing.head.id) == ("erase", revision.id)
    assert knowing.status()["TestR"] is not None  # measured again
    for block, place in neurons:
        assert not knowing.edited.anatomy.down_weight(knowing.model, block)[place].any()
    assert knowing.show()["erased"] == "capital" and not knowing.show()["outcomes"]
    assert all(state.is_same for state in rebuild(knowing, knowing.store.lineage("head")))
    again = reopened(knowing)
    with pytest.raises(CeditError, match="zero already"):
        erase(again, "capital", neurons)
    again.rollback("base")
    assert is_same(before, weights(again))
    again.close()


def test_corrections_go_on_behind_an_erased_relation(knowing: Session) -> None:
    erase(knowing, "capital", [FfnNeuron(1, place) for place in range(20)])
    target = request(3)
    (step,) = knowing.apply_requests([target], knowing.settings(chain=("tpatcher",)))
    assert [outcome.outcome for outcome in step.outcomes] == ["applied"]
    with pytest.raises(CeditError, match="no neurons"):
        erase(knowing, "currency", [])
    metrics = step.measured
    again = reopened(knowing)
    assert again.ask(target.prompt, tokens_max=1) == target.target_new
    assert again.head.id == step.revision.id and metrics is not None
    again.close()


def test_an_erasure_is_taken_out_of_the_middle_of_a_history(knowing: Session) -> None:
    run = knowing.settings(chain=("tpatcher",))
    knowing.apply_requests([request(3)], run)
    erased = erase(knowing, "capital", [FfnNeuron(1, place) for place in range(20)])
    knowing.apply_requests([request(4)], run)
    neurons = knowing.site.bank.values.clone()
    weight = knowing.edited.weight(1)
    assert not torch.equal(weight.sum, weight.base)
    done = knowing.revert(erased.id[:8])
    assert (done.relation, done.request, sum(done.rows.values())) == ("capital", None, 20)
    assert torch.equal(weight.sum, weight.base)
    assert torch.equal(knowing.site.bank.values, neurons)
    assert all(state.is_same for state in rebuild(knowing, knowing.store.lineage("head")))
    again = reopened(knowing)
    assert again.edited.fingerprint == done.revision.fingerprint
    assert again.store.ledger(done.revision.seq) is not None  # measured again
    with pytest.raises(UnknownRequest, match="no part in the model"):
        again.revert(erased.id)
    again.close()
