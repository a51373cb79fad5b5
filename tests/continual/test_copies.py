"""Copies of a prompt behind foreign words: which are kept, and what a neuron makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from continual.base import load_base
from continual.editors.tpatcher import TPatcher, TPatcherConfig, editor
from continual.editors.tpatcher.competing import whole
from continual.editors.tpatcher.copies import Originals, copied, worded
from continual.editors.tpatcher.grounds import LastFfn, answers_of
from continual.editors.tpatcher.plans import planned
from continual.editors.tpatcher.training import Slots, closed_form, train_values, widened
from continual.errors import CeditError
from continual.history.rehearsing import recompute
from continual.locate_then_edit import prefixes
from continual.locate_then_edit.prefixes import PREFIXES, SHORT, Prefixes, behind
from continual.model import EditedModel
from continual.patches.neuron import NeuronPatch
from continual.prompts import Chat, Message
from continual.proposals import Edit, EditContext, KnownAnswers
from continual.queries.memory import ProtectedQueries
from continual.recheck.encoded_requests import encode
from continual.requests import Request
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding, make_task, task_class
from tests import tiny_language as language
from tests.continual.conftest import TASKS, reopened, write_lines
from tests.tiny_language import CAPITALS, KNOWN, LABELS, ask, capital, correction, part


@pytest.fixture(params=TASKS)
def site(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[Site]:
    table = {"name": request.param}
    base = load_base(models[request.param], task_class(table).architecture)
    with EditedModel(base) as edited:
        yield Site(edited, make_task(base, table))


def right_answer(task: str, country: int) -> str:
    """What the task's model has learned to say."""
    return part(country) if task == "classification" else capital(country)


def wrong_answer(task: str, country: int) -> str:
    """Another answer."""
    if task == "classification":
        return LABELS[(LABELS.index(part(country)) + 1) % len(LABELS)]
    return CAPITALS[(7 * country + 4) % len(CAPITALS)]


def edit_of(site: Site, country: int, **more: object) -> Edit:
    request = Request.from_json(correction(country, wrong_answer(site.task.name, country), **more))
    encodings = encode(request, site.task).learned
    sizes = [len(encoding.targets) for encoding in encodings]
    return Edit(request, encodings, site.rows(encodings).split(sizes))


def training(site: Site) -> tuple[Encoding, ...]:
    """What is in memory: countries 10 to 29 in all phrasings."""
    return tuple(
        site.task.encode(ask(c, p), right_answer(site.task.name, c))
        for c in range(10, KNOWN)
        for p in range(4)
    )


def context_at(site: Site, seed: int = 0, step: int = 0, attempt: int = 0) -> EditContext:
    known = training(site)
    return EditContext(
        site,
        ProtectedQueries(site.rows_in_passes(known).query),
        torch.Generator().manual_seed(step),
        attempt,
        seed=seed,
        known_answers=lambda: KnownAnswers(known),
    )


def own_copies(site: Site, edit: Edit, context: EditContext, count: int = 16) -> Slots:
    """The copies of an edit's first answer position."""
    hidden = site.patched(edit.rows[0])
    originals = Originals([edit], [0], [0], answers_of(site, hidden)[:1])
    return copied(originals, Prefixes(), count, context, LastFfn([edit], context))


def tensors(proposal) -> list[Tensor]:
    return [proposal.patch.keys, proposal.patch.bias, proposal.patch.values]


def fires(patch, queries: Tensor) -> Tensor:
    """[n queries] whether any neuron of the patch fires, in float64."""
    return (queries.double() @ patch.keys.double().T + patch.bias.double() > 0).any(1)


