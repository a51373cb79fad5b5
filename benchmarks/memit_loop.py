"""MEMIT's published loop (Meng et al., ICLR 2023), written plainly, as the yardstick for speed.

For GPT-2. Finds a target z for each request, one request at a time: every step runs the full model
over the request's prompts behind all contexts, and projects every position on the whole vocabulary
twice, in the model and again for the loss. Then, block after block, come the keys by full passes, a
dense float64 solve of d_ff unknowns, and the dense delta on the weight in place. As in the
published code the last step only reads the loss, z starts from the bare prompt, and the key of a
request weighs the bare prompt as much as all contexts together.

Three things differ from that code. KL is taken where "{subject} is a" ends, as in the paper (the
code reads it at the subject). A search stops by `MemitSettings.stop_loss` without δ's own cost, and
only when the target is the likeliest everywhere (the code: by the whole loss alone), so that it
ends where the engine's search does. Keys are read one request at a time, unless
`MemitSettings.requests_per_pass` says more: the code reads hundreds of texts in a pass.
`MemitSettings.rule` may put the engine's steps in the place of Adam's; any remaining difference in
time is then due to the passes alone. The caller supplies the contexts, which the published code
lets the model write, and the moments C₀. Uses no code of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import GPT2LMHeadModel

BARE = "{}"
KL_PROMPT = "{} is a"
NO_TARGET = -100


@dataclass(frozen=True)
class Adam:
    """The published rule."""

    rate: float = 0.5

    def of(self, delta: Tensor) -> Callable[[Tensor, int], None]:
        """Return a step down δ's gradient; it takes ‖h‖ and the number of steps before."""
        optimizer = torch.optim.Adam([delta], lr=self.rate)

        def step(_: Tensor, __: int) -> None:
            optimizer.step()

        return step


@dataclass(frozen=True)
class Normalised:
    """Steps of a length set in ‖h‖, each shorter than the one before by `decay`."""

    length: float
    decay: float

    def of(self, delta: Tensor) -> Callable[[Tensor, int], None]:
        """Return a step down δ's gradient; it takes ‖h‖ and the number of steps before."""

        def step(norm: Tensor, number: int) -> None:
            assert delta.grad is not None, "there is no gradient to go down"
            size = self.length * self.decay**number * norm
            with torch.no_grad():
                delta.sub_(size * torch.nn.functional.normalize(delta.grad, dim=0))

        return step


Rule = Adam | Normalised


@dataclass(frozen=True)
class MemitSettings:
    """The published settings. Blocks and λ depend on the model: these are for gpt2-xl."""

    blocks: tuple[int, ...] = (13, 14, 15, 16, 17)
    moment_weight: float = 20_000.0  # λ
    steps: int = 25  # forward passes: the last one only reads the loss
    rule: Rule = Adam()
    kl_factor: float = 0.0625
    weight_decay: float = 0.5
    clamp_norm_factor: float = 0.75
    stop_loss: float = 0.05  # see the module's docstring
    requests_per_pass: int = 1  # whose keys and hidden states are read together


@dataclass(frozen=True)
class SubjectRequest:
    """One edit: a prompt with its subject in it, and the tokens wanted behind it."""

    prompt: str
    subject: str
    target_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.subject or self.subject not in self.prompt:
            raise ValueError(f"The subject {self.subject!r} isn't in the prompt {self.prompt!r}.")
        if not self.target_ids:
            raise ValueError(f"The prompt {self.prompt!r} has a target without tokens.")

    @classmethod
    def of(
        cls, tokenizer: Any, prompt: str, subject: str, answer: str, terminator: str = "\n"
    ) -> SubjectRequest:
        """Build a request whose target is a space, the answer and the terminator.

        The target is tokenised with the prompt if the prompt's own tokens stay the same, else
        alone.
        """
        tail = f"{'' if prompt[-1].isspace() else ' '}{answer}{terminator}"
        question = tuple(tokenizer(prompt)["input_ids"])
        together = tuple(tokenizer(prompt + tail)["input_ids"])
        if together[: len(question)] == question:
            return cls(prompt, subject, together[len(question) :])
        alone = tokenizer(tail, add_special_tokens=False)["input_ids"]
        return cls(prompt, subject, tuple(alone))


