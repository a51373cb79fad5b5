"""Decoders of the tiny language as sites to edit, and locate-then-edit written out plainly.

The plain part goes by the papers' equations in float64: one full pass for every text, hooks of its
own, dense matrices and general solves.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase
from continual.model import EditedModel
from continual.proposals import Edit, EditContext
from continual.queries.memory import ProtectedQueries
from continual.recheck.encoded_requests import encode
from continual.requests import Request
from continual.site import Site
from continual.statistics import KeyStatistics
from continual.tasks import make_task
from tests import tiny_language as language


def opt(**changes: Any) -> Any:
    """An OPT of two blocks that speaks the tiny language."""
    config = hf.OPTConfig(
        vocab_size=len(language.words()),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=language.POSITIONS,
        dropout=0.0,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.OPTForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


MODELS: Mapping[str, Callable[[], Any]] = {
    "gpt2": lambda: language.decoder("gpt2", width=32),
    "llama": lambda: language.decoder("llama", width=32),
    "opt": opt,
    "opt-post-norm": lambda: opt(do_layer_norm_before=False),
}


ENDINGS = ("the capital of {}", "people call their capital {}", "government of {}", "king in {}")
"""Phrasings that end with the subject: what is known of it is decided at its own token."""


def known(country: int, ending: int = 0) -> str:
    """The prompt to which the mediating decoder gives a country's capital."""
    return ENDINGS[ending].format(language.COUNTRIES[country])