def test_without_copies_the_patch_is_what_it_was_to_the_bit(site, monkeypatch):
    """The closed form of the prompts' rows, or where it does not separate them the widest margin;
    and no prefix is asked for."""
    monkeypatch.setattr(prefixes, "_make_pool", None)
    edits, context = [edit_of(site, country) for country in range(3)], context_at(site)
    config = TPatcherConfig(copies=0)
    proposal = TPatcher(config).edit(edits, context)
    rows = Rows.join(part for edit in edits for part in edit.rows)
    plan, _ = planned(edits, rows, LastFfn(edits, context).survey(rows, 256), config)
    silent, centre = editor._Silent(plan, context.memory), context.memory.mean()
    expected, separate = closed_form(plan.slots, centre, silent.highest, config)
    assert bool(separate.all()) == (site.task.name != "classification")
    if not separate.all():
        supports = [partial(silent.highest_row, slot) for slot in range(len(separate))]
        wide, is_wide = widened(
            plan.slots, expected.keys, ~separate, supports, silent.highest, config
        )
        assert bool(is_wide[~separate].all())
        expected = expected.but(wide, ~separate)
    assert torch.equal(proposal.patch.keys, expected.keys)
    assert torch.equal(proposal.patch.bias, expected.bias)
    expected, done = train_values(plan.slots, expected, whole(site), config)
    assert bool(done.all())
    assert torch.equal(proposal.patch.values, expected.values)


def test_a_retry_has_no_copies(site):
    edits = [edit_of(site, 0)]
    without, having = (
        TPatcher(TPatcherConfig(copies=count)).edit(edits, context_at(site, attempt=1))
        for count in (0, 16)
    )
    assert all(map(torch.equal, tensors(without), tensors(having)))


def test_copies_are_the_same_when_they_are_made_again(site):
    edit = edit_of(site, 0)
    config = TPatcherConfig(copies=8)
    first, again = (TPatcher(config).edit([edit], context_at(site, seed=3)) for _ in range(2))
    assert all(map(torch.equal, tensors(first), tensors(again)))
    late = TPatcher(config)  # whose prefixes were made for another edit, on an edited model
    site.edited.put([late.edit([edit_of(site, 5)], context_at(site, seed=3, step=1)).patch])
    site.edited.take_off(0)
    assert all(
        map(torch.equal, tensors(first), tensors(late.edit([edit], context_at(site, seed=3))))
    )


def test_prefixes_do_not_depend_on_the_edits_that_are_on(site):
    bare, on = Prefixes(), Prefixes()
    expected = bare.draw(16, context_at(site))
    site.edited.put([TPatcher().edit([edit_of(site, c) for c in range(3)], context_at(site)).patch])
    assert on.draw(16, context_at(site)) == expected


def test_prefixes_are_others_for_another_seed_or_step(site):
    drawn = [
        tuple(Prefixes().draw(6, context_at(site, seed=seed, step=step)))
        for seed, step in ((0, 0), (1, 0), (0, 1))
    ]
    assert len(set(drawn)) == 3
    assert all(len(set(prefixes)) == 6 for prefixes in drawn)


def test_prefixes_are_short_words_that_the_model_knows(site):
    context = context_at(site)
    prefixes = Prefixes().draw(PREFIXES, context)
    unknown = site.edited.tokenizer.unk_token_id
    for prefix in prefixes:
        ids = site.edited.tokenizer(prefix)["input_ids"]
        assert 1 <= len(ids) <= SHORT[1]
        assert unknown not in ids
    if site.task.name != "causal":  # cut out of what is in memory
        known = [ask(c, p) for c in range(10, KNOWN) for p in range(4)]
        assert all(any(prefix.strip() in text for text in known) for prefix in prefixes)


def test_prefixes_need_no_training_probes(models):
    table = {"name": "classification"}
    base = load_base(models["classification"], task_class(table).architecture)
    with EditedModel(base) as edited:
        site = Site(edited, make_task(base, table))
        prefixes = Prefixes().draw(8, replace(context_at(site), known_answers=KnownAnswers))
        assert len(prefixes) == 8
        assert {w for p in prefixes for w in p.split()} <= set(language.words())