@dataclass(frozen=True)
class SubjectText:
    """A prompt as tokens, and the place of its subject's last token."""

    ids: tuple[int, ...]
    subject_last: int


@dataclass(frozen=True)
class BatchTargets:
    """The targets of a batch and their cost; the edit itself is in the model's weights."""

    targets: Tensor  # z [n, d]
    steps: tuple[int, ...]  # forward passes of each request's target
    targets_s: float
    keys_s: float  # keys and residuals
    solve_s: float  # solves, and the deltas on the weights


def edit(
    model: GPT2LMHeadModel,
    tokenizer: Any,
    requests: Sequence[SubjectRequest],
    contexts: Sequence[str],
    moments: Mapping[int, Tensor],
    recipe: MemitSettings,
) -> BatchTargets:
    """Make one batch of edits in place, on a model in eval mode.

    `contexts`: "{}", then others such as "Some text. {}". `moments`: C₀ [d_ff, d_ff] of each block.
    """
    if not requests:
        raise ValueError("There is no request to edit by.")
    if not contexts or contexts[0] != BARE:
        raise ValueError(f"The first context has to be {BARE!r}: z starts from the bare prompt.")
    keys_s = solve_s = 0.0
    started = _now(model)
    found = [find_target(model, tokenizer, request, contexts, recipe) for request in requests]
    targets = torch.stack([target for target, _ in found])
    targets_s = _now(model) - started
    for index, block in enumerate(recipe.blocks):
        started = _now(model)
        keys = find_keys(model, tokenizer, requests, contexts, block, recipe)
        missing = targets - find_hidden(model, tokenizer, requests, recipe)
        read = _now(model)
        residuals = missing / (len(recipe.blocks) - index)
        delta = dense_update(keys, residuals, moments[block], recipe.moment_weight)
        weight = down_weight(model, block)
        with torch.no_grad():
            weight.add_(delta.T.to(weight))
        keys_s += read - started
        solve_s += _now(model) - read
    return BatchTargets(targets, tuple(steps for _, steps in found), targets_s, keys_s, solve_s)


def down_weight(model: GPT2LMHeadModel, block: int) -> nn.Parameter:
    """Return the weight [d_ff, d] that is edited in a block."""
    return model.transformer.h[block].mlp.c_proj.weight


@contextmanager
def restored(model: GPT2LMHeadModel, blocks: Sequence[int]) -> Iterator[None]:
    """Restore the bits of the blocks' edited weights on leaving."""
    before = {block: down_weight(model, block).detach().clone() for block in blocks}
    try:
        yield
    finally:
        with torch.no_grad():
            for block, weight in before.items():
                down_weight(model, block).copy_(weight)


def tokenize(tokenizer: Any, prompt: str, subject: str, context: str = BARE) -> SubjectText:
    """Tokenise a prompt in its context, and locate its subject by the tokenizer's offsets."""
    start = context.index(BARE) + prompt.index(subject)
    end = start + len(subject)
    encoded = tokenizer(context.replace(BARE, prompt, 1), return_offsets_mapping=True)
    inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < end]
    return SubjectText(tuple(encoded["input_ids"]), inside[-1])


# --- the target of a request ----------------------------------------------------------------------


