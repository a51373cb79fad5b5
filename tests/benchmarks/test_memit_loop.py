"""The plain MEMIT loop is MEMIT: what speed is measured by does the work it is measured at."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import memit_loop
from benchmarks.memit_loop import MemitSettings, SubjectRequest
from tests import tiny_language as language

PHRASING = "the capital of {}"
PREFIX = "people in king . "
CONTEXTS = ("{}", PREFIX + "{}")
RECIPE = MemitSettings(
    blocks=(0, 1), moment_weight=1000.0, weight_decay=1e-3, clamp_norm_factor=4.0
)
EDITED = range(8)
OTHERS = range(8, 40)

Tokens = Any


@pytest.fixture(scope="module")
def tokenizer() -> Tokens:
    return language.tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokens) -> Any:
    """A decoder that tells the capital straight behind the country, with a prefix or without."""
    taught = language.trained_decoder()
    lines = [f"{PHRASING.format(language.COUNTRIES[c])} {language.capital(c)} ." for c in range(40)]
    bare = tokenizer(lines, return_tensors="pt")["input_ids"]
    prefixed = tokenizer([PREFIX + line for line in lines], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.Adam(taught.parameters(), lr=3e-3)
    for step in range(100):
        ids = (bare, prefixed)[step % 2]
        logits = taught(input_ids=ids[:, :-1]).logits[:, -2:]
        optimizer.zero_grad()
        cross_entropy(logits.flatten(0, 1), ids[:, -2:].flatten()).backward()
        optimizer.step()
    taught.zero_grad()
    return taught


@pytest.fixture(scope="module")
def moments(model: Any, tokenizer: Tokens) -> dict[int, Tensor]:
    """C₀ of both blocks, over facts in the midst of random words."""
    draw = random.Random(0)
    rows = []
    for text in range(240):
        before, behind = ([draw.choice(language.words()[2:]) for _ in range(8)] for _ in "ab")
        fact = f"{PHRASING.format(language.COUNTRIES[text % 40])} {language.capital(text % 40)} ."
        rows.append(" ".join([*before[: text % 9], fact, *behind, *before[text % 9 :]]))
    ids = tokenizer(rows, return_tensors="pt")["input_ids"]
    keys = [keys_of(model, block, ids).flatten(0, 1).double() for block in (0, 1)]
    return {block: k.T @ k / len(k) for block, k in enumerate(keys)}


def keys_of(model: Any, block: int, ids: Tensor) -> Tensor:
    """The inputs [B, T, d_ff] of a down-projection."""
    seen: list[Tensor] = []

    def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = model.transformer.h[block].mlp.c_proj.register_forward_pre_hook(see)
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    return seen[0]


def request(tokenizer: Tokens, country: int, answer: str) -> SubjectRequest:
    name = language.COUNTRIES[country]
    return SubjectRequest.of(tokenizer, PHRASING.format(name), name, answer, " .")


def new_facts(tokenizer: Tokens, countries: Iterable[int] = EDITED) -> list[SubjectRequest]:
    moved = [language.CAPITALS[(7 * c + 4) % len(language.CAPITALS)] for c in countries]
    return [request(tokenizer, c, answer) for c, answer in zip(countries, moved, strict=True)]


def answered(model: Any, tokenizer: Tokens, requests: Sequence[SubjectRequest]) -> int:
    """How many requests greedy decoding answers with exactly their target."""
    right = 0
    for r in requests:
        ids = tokenizer(r.prompt)["input_ids"] + list(r.target_ids)
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        predicted = logits[-len(r.target_ids) - 1 : -1].argmax(-1)
        right += tuple(predicted.tolist()) == r.target_ids
    return right


def weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_most_requests_are_answered_anew_and_most_other_facts_as_before(
    model: Any, tokenizer: Tokens, moments: dict[int, Tensor]
) -> None:
    wanted = new_facts(tokenizer)
    kept = [request(tokenizer, c, language.capital(c)) for c in OTHERS]
    assert answered(model, tokenizer, wanted) == 0
    assert answered(model, tokenizer, kept) == len(kept)
    with memit_loop.restored(model, RECIPE.blocks):
        outcome = memit_loop.edit(model, tokenizer, wanted, CONTEXTS, moments, RECIPE)
        assert answered(model, tokenizer, wanted) > 0.75 * len(wanted)
        assert answered(model, tokenizer, kept) > 0.75 * len(kept)
    assert outcome.targets.shape == (len(wanted), 64)
    assert all(1 <= steps <= RECIPE.steps for steps in outcome.steps)
    assert min(outcome.steps) < RECIPE.steps  # some stop early
    assert min(outcome.targets_s, outcome.keys_s, outcome.solve_s) > 0


def test_only_the_edited_blocks_change_and_they_are_restored_to_the_bit(
    model: Any, tokenizer: Tokens, moments: dict[int, Tensor]
) -> None:
    before = weights(model)
    with memit_loop.restored(model, RECIPE.blocks):
        memit_loop.edit(model, tokenizer, new_facts(tokenizer), CONTEXTS, moments, RECIPE)
        changed = {n for n, tensor in model.state_dict().items() if not tensor.equal(before[n])}
    assert changed == {f"transformer.h.{block}.mlp.c_proj.weight" for block in (0, 1)}
    assert same_bits(before, weights(model))


def test_an_exception_restores_the_weights_too(model: Any) -> None:
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), memit_loop.restored(model, (1,)):
        with torch.no_grad():
            memit_loop.down_weight(model, 1).add_(1.0)
        raise KeyboardInterrupt
    assert same_bits(before, weights(model))


def test_an_edit_leaves_no_hook_and_no_gradient(
    model: Any, tokenizer: Tokens, moments: dict[int, Tensor]
) -> None:
    model.zero_grad()
    with memit_loop.restored(model, RECIPE.blocks):
        memit_loop.edit(model, tokenizer, new_facts(tokenizer, [0]), CONTEXTS, moments, RECIPE)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_dense_update_solves_the_normal_equations_in_float64() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, residuals = torch.randn(5, 24, generator=draw), torch.randn(5, 8, generator=draw)
    text = torch.randn(200, 24, generator=draw, dtype=torch.float64)
    moment = text.T @ text / len(text)
    delta = memit_loop.dense_update(keys, residuals, moment, 3.0)
    k, r = keys.double().T, residuals.double().T  # a column a request, as in the paper
    assert delta.dtype == torch.float64
    assert torch.allclose(delta, r @ k.T @ torch.linalg.inv(3.0 * moment + k @ k.T), atol=1e-12)
    at = delta.clone().requires_grad_()
    (3.0 * (at @ moment * at).sum() + (at @ k - r).square().sum()).backward()
    assert at.grad is not None and at.grad.abs().max() < 1e-11  # the least squares' minimum


def test_a_block_gets_the_update_of_its_own_keys_and_residuals(
    model: Any, tokenizer: Tokens, moments: dict[int, Tensor]
) -> None:
    wanted = new_facts(tokenizer)
    recipe = MemitSettings(
        blocks=(1,), moment_weight=10.0, weight_decay=1e-3, clamp_norm_factor=4.0
    )
    weight = memit_loop.down_weight(model, 1)
    before = weight.detach().clone()
    means, hidden = [], []
    for r in wanted:  # the country is the last token of every prompt
        ids = [torch.tensor([tokenizer(c.format(r.prompt))["input_ids"]]) for c in CONTEXTS]
        bare, behind = (keys_of(model, 1, i)[0, -1] for i in ids)
        means.append((bare + behind) / 2)
        hidden.append(last_hidden(model, ids[0]))
    with memit_loop.restored(model, (1,)):
        outcome = memit_loop.edit(model, tokenizer, wanted, CONTEXTS, moments, recipe)
        change = (weight.detach() - before).T.double()
    k = torch.stack(means).double().T
    r = (outcome.targets - torch.stack(hidden)).double().T
    expected = r @ k.T @ torch.linalg.inv(10.0 * moments[1] + k @ k.T)
    assert (change - expected).norm() < 1e-4 * expected.norm()


def last_hidden(model: Any, ids: Tensor) -> Tensor:
    """The last block's output [d] at the last token."""
    seen: list[Tensor] = []
    handle = model.transformer.h[1].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    return seen[0][0, -1]