def test_a_copy_is_kept_that_is_answered_as_the_prompt_and_no_other(site):
    """Against passes of the whole model over each copy alone."""
    edit, context = edit_of(site, 0), context_at(site)
    kept = own_copies(site, edit, context)
    said = site.greedily(edit.encodings[0])[0]
    expected = []
    for prefix in Prefixes().draw(16, context_at(site)):
        encoding = site.task.encode(f"{prefix}{edit.request.prompt}", edit.request.target_new)
        if site.greedily(encoding)[0] == said:
            expected.append(site.rows([encoding]).query[0])
    found = kept.query[0][kept.real[0]]
    assert 0 < len(found) == len(expected)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_wordings_stand_beside_copies_whatever_they_are_answered(site):
    """As rows read alone: the copies behind the sentences that are drawn, then each wording."""
    other = f"{ask(0, 2)} {ask(1)}"
    edit = replace(edit_of(site, 0), wordings=(other,))
    originals = Originals([edit], [0], [0], answers_of(site, site.patched(edit.rows[0]))[:1])
    ground = LastFfn([edit], context_at(site))
    slots = worded(originals, Prefixes(), 6, context_at(site), ground)
    rows = slots.query[0][slots.real[0]]
    last = site.rows([site.task.encode(other, edit.request.target_new)])
    torch.testing.assert_close(rows[-1], last.query[0], rtol=1e-4, atol=1e-4)
    assert len(rows) == 7
    again = worded(originals, Prefixes(), 6, context_at(site, step=9), ground)
    assert torch.equal(again.query, slots.query)  # a retry draws what was drawn before


@pytest.mark.parametrize("site", ["causal"], indirect=True)
def test_other_wordings_have_a_margin_of_their_own(site):
    """A neuron is 1 on its own row: the higher its threshold, the lower its bias."""
    alone = edit_of(site, 0, subject=language.COUNTRIES[0])
    edit = replace(alone, wordings=(f"{ask(0, 2)} {ask(1)}",))
    plain = context_at(site)
    context = replace(plain, naming=lambda _: plain.memory)

    def bias(of: Edit, **settings: float) -> Tensor:
        config = TPatcherConfig(
            asks_subject=True, subject_margin=0.3, subject_reach=1.0, **settings
        )
        patch = TPatcher(config).edit([of], context).patch
        assert isinstance(patch, NeuronPatch)
        return patch.bias

    assert torch.equal(bias(edit), bias(edit, wordings_margin=0.3))
    assert (bias(edit, wordings_margin=0.1) > bias(edit)).all()
    assert (bias(edit, wordings_margin=0.9) < bias(edit)).all()
    assert torch.equal(bias(alone, wordings_margin=0.9), bias(alone))
    without = {"subject_copies": 0}  # then no wording is read
    assert torch.equal(bias(edit, wordings_margin=0.9, **without), bias(edit, **without))


def test_in_a_chat_a_copy_begins_the_turn_that_asks():
    chat = Chat((Message("system", "Be brief."), Message("user", "Where is Rome?")))
    (copy,) = behind(["By the way. "], chat)
    assert isinstance(copy, Chat)
    assert copy.messages[0] == chat.messages[0]
    assert copy.messages[1] == Message("user", "By the way. Where is Rome?")
    assert behind(["Well. "], "Where") == ["Well. Where"]


@pytest.mark.parametrize("task", ["causal", "classification"])
def test_a_copy_that_is_too_long_is_none(models, task):
    base = load_base(models[task], task_class({"name": task}).architecture)
    with EditedModel(base) as edited:
        site = Site(edited, make_task(base, {"name": task}))
        target = " ".join(CAPITALS[7:9]) if task == "causal" else wrong_answer(task, 0)
        room = language.POSITIONS - len(ask(0).split()) - len(target.split()) + 1
        prompt = f"{'the ' * room}{ask(0)}"
        request = Request.from_json({**correction(0, target), "prompt": prompt})
        encodings = encode(request, site.task).learned
        edit = Edit(request, encodings, (site.rows(encodings),))
        assert not own_copies(site, edit, context_at(site)).real.any()
        proposal = TPatcher(TPatcherConfig(copies=8)).edit([edit], context_at(site))
        alone = TPatcher(TPatcherConfig()).edit([edit], context_at(site))
        assert len(alone.patch.keys) == len(target.split())
        assert all(map(torch.equal, tensors(proposal), tensors(alone)))  # the prompt has to do


def test_a_neuron_with_copies_is_silent_on_all_memory_and_fires_on_them_all(site):
    edit, context = edit_of(site, 0), context_at(site)
    kept = own_copies(site, edit, context_at(site))
    proposal = TPatcher(TPatcherConfig(copies=16)).edit([edit], context)
    patch = proposal.patch
    assert not fires(patch, context.memory.all()).any()
    copied_rows = kept.query[0][kept.real[0]]
    activations = copied_rows.double() @ patch.keys[0].double() + patch.bias[0].double()
    own = edit.rows[0].query[0].double() @ patch.keys[0].double() + patch.bias[0].double()
    least = min(activations.min().item(), own.item())
    assert least == pytest.approx(1.0, abs=1e-4)
    highest = (context.memory.all().double() @ patch.keys[0].double()).max()
    margin = TPatcherConfig().copies_margin
    assert (highest + patch.bias[0]).item() == pytest.approx(-margin / (1 - margin), rel=1e-2)
    site.edited.put([patch])
    assert site.judge_in_full([edit.encodings[0]]) == [True]


