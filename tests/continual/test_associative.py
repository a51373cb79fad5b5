"""Locate-then-edit, part by part, against the papers' equations written out plainly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from continual.errors import EditError
from continual.locate_then_edit import targets as searching
from continual.locate_then_edit.config import LocateThenEditConfig, default_blocks
from continual.locate_then_edit.contexts import write_contexts
from continual.locate_then_edit.edit_texts import EditTexts, texts_of_edit
from continual.locate_then_edit.keys import read_keys, read_states
from continual.locate_then_edit.solves import (
    MomentWhitening,
    NullSpace,
    Unsolvable,
    projected,
    rank_one,
    weighted,
)
from continual.locate_then_edit.subjects import SubjectMissing, subject_position
from continual.locate_then_edit.targets import ValueSearch, find_targets
from continual.passes.suffix import keeps_prefixes
from continual.patches.neuron import NeuronPatch
from continual.proposals import Edit
from continual.site import Site
from tests import tiny_language as language
from tests.continual import associative_bench as plainly
from tests.continual.associative_bench import (
    MODELS,
    Plain,
    edit_of,
    edited_of,
    known,
    mediating_decoder,
    relative_error,
    site_of,
)
from tests.tiny_language import CAPITALS, COUNTRIES, ask, correction

CPU = torch.device("cpu")

# -- the subject


def test_the_subject_ends_at_its_last_token_where_it_stands_first():
    read = language.tokenizer()
    prompt = f"the king of {COUNTRIES[3]} lives in {COUNTRIES[3]}"
    assert subject_position(read, prompt, COUNTRIES[3]) == 3
    assert subject_position(read, prompt, f"king of {COUNTRIES[3]}") == 3
    assert subject_position(read, prompt, "the king") == 1


def test_a_subject_in_the_context_does_not_count():
    read = language.tokenizer()
    before = f"people in {COUNTRIES[3]} . "
    assert subject_position(read, ask(3), COUNTRIES[3], before) == 4 + 3


@pytest.mark.parametrize("subject", [None, "", "badar", COUNTRIES[4]])
def test_a_missing_subject_is_named_with_its_prompt(subject):
    with pytest.raises(SubjectMissing) as caught:
        subject_position(language.tokenizer(), ask(0), subject)
    assert isinstance(caught.value, EditError)
    assert repr(ask(0)) in str(caught.value)
    assert (f"{subject!r}" in str(caught.value)) is bool(subject)


class Pieces:
    """A tokenizer without offsets: pieces of at most three letters, spaces before words, <s>."""

    is_fast = False
    all_special_ids = (0, 1)

    def __init__(self, *, ends: bool = False) -> None:
        self.ends, self.known = ends, {}

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        pieces = [word[i : i + 3] for word in text.split() for i in range(0, len(word), 3)]
        ids = [self.known.setdefault(piece, len(self.known) + 2) for piece in pieces]
        if not add_special_tokens:
            return {"input_ids": ids}
        return {"input_ids": [0, *ids, *([1] if self.ends else [])]}


@pytest.mark.parametrize("ends", [False, True])
def test_without_offsets_the_beginning_of_the_text_tells_where_the_subject_ends(ends):
    read = Pieces(ends=ends)  # <s> the riv er Dan ube flo ws
    assert subject_position(read, "the river Danube flows", "Danube") == 5
    assert subject_position(read, "the river Danube flows", "Dan") == 4
    assert subject_position(read, "the river Danube flows", "Danub") == 5  # inside a token
    assert subject_position(read, "the river Danube flows", "river", "a Danube ") == 6
    assert subject_position(read, "the river Danube flows", "Danube", is_whole=True) == 4


# -- contexts


@pytest.fixture(params=MODELS)
def site(request) -> Iterator[Site]:
    with edited_of(MODELS[request.param]()) as edited:
        yield site_of(edited)


@pytest.fixture
def gpt2_site() -> Iterator[Site]:
    with edited_of(MODELS["gpt2"]()) as edited:
        yield site_of(edited)


def drawn(site: Site, seed: int, count: int = 3, tokens: int = 4) -> tuple[str, ...]:
    return write_contexts(site, count, tokens, torch.Generator().manual_seed(seed))


def test_contexts_are_the_models_own_and_the_generators(site):
    found = drawn(site, 0)
    assert found[0] == "" and len(found) == 4
    assert found == drawn(site, 0) != drawn(site, 1)
    for text in found[1:]:
        ids = site.edited.tokenizer(text)["input_ids"]
        assert len(ids) == 1 + 4 + 1  # a beginning, what follows, a full stop
        assert text.endswith(" ")
        assert not set(ids) & set(site.edited.tokenizer.all_special_ids)
        with torch.no_grad():
            logits = site.edited.model(input_ids=torch.tensor([ids])).logits[0].clone()
        logits[:, site.edited.tokenizer.all_special_ids] = -torch.inf
        for position in range(4):
            assert ids[position + 1] in logits[position].topk(5).indices


def test_no_contexts_are_the_bare_prompt_alone(gpt2_site):
    assert drawn(gpt2_site, 0, count=0) == ("",)


def test_contexts_are_no_longer_than_the_model_reads(gpt2_site):
    texts = drawn(gpt2_site, 0, tokens=language.POSITIONS + 20)
    lengths = [len(gpt2_site.edited.tokenizer(text)["input_ids"]) for text in texts]
    assert max(lengths) == language.POSITIONS + 1  # and the full stop
    edit_texts = texts_of_edit(edit_of(gpt2_site, correction(0)), texts, gpt2_site)
    assert len(edit_texts.texts) == 1  # behind them the prompt does not fit


# -- texts, keys and states

CONTEXTS = ("", f"the king of {COUNTRIES[9]} . ", "people call their seat of government . ")


def records() -> list[dict]:
    """Plain; with rephrases, one without the subject; with two target tokens; and one whose prompt
    ends with its subject, which is what the last block can still change the answer of."""
    probe = {"prompt": f"{COUNTRIES[2]} lives in", "answer": CAPITALS[0]}
    aside = {"prompt": ask(7), "answer": CAPITALS[0]}
    return [
        correction(1),
        correction(2, rephrases=[ask(2, 1), "the king lives in"], locality=[probe, aside]),
        correction(3, " ".join(CAPITALS[5:7]), rephrases=[ask(3, 3)]),
        correction(4, " ".join(CAPITALS[5:7])) | {"prompt": f"the king of {COUNTRIES[4]}"},
    ]


@dataclass(frozen=True)
class Case:
    site: Site
    edits: list[Edit]
    batch: list[EditTexts]
    plain: Plain


@pytest.fixture
def case(site) -> Case:
    edits = [edit_of(site, record) for record in records()]
    batch = [texts_of_edit(edit, CONTEXTS, site) for edit in edits]
    double = copy.deepcopy(site.edited.model).double()
    return Case(site, edits, batch, Plain(double, site.edited.anatomy))


def test_an_edits_texts_are_the_contexts_the_rephrases_and_what_is_to_stay(case):
    assert [len(edit_texts.texts) for edit_texts in case.batch] == [3, 4, 4, 3]
    assert [len(edit_texts.anchors) for edit_texts in case.batch] == [1, 2, 1, 1]
    read = case.site.edited.tokenizer
    for edit_texts, edit in zip(case.batch, case.edits, strict=True):
        assert edit_texts.texts[0].encoding == edit.encodings[0]
        for text in (*edit_texts.texts, *edit_texts.anchors):
            assert read.decode(text.encoding.ids[text.place]) == edit.request.subject


@pytest.mark.parametrize("block", [0, 1])
def test_keys_are_the_plain_ones(case, block):
    found = read_keys(case.site, case.batch, block)
    for i, edit in enumerate(case.edits):
        mean = case.plain.key(edit.request, CONTEXTS, block)
        own = case.plain.key(edit.request.model_copy(update={"rephrases": ()}), [""], block)
        assert relative_error(found.mean[i], mean) < 1e-5
        assert relative_error(found.plain[i], own) < 1e-5


@pytest.mark.parametrize("block", [0, 1])
def test_states_are_the_plain_residual_sums(case, block):
    found = read_states(case.site, case.batch, block)
    for i, edit in enumerate(case.edits):
        (prompt, place), *_ = case.plain.told(edit.request, [""])
        expected = case.plain.state(plainly.ids_of(prompt), block, place)
        assert relative_error(found[i], expected) < 1e-5


# -- the search for values

CONFIG = LocateThenEditConfig(
    kl_factor=0.7, weight_decay=3.0, clamp_norm_factor=0.5, precision="highest"
)


def search_of(site, batch, block, config, packs=True):
    assert keeps_prefixes(site.edited.model, site.edited.anatomy)
    return ValueSearch(site, batch, block, config, packs)


def some_deltas(site: Site, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(4, site.edited.anatomy.width, generator=generator)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("scale", [0.3, 2.0])
@pytest.mark.parametrize("packs", [True, False])
def test_loss_and_gradient_are_those_through_the_full_model(case, block, scale, packs):
    delta = some_deltas(case.site, scale)
    evaluation = search_of(case.site, case.batch, block, CONFIG, packs).evaluation(delta)
    for i, edit in enumerate(case.edits):
        own = delta[i].double().requires_grad_()
        expected = case.plain.loss(edit.request, CONTEXTS, block, own, CONFIG)
        expected.backward()
        assert evaluation.loss[i].item() == pytest.approx(expected.item(), rel=1e-4)
        assert relative_error(evaluation.gradient[i], own.grad) < 1e-4


@pytest.mark.parametrize("block", [0, 1])
def test_at_the_prompts_end_the_loss_is_that_of_a_value_there(case, block):
    """Without anything that is to stay: other prompts end otherwise."""
    delta = some_deltas(case.site, 1.0)
    batch = [edit_texts.at_end() for edit_texts in case.batch]
    evaluation = search_of(case.site, batch, block, CONFIG).evaluation(delta)
    before = read_states(case.site, batch, block)
    for i, edit in enumerate(case.edits):
        own = delta[i].double().requires_grad_()
        targets = plainly.ids_of(edit.request.target_new)
        missed = []
        for text, _ in case.plain.told(edit.request, CONTEXTS):
            ids = plainly.ids_of(text)
            end = len(ids) - 1
            log_probs = case.plain.logits(ids + targets[:-1], block, end, own).log_softmax(-1)
            rows = [-log_probs[end + j, target] for j, target in enumerate(targets)]
            missed.append(sum(rows) / len(rows))
        ids = plainly.ids_of(edit.request.prompt)
        state = case.plain.state(ids, block, len(ids) - 1)
        expected = sum(missed) / len(missed) + CONFIG.weight_decay * own.norm() / state.norm() ** 2
        expected.backward()
        assert relative_error(before[i], state) < 1e-5
        assert evaluation.loss[i].item() == pytest.approx(expected.item(), rel=1e-4)
        assert relative_error(evaluation.gradient[i], own.grad) < 1e-4


def test_the_loss_is_the_same_with_neurons_on_the_model(gpt2_site):
    """They act in the parts of the model as in the whole."""
    site, width = gpt2_site, gpt2_site.edited.anatomy.width
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 6, width, generator=generator)
    site.edited.put([NeuronPatch(1, keys, torch.full((6,), 0.5), values)])
    edit_texts = texts_of_edit(edit_of(site, correction(1)), [""], site)
    with_them = search_of(site, [edit_texts], 0, CONFIG).evaluation(some_deltas(site, 0.5)[:1])
    (prompt,) = edit_texts.texts
    state = read_states(site, [edit_texts], 0)[0]

    def add(_, __, output):
        moved = output.clone() if isinstance(output, Tensor) else output[0].clone()
        moved[0, prompt.place] += some_deltas(site, 0.5)[0]
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    block = site.edited.anatomy.block(site.edited.model, 0)
    handle = block.register_forward_hook(add)
    with torch.no_grad():
        ids = torch.tensor([prompt.encoding.ids])
        logits = site.edited.model(input_ids=ids).logits[0, -1]
    handle.remove()
    nll = -logits.log_softmax(0)[prompt.encoding.targets[0]]
    decay = CONFIG.weight_decay * some_deltas(site, 0.5)[0].norm() / state.norm() ** 2
    bare = replace(CONFIG, kl_factor=0.0)
    without_kl = search_of(site, [edit_texts], 0, bare).evaluation(some_deltas(site, 0.5)[:1])
    assert without_kl.loss.item() == pytest.approx((nll + decay).item(), rel=1e-5)
    site.edited.take_off(0)
    without = search_of(site, [edit_texts], 0, CONFIG).evaluation(some_deltas(site, 0.5)[:1])
    assert without.loss.item() != pytest.approx(with_them.loss.item(), rel=1e-3)


@pytest.mark.parametrize("block", [0, 1])
def test_the_search_is_normalised_descent_on_every_request_alone(case, block):
    """Six steps, clamped, against the same by hand in float64."""
    config = replace(CONFIG, steps_max=6, stop_loss=0.0, step=0.15, step_decay=0.9)
    found = find_targets(case.site, case.batch, block, config)
    assert set(found.steps) == {6}
    for i, edit in enumerate(case.edits):
        h = found.before[i].double()
        delta = torch.zeros_like(h)
        for step in range(6):
            own = delta.clone().requires_grad_()
            case.plain.loss(edit.request, CONTEXTS, block, own, config).backward()
            direction = torch.nn.functional.normalize(own.grad, dim=0)  # zero where there is none
            delta = delta - 0.15 * 0.9**step * h.norm() * direction
            delta = delta * min(1.0, float(0.5 * h.norm() / delta.norm().clamp(min=1e-30)))
        moved = (found.states[i] - found.before[i]).double()
        assert float((moved - delta).norm()) <= 2e-3 * float(delta.norm())
        expected = case.plain.loss(edit.request, CONTEXTS, block, delta, config)
        assert found.losses[i] == pytest.approx(expected.item(), rel=1e-3)
    lengths = (found.states - found.before).norm(dim=1) / found.before.norm(dim=1)
    assert bool((lengths <= 0.5 + 1e-5).all())


def test_requests_do_not_depend_on_each_other_or_on_the_chunk(case):
    config = replace(CONFIG, steps_max=5, stop_loss=0.0)
    together = find_targets(case.site, case.batch, 0, config)
    apart = find_targets(case.site, case.batch, 0, replace(config, chunk=1))
    assert relative_error(together.states, apart.states) < 1e-3
    assert together.steps == apart.steps


@pytest.mark.parametrize(
    ("chunk", "batch_kept", "sizes"),
    [(None, 100, [4]), (3, 100, [3, 1]), (None, 2, [2, 2]), (3, 2, [2, 1, 1]), (None, 0, [1] * 4)],
)
def test_a_search_holds_no_more_than_it_may(case, monkeypatch, chunk, batch_kept, sizes):
    """Of four edits of one length: the sums of their tokens, and keys and values of one block."""
    edit_texts = case.batch[0]
    tokens = sum(len(text.encoding) for text in (*edit_texts.texts, *edit_texts.anchors))
    anatomy = case.site.edited.anatomy
    assert anatomy.block_count == 2
    kept = tokens * 3 * anatomy.width * 4
    monkeypatch.setattr(searching, "KEPT_BYTES_MAX", batch_kept * kept)
    searched = []
    search = searching._search
    monkeypatch.setattr(
        searching,
        "_search",
        lambda value_search: searched.append(len(value_search.before)) or search(value_search),
    )
    config = replace(CONFIG, steps_max=1, chunk=chunk)
    found = find_targets(case.site, [edit_texts] * 4, 0, config)
    assert searched == sizes
    assert len(found.states) == 4


def test_a_request_stands_still_once_it_has_arrived():
    """One that is answered rightly from the start takes no step, whatever the others take; and a
    loss that is low enough does not do while another token is the likeliest."""
    with edited_of(mediating_decoder()) as edited:
        site = site_of(edited)
        given = [correction(c) | {"prompt": known(c)} for c in range(11)]
        given[0]["target_new"] = language.capital(0)
        batch = [texts_of_edit(edit_of(site, record), [""], site) for record in given]
        for stop_loss in (0.3, 100.0):
            config = LocateThenEditConfig(stop_loss=stop_loss, clamp_norm_factor=4.0)
            found = find_targets(site, batch, 0, config)
            assert found.steps[0] == 0 and torch.equal(found.states[0], found.before[0])
            decay = 0.5 * (found.states - found.before).norm(dim=1) / found.before.square().sum(1)
            stood = [i for i, steps in enumerate(found.steps) if steps < config.steps_max]
            assert 0 < min(found.steps[1:]) < max(found.steps)  # some before others
            if stop_loss > 1:  # the last four have no value that makes them as sure as 0.3
                assert len(stood) == 11
            for i in stood:
                assert found.arrived[i] and found.losses[i] - float(decay[i]) < stop_loss


def test_rounded_products_lead_the_search_to_the_same_place(case):
    """And are the search's own: the rest of the process keeps its precision."""
    full = replace(CONFIG, steps_max=6, stop_loss=0.0)
    before = torch.get_float32_matmul_precision()
    rounded = find_targets(case.site, case.batch, 0, replace(full, precision="medium"))
    assert torch.get_float32_matmul_precision() == before
    exact = find_targets(case.site, case.batch, 0, full)
    assert torch.equal(rounded.before, exact.before)
    moved, meant = rounded.states - rounded.before, exact.states - exact.before
    assert float(torch.nn.functional.cosine_similarity(moved, meant).min()) > 0.99
    assert rounded.losses == pytest.approx(exact.losses, rel=0.02)