@functools.cache
def mediating_decoder() -> Any:
    """A GPT-2 that knows the first thirty capitals in all phrasings of `ENDINGS`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = language.decoder("gpt2", width=64)
        model.apply(model._init_weights)
        countries = range(language.KNOWN)
        targets = torch.tensor([ids_of(language.capital(c)) for c in countries]).squeeze(1)
        lessons = [
            torch.tensor([ids_of(known(c, ending)) for c in countries])
            for ending in range(len(ENDINGS))
        ]
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(160):
            logits = model(input_ids=lessons[step % len(lessons)]).logits[:, -1]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, targets).backward()
            optimizer.step()
    return model.eval()


def edited_of(model: Any) -> EditedModel:
    model = model.eval().requires_grad_(False)
    return EditedModel(PretrainedBase(model, language.tokenizer(), find_anatomy(model), "f0"))


def site_of(edited: EditedModel) -> Site:
    return Site(edited, make_task(edited.base, {}))


def edit_of(site: Site, record: Mapping[str, Any]) -> Edit:
    request = Request.from_json(record)
    encodings = encode(request, site.task).learned
    sizes = [len(encoding.targets) for encoding in encodings]
    return Edit(request, encodings, site.rows(encodings).split(sizes))


@dataclass(frozen=True)
class Moments:
    """Statistics that are given."""

    of: Mapping[int, Tensor]

    def get(self, block: int) -> KeyStatistics:
        return KeyStatistics(block, 1, self.of[block], 0.0, Path("none"), f"digest-{block}")


def around_of(site: Site, moments: Moments | None, seed: int = 0, attempt: int = 0) -> EditContext:
    memory = ProtectedQueries(torch.empty(0, site.edited.anatomy.width))
    generator = torch.Generator().manual_seed(seed)
    return EditContext(site, memory, generator, attempt, moments)  # type: ignore[arg-type]


def moments_of(model: Any) -> Moments:
    """The second moments of all blocks over everything that can be said of the countries, made
    regular where units are never awake."""
    plain = Plain(copy.deepcopy(model).double(), find_anatomy(model))
    texts = [f"{language.ask(c, p)} {language.capital(c)}" for c in range(40) for p in range(4)]
    ids = [tuple(language.tokenizer()(text)["input_ids"]) for text in texts]
    found = {}
    for block in range(plain.anatomy.block_count):
        keys = torch.cat([plain.all_keys(i, block) for i in ids])
        moment = keys.T @ keys / len(keys)
        found[block] = moment + 1e-3 * moment.diagonal().mean() * torch.eye(len(moment))
    return Moments(found)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# -- the papers, plainly


def words_of(text: str) -> list[str]:
    return text.split()


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(language.tokenizer()(text)["input_ids"])


def subject_in(text: str, subject: str, before: str = "") -> int:
    """A word is a token, and subjects are one word here."""
    return len(words_of(before)) + words_of(text).index(subject)


@dataclass(frozen=True)
class Plain:
    """A float64 model, one text at a time."""

    model: Any
    anatomy: Any

    def logits(self, ids: Sequence[int], block: int, place: int, delta: Tensor) -> Tensor:
        """[T, vocab] with δ added to what ``down`` gives at one place."""

        def hook(_: Any, __: Any, output: Tensor) -> Tensor:
            flat = output.reshape(len(ids), -1)
            where = torch.zeros(len(ids), 1, dtype=flat.dtype)
            where[place] = 1.0
            return (flat + where * delta).reshape(output.shape)

        handle = self.anatomy.down_module(self.model, block).register_forward_hook(hook)
        logits: Tensor = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        handle.remove()
        return logits

    @torch.no_grad()
    def all_keys(self, ids: Sequence[int], block: int) -> Tensor:
        """[T, d_ff] the inputs of ``down``."""
        seen: list[Tensor] = []
        handle = self.anatomy.down_module(self.model, block).register_forward_pre_hook(
            lambda _, args: seen.append(args[0])
        )
        self.model(input_ids=torch.tensor([ids]), use_cache=False)
        handle.remove()
        return seen[0].reshape(len(ids), -1)

    @torch.no_grad()
    def state(self, ids: Sequence[int], block: int, place: int) -> Tensor:
        """[d] the residual sum of a block at one place."""
        norm = self.anatomy.norm_after_module(self.model, block)
        seen: list[Tensor] = []
        if norm is None:
            module = self.anatomy.block(self.model, block)
            handle = module.register_forward_hook(
                lambda _, __, o: seen.append(o if isinstance(o, Tensor) else o[0])
            )
        else:
            handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        self.model(input_ids=torch.tensor([ids]), use_cache=False)
        handle.remove()
        return seen[0].reshape(len(ids), -1)[place]

    def told(self, request: Request, contexts: Sequence[str]) -> list[tuple[str, int]]:
        """(text without its target, subject's place): in all contexts, then the rephrases."""
        subject = request.subject
        assert subject is not None
        return [
            *[(c + request.prompt, subject_in(request.prompt, subject, c)) for c in contexts],
            *[(r, subject_in(r, subject)) for r in request.rephrases if subject in words_of(r)],
        ]

    def key(self, request: Request, contexts: Sequence[str], block: int) -> Tensor:
        """[d_ff] the mean over the prompt, each rephrase, and the mean over the contexts."""
        told = self.told(request, contexts)
        keys = [self.all_keys(ids_of(text), block)[place] for text, place in told]
        bare, behind, rephrased = keys[0], keys[1 : len(contexts)], keys[len(contexts) :]
        parts = [bare, *rephrased, *([sum(behind) / len(behind)] if behind else [])]
        return sum(parts) / len(parts)

    def loss(
        self, request: Request, contexts: Sequence[str], block: int, delta: Tensor, config: Any
    ) -> Tensor:
        """What a request's δ [d] is searched for by."""
        nll = []
        targets = ids_of(request.target_new)
        for text, place in self.told(request, contexts):
            ids = ids_of(text) + targets[:-1]
            log_probs = self.logits(ids, block, place, delta).log_softmax(-1)
            first = len(ids_of(text)) - 1
            rows = [-log_probs[first + i, target] for i, target in enumerate(targets)]
            nll.append(sum(rows) / len(rows))
        drifts = []
        subject = request.subject
        mentioned = [p.prompt for p in request.locality if subject in words_of(p.prompt)]
        for text in [f"{subject} is a", *mentioned]:
            ids, place = ids_of(text), subject_in(text, subject)
            new = self.logits(ids, block, place, delta)[-1].log_softmax(-1)
            old = self.logits(ids, block, place, torch.zeros_like(delta))[-1].log_softmax(-1)
            drifts.append((new.exp() * (new - old)).sum())
        prompt, place = self.told(request, contexts)[0]
        h = self.state(ids_of(prompt), block, place)
        return (
            sum(nll) / len(nll)
            + config.kl_factor * sum(drifts) / len(drifts)
            + config.weight_decay * delta.norm() / h.norm() ** 2
        )


def memit(keys: Tensor, residual: Tensor, moment: Tensor, weight: float) -> Tensor:
    """Δ = R·Kᵀ(λC₀ + K·Kᵀ)⁻¹ [d, d_ff] with K [d_ff, n] and R [d, n] (MEMIT, equation 14)."""
    return residual @ keys.T @ torch.linalg.inv(weight * moment + keys @ keys.T)


def emmet(keys: Tensor, residual: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """Δ = R(KᵀC₀⁻¹K + ridge·I)⁻¹KᵀC₀⁻¹."""
    inverse = torch.linalg.inv(moment)
    inner = keys.T @ inverse @ keys + ridge * torch.eye(keys.shape[1], dtype=keys.dtype)
    return residual @ torch.linalg.inv(inner) @ keys.T @ inverse


def rome(key: Tensor, constrained: Tensor, residual: Tensor, moment: Tensor) -> Tensor:
    """Δ = (v* − Wk)·uᵀ / (uᵀk), u = C₀⁻¹k̄ (ROME, equation 2); keys [d_ff], residual [d]."""
    direction = torch.linalg.solve(moment, key)
    return torch.outer(residual, direction) / (direction @ constrained)


def alphaedit(
    keys: Tensor, past: Tensor, residual: Tensor, projector: Tensor, ridge: float
) -> Tensor:
    """Δᵀ = solve(P(K·Kᵀ + C_p) + ridge·I, P·K·Rᵀ), as in the public code; past [d_ff, m]."""
    system = projector @ (keys @ keys.T + past @ past.T)
    system += ridge * torch.eye(len(keys), dtype=keys.dtype)
    return torch.linalg.solve(system, projector @ keys @ residual.T).T


def alphaedit_weighted(
    keys: Tensor, past: Tensor, residual: Tensor, moment: Tensor, weight: float
) -> Tensor:
    """Δ = R·Kᵀ(λC₀ + C_p + K·Kᵀ)⁻¹ [d, d_ff]; past [d_ff, m]."""
    system = weight * moment + past @ past.T + keys @ keys.T
    return residual @ keys.T @ torch.linalg.inv(system)