def test_a_key_is_half_the_bare_prompts_however_many_contexts_there_are(
    model: Any, tokenizer: Tokens
) -> None:
    (wanted,) = new_facts(tokenizer, [3])
    contexts = (*CONTEXTS, "the king lives . {}")
    ids = [torch.tensor([tokenizer(c.format(wanted.prompt))["input_ids"]]) for c in contexts]
    bare, *behind = (keys_of(model, 1, i)[0, -1] for i in ids)
    (found,) = memit_loop.find_keys(model, tokenizer, [wanted], contexts, 1, RECIPE)
    assert torch.allclose(found, (bare + sum(behind) / 2) / 2, atol=1e-5)
    (alone,) = memit_loop.find_keys(model, tokenizer, [wanted], CONTEXTS[:1], 1, RECIPE)
    assert torch.allclose(alone, bare, atol=1e-5)


def test_a_search_ends_where_the_target_is_the_likeliest_and_not_before(
    model: Any, tokenizer: Tokens
) -> None:
    (wanted,) = new_facts(tokenizer, [3])
    free = MemitSettings(blocks=(0,), stop_loss=100.0, clamp_norm_factor=4.0)
    _, steps = memit_loop.find_target(model, tokenizer, wanted, CONTEXTS, free)
    assert 1 < steps < free.steps  # the loss alone would have done from the start
    known = request(tokenizer, 3, language.capital(3))
    costly = dataclasses.replace(free, stop_loss=0.5, weight_decay=1e6)
    _, steps = memit_loop.find_target(model, tokenizer, known, CONTEXTS, costly)
    assert steps == 1  # what δ itself costs does not count