def test_a_request_that_cannot_arrive_says_so(gpt2_site):
    edit_texts = texts_of_edit(edit_of(gpt2_site, correction(1)), [""], gpt2_site)
    found = find_targets(gpt2_site, [edit_texts], 0, LocateThenEditConfig(clamp_norm_factor=1e-6))
    assert found.arrived == (False,)
    assert found.steps == (LocateThenEditConfig().steps_max,)


# -- the solves


@dataclass(frozen=True)
class Problem:
    """As in the papers: a request is a column."""

    keys: Tensor  # [d_ff, n]
    residual: Tensor  # [d, n]
    moment: Tensor  # [d_ff, d_ff]
    past: Tensor  # [d_ff, m]


def problem(count: int, width: int = 24, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    seen = normal(width, 200) * torch.logspace(-1, 1, width, dtype=torch.float64)[:, None]
    keys, residual, past = normal(width, count), normal(10, count), normal(width, 5)
    return Problem(keys, residual, seen @ seen.T / 200, past)


def delta_of(left: Tensor, given: Problem) -> Tensor:
    """[d, d_ff]"""
    return (left @ given.residual.T).T


COUNTS = pytest.mark.parametrize("count", [1, 7, 23, 24, 60])


@COUNTS
@pytest.mark.parametrize("weight", [0.01, 20.0])
def test_memits_update_is_equation_14(count, weight):
    given = problem(count)
    solution = weighted(MomentWhitening.of(given.moment, CPU), given.keys.T, weight)
    expected = plainly.memit(given.keys, given.residual, given.moment, weight)
    assert relative_error(delta_of(solution.left, given), expected) < 1e-9
    assert solution.residual < 1e-9 and solution.condition >= 1.0


@pytest.mark.parametrize(("count", "past"), [(1, 0), (4, 5), (20, 5), (30, 5)])
def test_keys_of_earlier_edits_weigh_like_the_batchs_own(count, past):
    given = problem(count)
    earlier = given.past[:, :past]
    solution = weighted(MomentWhitening.of(given.moment, CPU), given.keys.T, 0.5, earlier.T)
    expected = plainly.alphaedit_weighted(given.keys, earlier, given.residual, given.moment, 0.5)
    assert relative_error(delta_of(solution.left, given), expected) < 1e-9
    assert solution.residual < 1e-9


@COUNTS
def test_emmets_update_is_the_constrained_one(count):
    given = problem(count)
    solution = weighted(MomentWhitening.of(given.moment, CPU), given.keys.T, 0.1)
    expected = plainly.emmet(given.keys, given.residual, given.moment, 0.1)
    assert relative_error(delta_of(solution.left, given), expected) < 1e-8


def test_without_a_ridge_every_value_is_written():
    given = problem(7)
    solution = weighted(MomentWhitening.of(given.moment, CPU), given.keys.T, 0.0)
    delta = delta_of(solution.left, given)
    assert relative_error(delta @ given.keys, given.residual) < 1e-10
    expected = plainly.emmet(given.keys, given.residual, given.moment, 0.0)
    assert relative_error(delta, expected) < 1e-10


def test_romes_update_is_equation_2():
    given = problem(1)
    whitening = MomentWhitening.of(given.moment, CPU)
    mean = given.keys + 0.3 * given.past[:, :1]
    for constrained in (mean, given.keys):
        left = rank_one(whitening, mean.T, constrained.T).left
        expected = plainly.rome(mean[:, 0], constrained[:, 0], given.residual[:, 0], given.moment)
        assert relative_error(delta_of(left, given), expected) < 1e-10


def test_rome_is_memit_with_one_request_and_no_weight_on_the_statistics():
    given = problem(1)
    whitening = MomentWhitening.of(given.moment, CPU)
    rome = rank_one(whitening, given.keys.T, given.keys.T).left
    errors = [
        relative_error(weighted(whitening, given.keys.T, weight).left, rome)
        for weight in (1.0, 1e-3, 1e-6, 0.0)  # 0: EMMET without its ridge
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-3 and errors[-1] < 1e-10


def rank_deficient(given: Problem, rank: int) -> tuple[Tensor, Tensor]:
    """C₀ of that rank, and keys K₀ that lie in its range."""
    basis = torch.linalg.qr(given.moment[:, :rank]).Q
    known = basis @ torch.diag(torch.linspace(1, 3, rank, dtype=torch.float64))
    return known @ known.T, known


@pytest.mark.parametrize(("count", "past"), [(1, 0), (4, 5), (9, 5), (30, 5)])
def test_alphaedits_update_is_the_public_codes_and_leaves_what_is_known(count, past):
    given = problem(count)
    moment, known = rank_deficient(given, 12)
    space = NullSpace.of(moment, 0.02, 0.0, CPU)
    projector = space.basis @ space.basis.T
    assert relative_error(projector @ projector, projector) < 1e-10
    assert space.basis.shape == (24, 12)
    solution = projected(space, given.keys.T, given.past[:, :past].T, 10.0)
    delta = delta_of(solution.left, given)
    expected = plainly.alphaedit(given.keys, given.past[:, :past], given.residual, projector, 10.0)
    assert relative_error(delta, expected) < 1e-9
    assert float((delta @ known).norm() / delta.norm()) < 1e-10
    assert solution.residual < 1e-10


def test_keys_of_earlier_edits_are_minded():
    given = problem(4)
    space = NullSpace.of(rank_deficient(given, 12)[0], 0.02, 0.0, CPU)
    free, held = (
        delta_of(projected(space, given.keys.T, past, 1e-3).left, given) @ given.past
        for past in (given.past[:, :0].T, 30 * given.past.T)
    )
    assert float(held.norm()) < 1e-2 * float(free.norm())


def test_a_null_space_is_taken_by_its_share_where_no_eigenvalue_is_small():
    moment = torch.diag(torch.tensor([1.0, 2.0, 3.0, 94.0], dtype=torch.float64))
    assert NullSpace.of(moment, 1.5, 0.0, CPU).basis.shape == (4, 1)
    assert NullSpace.of(moment, 1.5, 0.5, CPU).basis.shape == (4, 1)
    assert NullSpace.of(moment, 0.02, 0.035, CPU).basis.shape == (4, 2)
    assert NullSpace.of(moment, None, 0.035, CPU).basis.shape == (4, 2)
    with pytest.raises(Unsolvable, match="no null space"):
        NullSpace.of(moment, 0.02, 0.005, CPU)


def test_units_that_never_woke_make_no_difficulty():
    """C₀ is singular there; a key that needs them writes to them at no cost."""
    given = problem(3)
    moment = given.moment.clone()
    moment[:4], moment[:, :4] = 0.0, 0.0
    whitening = MomentWhitening.of(moment, CPU)
    assert 0.0 < whitening.ridge < 1e-6 * float(moment.diagonal().mean())
    keys = given.keys.clone()
    keys[:, 0] = 0.0
    keys[0, 0] = 1.0
    solution = weighted(whitening, keys.T, 20.0)
    delta = delta_of(solution.left, given)
    assert relative_error(delta @ keys[:, 0], given.residual[:, 0]) < 1e-4
    assert MomentWhitening.of(given.moment, CPU).ridge == 0.0


def test_what_cannot_be_solved_is_refused():
    given = problem(3)
    whitening = MomentWhitening.of(given.moment, CPU)
    broken = given.keys.T.clone()
    broken[1, 2] = torch.nan
    space = NullSpace(torch.eye(24, dtype=torch.float64))
    for attempt in (
        lambda: weighted(whitening, broken, 1.0),
        lambda: rank_one(whitening, broken[1:2], broken[1:2]),
        lambda: projected(space, broken, given.past.T, 1.0),
        lambda: MomentWhitening.of(torch.full((3, 3), torch.inf), CPU),
    ):
        with pytest.raises(Unsolvable, match="NaN or infinity"):
            attempt()
    twice = given.keys.T[[0, 1, 0]]
    with pytest.raises(Unsolvable, match="depend on each other"):
        weighted(whitening, twice, 0.0)
    with pytest.raises(Unsolvable, match="not positive definite"):
        MomentWhitening.of(-given.moment, CPU)
    with pytest.raises(Unsolvable, match="orthogonal"):
        rank_one(whitening, torch.zeros(1, 24), torch.zeros(1, 24))


# -- settings


def test_the_blocks_that_are_edited_go_with_the_depth():
    chosen = {count: default_blocks(count) for count in (1, 2, 4, 12, 28, 32, 48)}
    assert chosen == {
        1: (0,),
        2: (0,),
        4: (0,),
        12: (2,),
        28: (4, 5, 6),
        32: (4, 5, 6, 7),
        48: (6, 7, 8, 9, 10, 11),
    }