def test_prompts_behind_foreign_words_are_answered_anew_with_copies_and_not_without(site):
    """Words of the prefixes' kind that no copy had."""
    edit = edit_of(site, 0)
    others = Prefixes().draw(24, context_at(site, seed=99))
    asked = [
        site.task.encode(f"{prefix}{edit.request.prompt}", edit.request.target_new)
        for prefix in others
    ]
    right = {}
    for name, config in (
        ("copies", TPatcherConfig(copies=16)),
        ("without", TPatcherConfig(margin=0.8)),
    ):
        site.edited.put([TPatcher(config).edit([edit], context_at(site)).patch])
        right[name] = sum(site.judge_in_full(asked))
        site.edited.take_off(0)
    assert right["copies"] > right["without"]


def test_the_prompt_alone_has_to_do_where_no_plane_is_around_its_copies(models):
    """A copy's query is in memory: no plane has it on the one side and the memory on the other."""
    table = {"name": "classification"}
    base = load_base(models["classification"], task_class(table).architecture)
    with EditedModel(base) as edited:
        site = Site(edited, make_task(base, table))
        edit = edit_of(site, 0)
        copy = own_copies(site, edit, context_at(site)).query[0, 0]
        context = context_at(site)
        known = torch.cat([context.memory.all(), copy[None]])
        context = replace(context, memory=ProtectedQueries(known))
        proposal = TPatcher(TPatcherConfig(copies=16)).edit([edit], context)
        alone = TPatcher(TPatcherConfig()).edit([edit], context)
        assert all(map(torch.equal, tensors(proposal), tensors(alone)))


@pytest.mark.parametrize("task", TASKS)
def test_steps_with_copies_come_out_the_same_when_they_are_made_again(made, models, tmp_path, task):
    """Also in the middle of a history: what the prefixes are made of does not move."""
    probes = [{"prompt": ask(c, 1), "answer": right_answer(task, c)} for c in range(10, 20)]
    session = made(
        models[task],
        task={"name": task},
        train_probes=write_lines(tmp_path / "train.jsonl", probes),
        editors={"tpatcher": {"copies": 8}},
    )
    session.apply([correction(c, wrong_answer(task, c)) for c in range(4)], editor="tpatcher")
    session = reopened(session)
    with session:
        steps = session.store.lineage("head")[1:]
        assert [step.body["requests"][0]["outcome"] for step in steps] == ["applied"] * 4
        for chosen in (steps[2:], steps):
            again = list(recompute(session, chosen))
            assert len(again) == len(chosen) and all(made.is_same for made in again)


def test_a_new_store_of_a_classifier_has_copies(made, models):
    own = TPatcherConfig.new_stores["classification"]
    table = {"name": "classification"}
    session = made(models["classification"], "plain", task=table)
    assert session.store.settings["editor"] == {"tpatcher": own}
    given = {"tpatcher": {"copies": 3}, "ft-l": {"learning_rate": 0.1}}
    session = made(models["classification"], "given", task=table, editors=given)
    expected = {"tpatcher": {**own, "copies": 3}, "ft-l": {"learning_rate": 0.1}}
    assert session.store.settings["editor"] == expected


@pytest.mark.parametrize("task", ["causal", "seq2seq"])
def test_a_new_store_of_another_model_says_nothing_of_them(made, models, task):
    tables = made(models[task], task={"name": task}).store.settings.get("editor", {})
    assert "copies" not in tables.get("tpatcher", {})


def test_a_store_that_says_nothing_of_copies_has_none():
    assert TPatcherConfig.of({}).copies == 0


@pytest.mark.parametrize("settings", [{"copies": -1}, {"copies_margin": 1.0}])
def test_settings_that_do_not_do_are_refused(settings):
    with pytest.raises(CeditError, match=r"editor\.tpatcher"):
        TPatcherConfig(**settings)