@dataclass(frozen=True)
class PaddedRequest:
    """A request as one padded batch: its prompt in all C contexts, then the KL prompt."""

    inputs: dict[str, Tensor]  # [C + 1, T]
    subjects: tuple[int, ...]  # [C + 1], the place of δ in each row
    labels: Tensor  # [C, T], NO_TARGET where no target is predicted
    kl_position: int

    @classmethod
    def of(
        cls, tokenizer: Any, request: SubjectRequest, contexts: Sequence[str], device: torch.device
    ) -> PaddedRequest:
        """Build the batch: prompts with all target tokens but the last, then "{subject} is a"."""
        subject, targets = request.subject, request.target_ids
        prompts = [tokenize(tokenizer, request.prompt, subject, context) for context in contexts]
        kl = tokenize(tokenizer, KL_PROMPT.format(subject), subject)
        inputs = _padded([text.ids + targets[:-1] for text in prompts] + [kl.ids], device)
        labels = torch.full_like(inputs["input_ids"][:-1], NO_TARGET)
        for row, text in enumerate(prompts):
            first = len(text.ids) - 1
            labels[row, first : first + len(targets)] = torch.tensor(targets, device=device)
        subjects = tuple(text.subject_last for text in (*prompts, kl))
        return cls(inputs, subjects, labels, len(kl.ids) - 1)


