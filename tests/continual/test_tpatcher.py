"""T-Patcher against the paper written out plainly, and what its neurons do and leave alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase, load_base
from continual.editors.tpatcher import TPatcher, TPatcherConfig, training
from continual.editors.tpatcher import config as config_module
from continual.editors.tpatcher.competing import whole
from continual.editors.tpatcher.config import CROWDED_FROM
from continual.editors.tpatcher.losses import Bounds, activation_loss, edit_loss, memory_losses
from continual.editors.tpatcher.training import (
    NeuronParameters,
    PaperTraining,
    Slots,
    total_loss,
    train_values,
)
from continual.effects import gated
from continual.errors import CeditError
from continual.model import EditedModel
from continual.patches.neuron import NeuronPatch
from continual.proposals import Edit, EditContext
from continual.queries.memory import ProtectedQueries
from continual.recheck.encoded_requests import encode
from continual.requests import Request
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding, Question, make_task
from tests import tiny_language as language
from tests.continual.conftest import answers
from tests.tiny_language import CAPITALS, ask, correction
from tests.tiny_models import VOCAB, WIDTH, tiny_model

# -- the paper, plainly: the whole model in float64, a hook, one neuron, loops


@dataclass(frozen=True)
class Paper:
    """The losses of one neuron (equations 5-9), through the full model."""

    model: torch.nn.Module  # float64
    prompts: list[Encoding]  # the edit and its rephrases, one answer token each
    memory: list[Encoding]
    config: TPatcherConfig

    def queries(self, ids: tuple[int, ...]) -> Tensor:
        """The inputs [T, d] of the last FFN."""
        anatomy, seen = find_anatomy(self.model), []
        module = anatomy.query_module(self.model, anatomy.last)
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        self.model(input_ids=torch.tensor([ids]), use_cache=False)
        handle.remove()
        return seen[0].reshape(len(ids), -1)

    def logits(self, ids: tuple[int, ...], k: Tensor, b: Tensor, v: Tensor) -> Tensor:
        """The logits [T, vocab] with the neuron in the last FFN."""
        anatomy = find_anatomy(self.model)
        down = anatomy.down_module(self.model, anatomy.last)
        extra = torch.relu(self.queries(ids) @ k + b).unsqueeze(-1) * v
        handle = down.register_forward_hook(lambda _, __, output: output + extra.view_as(output))
        logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        handle.remove()
        return logits

    def losses(self, k: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """l_e, l_a, l_m1 and l_m2."""
        edit, fire = [], []
        for prompt in self.prompts:
            (position,), (target,) = prompt.positions, prompt.targets
            logits = self.logits(prompt.ids, k, b, v)[position]
            edit.append(logits.logsumexp(0) - logits[target])
            fire.append(-(self.queries(prompt.ids)[position] @ k) - b)
        own = self.queries(self.prompts[0].ids)[self.prompts[0].positions[0]]
        silent, below = [], []
        beta = -self.config.margin / (1 - self.config.margin)
        for probe in self.memory:
            for position in probe.positions:
                query = self.queries(probe.ids)[position]
                silent.append(query @ k + b - beta)
                below.append((query - own) @ k + b - (beta - 1))
        return (
            sum(edit) / len(edit),
            mean_of_largest(fire, self.config.activation_top),
            mean_of_largest(silent, self.config.memory_top),
            mean_of_largest(below, self.config.memory_top),
        )

    def total(self, k: Tensor, b: Tensor, v: Tensor) -> Tensor:
        l_e, l_a, l_m1, l_m2 = self.losses(k, b, v)
        return l_e + self.config.alpha * l_a + self.config.memory_weight * (l_m1 + l_m2)


def mean_of_largest(values: list[Tensor], count: int) -> Tensor:
    largest = sorted((value.exp() for value in values), reverse=True)[:count]
    return sum(largest) / len(largest)


def adam_step(parameters: list[Tensor], config: TPatcherConfig) -> list[Tensor]:
    """Clip all gradients together, add the decay, and take Adam's first step."""
    norm = sum(p.grad.square().sum() for p in parameters).sqrt()
    shrink = min(1.0, config.gradient_clip / (float(norm) + 1e-6))
    moved = []
    for parameter in parameters:
        gradient = parameter.grad * shrink + config.weight_decay * parameter.detach()
        first = 0.1 * gradient / (1 - 0.9)
        second = 0.001 * gradient**2 / (1 - 0.999)
        moved.append(parameter.detach() - config.learning_rate * first / (second.sqrt() + 1e-8))
    return moved


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