@pytest.mark.parametrize("rule", [memit_loop.Adam(), memit_loop.Normalised(0.2, 0.9)])
def test_a_target_is_what_unpadded_passes_find(
    model: Any, tokenizer: Tokens, rule: memit_loop.Rule
) -> None:
    (wanted,) = new_facts(tokenizer, [3])
    recipe = MemitSettings(
        blocks=(0,), steps=5, rule=rule, kl_factor=2.0, clamp_norm_factor=0.5, stop_loss=0.0
    )
    exact = copy.deepcopy(model).double()
    found, steps = memit_loop.find_target(exact, tokenizer, wanted, CONTEXTS, recipe)
    assert steps == recipe.steps
    expected = target_by_single_passes(exact, tokenizer, wanted, recipe)
    assert torch.allclose(found, expected, rtol=0.0, atol=1e-9)


def target_by_single_passes(
    model: Any, tokenizer: Tokens, wanted: SubjectRequest, recipe: MemitSettings
) -> Tensor:
    """z with each prompt in a pass of its own: one step less than there are passes."""
    delta = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    prompts = [tokenizer(context.format(wanted.prompt))["input_ids"] for context in CONTEXTS]
    kl_ids = tokenizer(f"{wanted.subject} is a")["input_ids"]
    hidden = shifted(model, prompts[0], len(prompts[0]) - 1, delta)[1]
    old = shifted(model, kl_ids, 0, delta)[0][-1:].log_softmax(-1).detach()
    rule = recipe.rule
    optimizer = torch.optim.Adam([delta], lr=0.5)
    for number in range(recipe.steps - 1):
        losses = []
        for ids in prompts:
            whole = ids + list(wanted.target_ids[:-1])
            logits = shifted(model, whole, len(ids) - 1, delta)[0][len(ids) - 1 :]
            losses.append(cross_entropy(logits, torch.tensor(wanted.target_ids)))
        new = shifted(model, kl_ids, 0, delta)[0][-1:].log_softmax(-1)
        drift = (new.exp() * (new - old)).sum()
        loss = torch.stack(losses).mean() + recipe.kl_factor * drift
        loss = loss + recipe.weight_decay * delta.norm() / hidden.norm() ** 2
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        if isinstance(rule, memit_loop.Normalised):
            size = rule.length * rule.decay**number * hidden.norm()
            with torch.no_grad():
                delta -= size * delta.grad / delta.grad.norm()
        else:
            optimizer.step()
        limit = recipe.clamp_norm_factor * hidden.norm()
        with torch.no_grad():
            delta *= min(1.0, float(limit / delta.norm()))
    return hidden + delta.detach()


def shifted(model: Any, ids: list[int], place: int, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [T, V] with delta on block 0's output at a place, and that output [d] without it."""
    seen: list[Tensor] = []

    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        seen.append(output[0, place].detach().clone())
        at = output.new_zeros(output.shape[1], 1)
        at[place] = 1.0
        return output + at * delta

    handle = model.transformer.h[0].register_forward_hook(add)
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    handle.remove()
    return logits, seen[0]


def test_keys_are_the_same_however_many_requests_share_a_pass(
    model: Any, tokenizer: Tokens
) -> None:
    wanted = new_facts(tokenizer)
    together = dataclasses.replace(RECIPE, requests_per_pass=3)
    one = memit_loop.find_keys(model, tokenizer, wanted, CONTEXTS, 1, RECIPE)
    three = memit_loop.find_keys(model, tokenizer, wanted, CONTEXTS, 1, together)
    assert one.shape == (len(wanted), 256)
    assert torch.allclose(one, three, atol=1e-5)


def test_the_subject_is_found_behind_a_context_that_names_it(tokenizer: Tokens) -> None:
    name = language.COUNTRIES[0]
    text = memit_loop.tokenize(tokenizer, f"people in {name} call", name, f"{name} . {{}}")
    assert text.subject_last == 4
    assert len(text.ids) == 6


def test_requests_and_contexts_that_make_no_sense_are_refused(
    model: Any, tokenizer: Tokens, moments: dict[int, Tensor]
) -> None:
    with pytest.raises(ValueError, match="isn't in the prompt"):
        SubjectRequest("the capital of Kelin", "Badar", (5,))
    with pytest.raises(ValueError, match="without tokens"):
        SubjectRequest("the capital of Kelin", "Kelin", ())
    with pytest.raises(ValueError, match="bare prompt"):
        memit_loop.edit(model, tokenizer, new_facts(tokenizer), CONTEXTS[1:], moments, RECIPE)
    with pytest.raises(ValueError, match="no request"):
        memit_loop.edit(model, tokenizer, [], CONTEXTS, moments, RECIPE)