class Shift:
    """A forward hook that adds δ [d] at the subject in every row, and keeps the bare h [d]."""

    def __init__(self, delta: Tensor, subjects: Sequence[int]) -> None:
        self.delta = delta
        self.subjects = list(subjects)
        self.hidden: Tensor | None = None

    def __call__(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return the block's output [C + 1, T, d], shifted."""
        if self.hidden is None:
            self.hidden = output[0, self.subjects[0]].detach().clone()
        shifted = output.clone()
        shifted[range(len(output)), self.subjects] += self.delta
        return shifted


def find_target(
    model: GPT2LMHeadModel,
    tokenizer: Any,
    request: SubjectRequest,
    contexts: Sequence[str],
    recipe: MemitSettings,
) -> tuple[Tensor, int]:
    """Find z = h + δ [d] of one request at the last edited block; return it and the forward
    passes."""
    padded = PaddedRequest.of(tokenizer, request, contexts, model.device)
    like = {"device": model.device, "dtype": model.dtype}
    delta = torch.zeros(model.config.n_embd, **like, requires_grad=True)
    shift = Shift(delta, padded.subjects)
    move = recipe.rule.of(delta)
    before: Tensor | None = None
    step = 0
    with _frozen(model), _hooked(model.transformer.h[recipe.blocks[-1]], shift):
        for step in range(1, recipe.steps + 1):
            seen = _look(model, padded)
            before = seen.essence.detach().clone() if before is None else before
            fit = seen.missed + recipe.kl_factor * _drift(before, seen.essence)
            if (seen.is_right and fit < recipe.stop_loss) or step == recipe.steps:
                break
            delta.grad = None
            (fit + _cost(shift, recipe)).backward()
            move(_hidden(shift).norm(), step - 1)
            _clamp(shift, recipe.clamp_norm_factor)
    return _hidden(shift) + delta.detach(), step


@dataclass(frozen=True)
class PassResult:
    """The result of one forward pass over a padded request."""

    missed: Tensor  # mean NLL of the target over the contexts
    is_right: bool  # the target is the likeliest everywhere
    essence: Tensor  # log-probabilities [1, V] for the KL


def _look(model: GPT2LMHeadModel, padded: PaddedRequest) -> PassResult:
    seen: list[Tensor] = []
    with _hooked(model.transformer.h[-1], lambda _, __, output: seen.append(output)):
        logits = model(**padded.inputs, use_cache=False).logits
    now = torch.log_softmax(logits[-1:, padded.kl_position], dim=-1)
    again = model.lm_head(model.transformer.ln_f(seen[0][:-1]))
    log_probs = torch.log_softmax(again, dim=-1)  # [C, T, V]
    wanted = padded.labels != NO_TARGET
    chosen = log_probs.gather(2, padded.labels.clamp(min=0)[..., None]).squeeze(2)
    missed = -((chosen * wanted).sum(1) / wanted.sum(1)).mean()
    is_right = bool((log_probs.argmax(2) == padded.labels)[wanted].all())
    return PassResult(missed, is_right, now)


def _drift(before: Tensor, now: Tensor) -> Tensor:
    """Return KL(new ‖ old) of log-probabilities [1, V]."""
    return kl_div(before, now, log_target=True, reduction="batchmean")


def _cost(shift: Shift, recipe: MemitSettings) -> Tensor:
    """Return the cost of δ itself: wd·‖δ‖/‖h‖²."""
    return recipe.weight_decay * shift.delta.norm() / _hidden(shift).norm() ** 2


def _clamp(shift: Shift, factor: float) -> None:
    """Put δ back into the ball of radius factor·‖h‖."""
    norm_max = factor * _hidden(shift).norm()
    with torch.no_grad():
        if shift.delta.norm() > norm_max:
            shift.delta.mul_(norm_max / shift.delta.norm())


def _hidden(shift: Shift) -> Tensor:
    assert shift.hidden is not None, "no forward pass has been made"
    return shift.hidden


# --- keys, hidden states, and the update ----------------------------------------------------------


def find_keys(
    model: GPT2LMHeadModel,
    tokenizer: Any,
    requests: Sequence[SubjectRequest],
    contexts: Sequence[str],
    block: int,
    recipe: MemitSettings,
) -> Tensor:
    """Read keys [n, d_ff]: the down-projection's inputs at the subject.

    Half of each key is from the bare prompt, and half is the mean over the other contexts.
    """
    down = model.transformer.h[block].mlp.c_proj
    keys = []
    for some in _in_passes(requests, recipe):
        texts = [tokenize(tokenizer, r.prompt, r.subject, c) for r in some for c in contexts]
        read = _read(model, down, "input", texts).unflatten(0, (len(some), len(contexts)))
        bare, others = read[:, 0], read[:, 1:]
        keys.append((bare + others.mean(1)) / 2 if others.shape[1] else bare)
    return torch.cat(keys)


def find_hidden(
    model: GPT2LMHeadModel,
    tokenizer: Any,
    requests: Sequence[SubjectRequest],
    recipe: MemitSettings,
) -> Tensor:
    """Read H_L [n, d]: the last edited block's outputs at the subject of the bare prompt, by the
    model as it stands."""
    block = model.transformer.h[recipe.blocks[-1]]
    hidden = []
    for some in _in_passes(requests, recipe):
        texts = [tokenize(tokenizer, request.prompt, request.subject) for request in some]
        hidden.append(_read(model, block, "output", texts))
    return torch.cat(hidden)


def dense_update(keys: Tensor, residuals: Tensor, moment: Tensor, weight: float) -> Tensor:
    """Return Δ = R·Kᵀ(λC₀ + K·Kᵀ)⁻¹ [d, d_ff] in float64 (equation 14), solved as it stands.

    `keys` [n, d_ff] and `residuals` [n, d] have a request a row, where the paper has a column.
    """
    keys, residuals = keys.double(), residuals.double()
    system = weight * moment.to(keys) + keys.T @ keys
    solved = torch.linalg.solve(system, keys.T)  # [d_ff, n]
    return residuals.T @ solved.T


@torch.no_grad()
def _read(
    model: GPT2LMHeadModel,
    module: nn.Module,
    side: Literal["input", "output"],
    texts: list[SubjectText],
) -> Tensor:
    """Read a module's input or output at each text's subject, by one full pass."""
    seen: list[Tensor] = []

    def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(inputs[0] if side == "input" else output)

    with _hooked(module, see):
        model(**_padded([text.ids for text in texts], model.device), use_cache=False)
    return seen[0][range(len(texts)), [text.subject_last for text in texts]]


def _in_passes(
    requests: Sequence[SubjectRequest], recipe: MemitSettings
) -> Iterator[Sequence[SubjectRequest]]:
    size = recipe.requests_per_pass
    return (requests[start : start + size] for start in range(0, len(requests), size))


# --- the model ------------------------------------------------------------------------------------


def _padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> dict[str, Tensor]:
    """Return input_ids and attention_mask [B, T], padded on the right."""
    size = max(map(len, rows))
    ids = [row + (0,) * (size - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (size - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter take a gradient while this lasts."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _now(model: GPT2LMHeadModel) -> float:
    """Return the time in seconds, after waiting for the device to finish."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