# -- the same edit in both


@dataclass(frozen=True)
class Bench:
    """One edit with a rephrase, as rows and through the full model, and a neuron to start from."""

    site: Site
    slots: Slots
    memory: Tensor
    paper: Paper
    start: NeuronParameters


def drawn(length: int, count: int, generator: torch.Generator) -> list[tuple[int, ...]]:
    ids = torch.randint(4, VOCAB, (count, length), generator=generator)
    return [tuple(row) for row in ids.tolist()]


@pytest.fixture(params=["gpt2", "llama", "opt-post-norm"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    model = tiny_model(request.param)
    edited = EditedModel(PretrainedBase(model, language.tokenizer(), find_anatomy(model), "base"))
    generator = torch.Generator().manual_seed(5)
    prompts = [
        Encoding(Question(ids), (len(ids) - 1,), (17,))
        for ids in (*drawn(5, 1, generator), *drawn(7, 1, generator))
    ]
    memory = [Encoding(Question(ids), (2, 5), (8, 9)) for ids in drawn(6, 12, generator)]
    config = TPatcherConfig(memory_top=7)
    with edited:
        site = Site(edited, make_task(edited.base, {}))
        rows, remembered = site.rows(prompts), site.rows(memory)
        slots = Slots(
            rows.query[None],
            rows.hidden[None],
            rows.targets[None],
            torch.ones(1, len(prompts), dtype=torch.bool),
        )
        key = rows.query[0] / rows.query[0].square().sum() + 0.05 * torch.randn(
            WIDTH, generator=generator
        )
        start = NeuronParameters(
            key[None], torch.tensor([0.1]), 0.5 * torch.randn(1, WIDTH, generator=generator)
        )
        paper = Paper(copy.deepcopy(model).double(), prompts, memory, config)
        yield Bench(site, slots, remembered.query, paper, start)


def test_each_loss_is_the_papers(bench):
    k, b, v = bench.start.keys[0], bench.start.bias[0], bench.start.values[0]
    l_e, l_a, l_m1, l_m2 = bench.paper.losses(k.double(), b.double(), v.double())
    config, slots = bench.paper.config, bench.slots
    own = slots.query[0] @ k
    patched = slots.hidden[0] + torch.relu(own + b)[:, None] * v
    bounds = Bounds(config.beta, config.gamma, config.memory_top)
    silent, below = memory_losses((bench.memory @ k)[None], own[:1], b[None], bounds)
    found = {
        "l_e": (edit_loss(bench.site.logits(patched), slots.targets[0]).mean(), l_e),
        "l_a": (activation_loss((own + b)[None], config.activation_top)[0], l_a),
        "l_m1": (silent[0], l_m1),
        "l_m2": (below[0], l_m2),
    }
    assert torch.relu(own + b).min() > 0  # so that l_e depends on all three
    for ours, plain in found.values():
        assert relative_error(ours, plain) < 1e-5


@pytest.mark.parametrize("changes", [{}, {"activation_top": 1}, {"memory_top": 1000}])
def test_one_training_step_is_the_papers(bench, changes):
    config = replace(bench.paper.config, **changes)
    paper = replace(bench.paper, config=config)
    plain = [t[0].double().requires_grad_() for t in vars(bench.start).values()]
    expected_loss = paper.total(*plain)
    expected_loss.backward()
    ours = NeuronParameters(*(t.clone().requires_grad_() for t in vars(bench.start).values()))
    logits = whole(bench.site)
    loss = total_loss(bench.slots, ours, bench.memory, logits, config)
    loss.sum().backward()
    assert relative_error(loss[0].detach(), expected_loss.detach()) < 1e-5
    for found, wanted in zip(vars(ours).values(), plain, strict=True):
        assert relative_error(found.grad[0], wanted.grad) < 1e-4
    training = PaperTraining(bench.slots, bench.start, bench.memory, logits, config)
    training.step()
    moved = training.neurons()
    for found, wanted, start in zip(
        vars(moved).values(), adam_step(plain, config), vars(bench.start).values(), strict=True
    ):
        assert relative_error(found[0], wanted) < 1e-4
        step = wanted - start[0].double()
        assert relative_error(found[0] - start[0], step) < 1e-3  # float32 has no more of it


def test_training_goes_on_as_the_paper_does(bench):
    """Ten steps, Adam by hand in float64."""
    config = bench.paper.config
    plain = [t[0].double().requires_grad_() for t in vars(bench.start).values()]
    optimizer = torch.optim.Adam(plain, lr=config.learning_rate, weight_decay=config.weight_decay)
    training = PaperTraining(bench.slots, bench.start, bench.memory, whole(bench.site), config)
    for _ in range(10):
        loss = bench.paper.total(*plain)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain, config.gradient_clip)
        optimizer.step()
        assert relative_error(training.step()[0], loss.detach()) < 1e-4
    for found, wanted in zip(vars(training.neurons()).values(), plain, strict=True):
        assert relative_error(found[0], wanted.detach()) < 1e-3


def test_the_losses_of_many_neurons_are_those_of_each_alone(bench):
    config, logits = bench.paper.config, whole(bench.site)
    generator = torch.Generator().manual_seed(2)
    keys, values = torch.randn(2, 3, WIDTH, generator=generator)
    many = NeuronParameters(keys, torch.tensor([0.0, 0.3, -0.2]), values)
    padded = torch.tensor([[True, True], [True, False], [True, True]])
    three = torch.zeros(3, dtype=torch.long)
    slots = replace(bench.slots[three], real=padded)
    together = total_loss(slots, many, bench.memory, logits, config)
    for i in range(3):
        rows = padded[i].nonzero().squeeze(-1)
        alone = Slots(
            slots.query[i : i + 1, rows],
            slots.hidden[i : i + 1, rows],
            slots.targets[i : i + 1, rows],
            padded[i : i + 1, rows],
        )
        index = torch.tensor([i])
        loss = total_loss(alone, many[index], bench.memory, logits, config)
        assert relative_error(together[i], loss[0].double()) < 1e-5


def test_the_papers_own_bounds_are_the_default_of_the_losses():
    scores, own, bias = torch.tensor([[-1.0, 2.0, 0.5]]), torch.tensor([1.5]), torch.tensor([-0.5])
    silent, below = memory_losses(scores, own, bias, Bounds(top=2))
    plain = [s + (-0.5) + 3 for s in (2.0, 0.5)]
    assert silent.item() == pytest.approx(sum(torch.tensor(plain).exp().tolist()) / 2)
    plain = [s - 1.5 + (-0.5) + 3 for s in (2.0, 0.5)]
    assert below.item() == pytest.approx(sum(torch.tensor(plain).exp().tolist()) / 2)


def test_an_empty_memory_asks_for_nothing():
    silent, below = memory_losses(torch.empty(2, 0), torch.ones(2), torch.zeros(2), Bounds())
    assert silent.tolist() == below.tolist() == [0.0, 0.0]


# -- the editor


@pytest.fixture
def site(random_model) -> Iterator[Site]:
    base = load_base(random_model)
    with EditedModel(base) as edited:
        yield Site(edited, make_task(base, {}))


@pytest.fixture
def knowing_site(knowing_model) -> Iterator[Site]:
    base = load_base(knowing_model)
    with EditedModel(base) as edited:
        yield Site(edited, make_task(base, {}))


def edit_of(site: Site, record: dict) -> Edit:
    request = Request.from_json(record)
    encodings = encode(request, site.task).learned
    sizes = [len(encoding.targets) for encoding in encodings]
    return Edit(request, encodings, site.rows(encodings).split(sizes))


def remembered(site: Site, countries: range) -> ProtectedQueries:
    encodings = [site.task.encode(ask(c, p), CAPITALS[c]) for c in countries for p in range(4)]
    return ProtectedQueries(site.rows(encodings).query)


def proposed(site: Site, records: list[dict], attempt: int = 0, **settings):
    memory = remembered(site, range(20, 40))
    context = EditContext(site, memory, torch.Generator().manual_seed(0), attempt)
    edits = [edit_of(site, record) for record in records]
    return edits, memory, TPatcher(TPatcherConfig(**settings)).edit(edits, context)


def scores_of(patch: NeuronPatch, queries: Tensor) -> Tensor:
    """q·k + b [n queries, n neurons] in float64."""
    return queries.double() @ patch.keys.double().T + patch.bias.double()


@pytest.mark.parametrize("margin", [0.05, 0.25, 0.6, 0.9])
def test_a_neuron_is_silent_on_memory_and_fires_at_one_on_its_own_query(site, margin):
    edits, memory, proposal = proposed(site, [correction(1)], margin=margin)
    own = scores_of(proposal.patch, edits[0].rows[0].query)
    assert own.item() == pytest.approx(1.0, abs=1e-4)
    highest = scores_of(proposal.patch, memory.all()).max().item()
    assert highest <= 0
    beta = TPatcherConfig(margin=margin).beta
    assert beta == pytest.approx(-margin / (1 - margin))
    assert highest == pytest.approx(beta, rel=1e-3)  # the highest stands exactly at the bound
    assert highest - own.item() == pytest.approx(TPatcherConfig(margin=margin).gamma, rel=1e-3)


def test_a_batch_makes_each_answer_right_and_no_neuron_fires_on_anothers_query(knowing_site):
    site = knowing_site
    records = [correction(c, rephrases=[ask(c, 1)]) for c in range(5)]
    edits, memory, proposal = proposed(site, records)
    assert not proposal.failed
    patch = proposal.patch
    assert len(patch.keys) == 5
    site.edited.put([patch])
    for i, edit in enumerate(edits):
        query = torch.cat([rows.query for rows in edit.rows])
        fired = scores_of(patch, query) > 0
        assert fired[:, i].all()
        assert not fired[:, [j for j in range(5) if j != i]].any()
        assert site.judge_in_full(edit.encodings) == [True, True]
    assert not (scores_of(patch, memory.all()) > 0).any()


def test_neurons_that_still_move_go_on_alone_to_where_they_would_come_with_the_others(
    knowing_site, monkeypatch
):
    """Every third row is far from its answer, and takes more steps."""
    site = knowing_site
    rows = Rows.join(part for c in range(24) for part in edit_of(site, correction(c)).rows)
    far = torch.arange(len(rows)) % 3 == 0
    hidden = torch.where(far[:, None], 6.0 * rows.hidden, rows.hidden)
    slots = Slots(rows.query[:, None], hidden[:, None], rows.targets[:, None], far[:, None] | True)
    keys = rows.query / rows.query.square().sum(1, keepdim=True)
    start = NeuronParameters(keys, torch.zeros(len(rows)), torch.zeros_like(keys))
    steps: dict[int, list[int]] = {}
    found = {}
    step = training._Descent.step
    for few in (8, 1000):
        sizes = steps.setdefault(few, [])
        monkeypatch.setattr(training, "FEW", few)
        monkeypatch.setattr(
            training._Descent,
            "step",
            lambda self, s=sizes: (s.append(len(self.moving)), step(self)),
        )
        found[few] = train_values(slots, start, whole(site), TPatcherConfig())
    assert len(steps[8]) == len(steps[1000]) > 1
    assert len(set(steps[1000])) == 1 and len(set(steps[8])) > 1  # some were left behind
    (alone, arrived), (joint, expected) = found[8], found[1000]
    assert torch.equal(arrived, expected) and bool(arrived.all())
    torch.testing.assert_close(alone.values, joint.values, rtol=1e-4, atol=1e-5)


def test_rephrases_are_learned_from(knowing_site):
    site = knowing_site
    plain = correction(3)
    both = {**plain, "rephrases": [ask(8)]}  # so far off that the prompt alone does not reach it
    wordings = encode(Request.from_json(both), site.task).learned
    found = {}
    for name, record in (("alone", plain), ("together", both)):
        _, _, proposal = proposed(site, [record])
        site.edited.put([proposal.patch])
        found[name] = site.judge_in_full(wordings)
        site.edited.take_off(0)
    assert found == {"alone": [True, False], "together": [True, True]}


def test_only_wrong_tokens_take_a_neuron(site):
    """The answer that the model gives, but for its second token."""
    asked = site.task.encode(ask(1), " ".join(CAPITALS[:3]))
    given = site.task.text(site.greedily(asked)).split()
    other = next(name for name in CAPITALS if name not in given)
    record = correction(1, " ".join([given[0], other]))
    _, _, proposal = proposed(site, [record])
    assert proposal.notes == {Request.from_json(record).id: {"neurons": 1}}
    site.edited.put([proposal.patch])
    assert site.judge_in_full(encode(Request.from_json(record), site.task).learned) == [True]


@pytest.mark.parametrize(("neurons_max", "fits"), [(1, False), (2, False), (3, True)])
def test_an_answer_takes_no_more_neurons_than_allowed(site, neurons_max, fits):
    long, short = correction(1, " ".join(CAPITALS[7:10])), correction(2)
    long_id, short_id = (Request.from_json(record).id for record in (long, short))
    _, _, proposal = proposed(site, [long, short], neurons_max=neurons_max)
    assert set(proposal.failed) == (set() if fits else {long_id})
    assert set(proposal.notes) == ({long_id, short_id} if fits else {short_id})
    if not fits:
        assert "3 of its tokens" in proposal.failed[long_id]


def test_a_narrower_retry_takes_as_many_neurons_as_the_edit_before_it(site):
    """An answer of more tokens than a first attempt has neurons for, which changed too much."""
    edit = edit_of(site, correction(1, " ".join(CAPITALS[7:10])))
    memory = remembered(site, range(20, 40))
    draw = torch.Generator().manual_seed(0)
    context = EditContext(site, memory, draw, attempt=1, narrow=1)
    proposal = TPatcher(TPatcherConfig(neurons_max=2)).edit([edit], context)
    assert not proposal.failed
    site.edited.put([proposal.patch])
    assert site.judge_in_full(edit.encodings[:1]) == [True]


def test_a_query_that_is_in_memory_is_refused_with_a_reason(site):
    edit = edit_of(site, correction(1))
    memory = ProtectedQueries(edit.rows[0].query)
    for attempt in range(TPatcher.attempts):
        context = EditContext(site, memory, torch.Generator().manual_seed(0), attempt)
        quick = TPatcher(TPatcherConfig(steps_max=20, value_steps_max=5))
        proposal = quick.edit([edit], context)
        assert proposal.patch is None
        assert "cannot be told from" in proposal.failed[edit.request.id]


def test_proposing_leaves_the_model_as_it_was(site):
    before = site.edited.fingerprint, site.bank.size
    proposed(site, [correction(1), correction(2)])
    assert (site.edited.fingerprint, site.bank.size) == before


def hemmed_in(site: Site) -> tuple[Edit, ProtectedQueries]:
    """Four of the memory score higher than the query along its own direction, not along others."""
    edit = edit_of(site, correction(1))
    query = edit.rows[0].query
    generator = torch.Generator().manual_seed(3)
    aside = torch.randn(4, query.shape[1], generator=generator)
    aside -= (aside @ query.T) / query.square().sum() * query  # orthogonal to the query
    others = torch.randn(30, query.shape[1], generator=generator)
    return edit, ProtectedQueries(torch.cat([1.2 * query + aside, others]))


def test_the_widest_margin_separates_where_the_closed_form_does_not(site):
    edit, memory = hemmed_in(site)
    context = EditContext(site, memory, torch.Generator().manual_seed(0))
    patch = TPatcher().edit([edit], context).patch
    own = scores_of(patch, edit.rows[0].query).diagonal()
    torch.testing.assert_close(own, torch.ones_like(own), rtol=1e-5, atol=0.0)
    assert (scores_of(patch, memory.all()) < 0).all()


def test_the_papers_training_finds_a_key_where_the_widest_margin_is_too_narrow(site, monkeypatch):
    monkeypatch.setattr("continual.editors.tpatcher.training.ROOM_MIN", torch.inf)
    edit, memory = hemmed_in(site)
    done = []
    for attempt in range(TPatcher.attempts):
        context = EditContext(site, memory, torch.Generator().manual_seed(0), attempt)
        proposal = TPatcher().edit([edit], context)
        done.append(proposal.patch is not None)
    assert done == [False, False, True]
    assert scores_of(proposal.patch, memory.all()).max() <= 0
    site.edited.put([proposal.patch])
    assert site.judge_in_full(edit.encodings) == [True]


def test_the_same_seed_gives_the_same_bytes(made, random_model):
    records = [correction(c, rephrases=[ask(c, 1)]) for c in range(6)]
    records.append(correction(7, " ".join(CAPITALS[3:11])))  # with retries
    patches = []
    for name in ("one", "two"):
        session = made(random_model, name)
        session.apply(records, batch_size=3)
        assert all(answers(session, records))
        lineage = session.store.lineage("head")
        patches.append([(r.patch.sha256, r.fingerprint) for r in lineage if r.patch])
    assert patches[0] == patches[1] and len(patches[0]) == 3


def test_the_margin_leaves_half_the_room_among_sixteen_times_as_many_neurons():
    config = TPatcherConfig(margin=0.4, crowding=0.25)
    assert config.among(0) == config.among(CROWDED_FROM) == config
    assert config.among(16 * CROWDED_FROM).margin == pytest.approx(0.7)
    assert TPatcherConfig(margin=0.4, crowding=0.0).among(10**6).margin == pytest.approx(0.4)


def test_among_many_neurons_a_new_one_stands_further_from_memory(site, monkeypatch):
    def highest_in_memory() -> float:
        _, memory, proposal = proposed(site, [correction(1)], margin=0.4)
        return scores_of(proposal.patch, memory.all()).max().item()

    alone = highest_in_memory()
    monkeypatch.setattr(config_module, "CROWDED_FROM", 1)
    silent = torch.full((16,), -1e9)
    width = site.edited.anatomy.width
    site.edited.put([NeuronPatch(site.block, torch.ones(16, width), silent, torch.ones(16, width))])
    assert alone == pytest.approx(TPatcherConfig(margin=0.4).beta, rel=1e-3)
    assert highest_in_memory() == pytest.approx(TPatcherConfig(margin=0.7).beta, rel=1e-3)


def drawn_neurons(site: Site, seed: int) -> NeuronPatch:
    """Twenty, of which about half fire on any query."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 20, site.edited.anatomy.width, generator=generator)
    return NeuronPatch(site.block, keys, torch.zeros(20), values)


@pytest.mark.parametrize("before", [[], [1], [1, 2]])
@pytest.mark.parametrize("is_known", [False, True])
def test_what_is_tried_is_to_the_bit_what_is_proved(site, before, is_known):
    rows = Rows.join(edit_of(site, correction(1, rephrases=[ask(1, 1), ask(1, 2)])).rows)
    for seed in before:
        site.edited.put([drawn_neurons(site, seed)])
    if is_known:
        site.patched(rows)
    tried = site.patched_with(rows, drawn_neurons(site, 3))
    assert not torch.equal(tried, site.patched(rows))
    site.edited.put([drawn_neurons(site, 3)])
    assert torch.equal(tried, site.patched(rows))
    silent = replace(drawn_neurons(site, 4), bias=torch.full((20,), -1e6))
    assert torch.equal(site.patched_with(rows, silent), tried)


@pytest.mark.filterwarnings("error")
def test_a_gradient_goes_through_many_neurons_as_through_each(site):
    """A search for MEMIT's values runs through the model with its neurons on."""
    site.edited.put([drawn_neurons(site, seed) for seed in range(9)])
    assert site.bank.size > gated.FEW
    width, generator = site.edited.anatomy.width, torch.Generator().manual_seed(1)
    queries = torch.randn(5, width, generator=generator, requires_grad=True)
    added = site.bank.contribution(queries)
    (found,) = torch.autograd.grad(added.square().sum(), queries)
    keys, bias, values = (t.double() for t in (site.bank.keys, site.bank.bias, site.bank.values))
    plain = queries.detach().double().requires_grad_()
    expected = torch.relu(plain @ keys.T + bias) @ values
    (gradient,) = torch.autograd.grad(expected.square().sum(), plain)
    assert relative_error(added.detach(), expected.detach()) < 1e-5
    assert relative_error(found, gradient) < 1e-5


@pytest.mark.parametrize("first", [0, 100, gated.CODED_MIN])
def test_of_many_neurons_those_fire_that_fire_by_the_equation(site, first):
    """Equation 4 in float64, for more neurons than are scored at once; some come, some go."""
    draw, width = torch.Generator().manual_seed(0), site.edited.anatomy.width
    keys = torch.randn(gated.CODED_MIN + 900, width, generator=draw)
    bias = -2.5 * keys.norm(dim=1)  # so that few fire
    queries = 3 * torch.randn(7, width, generator=draw) / width**0.5
    queries[3] = keys[150] * 3 / keys[150].norm()
    site.edited.put([NeuronPatch(site.block, keys[:-400], bias[:-400], keys[:-400])])
    site.bank.firing(queries)
    site.edited.put([NeuronPatch(site.block, keys[-400:], bias[-400:], keys[-400:])])
    for size in (len(keys), len(keys) - 400):
        scores = queries.double() @ keys[:size].double().T + bias[:size].double()
        fires = (scores[:, first:] > 0).any(0).nonzero().flatten() + first
        found = site.bank.firing(queries, first)
        assert torch.equal(found.places, fires)
        assert torch.equal(found.activations, scores[:, fires].relu().float())
        site.edited.take_off(1)


@pytest.mark.parametrize("more", [[], [2], [2, 3]])
def test_rows_that_were_patched_before_are_patched_as_if_anew(site, more):
    rows = Rows.join(edit_of(site, correction(1, rephrases=[ask(1, 1), ask(1, 2)])).rows)
    first = rows[slice(1)]
    site.edited.put([drawn_neurons(site, 1)])
    site.patched(rows)
    for seed in more:
        site.edited.put([drawn_neurons(site, seed)])
    assert torch.equal(site.patched(first), Site(site.edited, site.task).patched(first))
    assert torch.equal(site.patched(rows), Site(site.edited, site.task).patched(rows))
    site.edited.take_off(0)
    site.edited.put([drawn_neurons(site, 4)])
    site.edited.put([drawn_neurons(site, 5)])
    assert torch.equal(site.patched(rows), Site(site.edited, site.task).patched(rows))


def test_settings_that_are_none_are_refused():
    wrong = (
        {"margins": 0.1},
        {"margin": 1.0},
        {"margin": -0.1},
        {"crowding": -1},
        {"neurons_max": 0},
    )
    for settings in wrong:
        with pytest.raises(CeditError, match=r"editor\.tpatcher"):
            TPatcherConfig.of(settings)


def test_rows_join_and_split_without_loss():
    def rows(count: int, seed: int) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        query, hidden = torch.randn(2, count, 3, generator=generator)
        return Rows(query, hidden, torch.arange(count))

    parts = [rows(2, 1), rows(1, 2), rows(4, 3)]
    for part, back in zip(parts, Rows.join(parts).split([2, 1, 4]), strict=True):
        assert torch.equal(part.query, back.query)
        assert torch.equal(part.hidden, back.hidden)
        assert torch.equal(part.targets, back.targets)
