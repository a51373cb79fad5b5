"""Trains SERAC's counterfactual model h: a causal model that answers x as if the edit z_e held.

The loss is E[-log p_h(y | z_e, x)] (Mitchell et al. 2022, equation 2), over inputs in an edit's
scope, which take its answer, and inputs beside it, which keep their own: retrieval errs at times,
and a model that heeds every context would answer for all of them. z_e and x are read as one text.

Knows requests and one model; leaves to the router when the model is asked.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from continual.errors import CeditError, RequestError
from continual.memory.contexts import FORM, context, require_form
from continual.prompts import Prompt
from continual.requests import Request
from continual.task_model import length_sorted
from continual.tasks import Encoding, Task
from store import canonical

STATE_FILE = "training.safetensors"
_META_KEY = "cedit"


@dataclass(frozen=True)
class SeracRecipe:
    """The settings of h's training."""

    epochs: int = 4
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    batch_tokens_max: int = 2048
    held_out_share: float = 0.1  # of the requests: they measure and do not teach
    form: str = FORM  # the text of an edit and an input
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0.0 <= self.held_out_share < 1.0:
            raise CeditError("epochs is at least 1, and held_out_share in [0, 1).")
        require_form(self.form, "editor.serac")

    def text(self, edit: Request, prompt: Prompt) -> str:
        """Return an edit and an input as h reads them."""
        return context(self.form, str(edit.prompt), edit.target_new) + str(prompt)


@dataclass(frozen=True)
class InitialReader:
    """The start of h: a causal model, in eval mode and float32."""

    model: Any
    tokenizer: Any
    task: Task


@dataclass(frozen=True)
class ScopePairs:
    """Pairs that h learns from or is measured on."""

    inside: tuple[Encoding, ...]  # in scope: answered as the edit says
    beside: tuple[Encoding, ...]  # out of scope: answered as before

    @classmethod
    def of(cls, requests: Sequence[Request], task: Task, recipe: SeracRecipe) -> ScopePairs:
        """Make the pairs of these requests; leave out pairs too long for the model."""
        inside, beside = [], []
        draw = random.Random(recipe.seed)
        for edit in requests:
            prompts = (edit.prompt, *edit.rephrases, *edit.held_out_rephrases)
            inside += [(recipe.text(edit, p), edit.target_new) for p in prompts]
            beside += [(recipe.text(edit, p.prompt), p.answer) for p in edit.locality]
            distractor = draw.choice(requests)
            if edit.target_old is not None and distractor.key != edit.key:
                beside.append((recipe.text(distractor, edit.prompt), edit.target_old))
        return cls(tuple(_encoded(inside, task)), tuple(_encoded(beside, task)))

    @property
    def all(self) -> tuple[Encoding, ...]:
        """The pairs inside, then those beside."""
        return (*self.inside, *self.beside)


@dataclass(frozen=True)
class Epoch:
    """The state of a training run after an epoch."""

    number: int  # from 1
    loss: float | None  # the mean over the epoch's batches; None for one that was resumed
    inside: float | None  # accuracy on held-out requests, by greedy exact match
    beside: float | None


def train_serac(
    start: InitialReader, requests: Sequence[Request], recipe: SeracRecipe, out: Path
) -> Iterator[Epoch]:
    """Train the start's model in place and leave it in the new directory `out`, whole or not at
    all.

    Yields after every epoch. The state of an interrupted run lies beside `out`, and the same call
    goes on from there. Raises CeditError where `out` is taken or nothing can be learned.
    """
    if out.exists():
        raise CeditError(f"{out} exists: name a new directory, or remove it.")
    train_requests, test_requests = _divided(requests, recipe)
    pairs = ScopePairs.of(train_requests, start.task, recipe)
    if not pairs.inside:
        raise CeditError("There is no request to learn from that fits the model's context.")
    test_pairs = ScopePairs.of(test_requests, start.task, recipe)
    run = _SeracRun(start, recipe, out.with_name(f"{out.name}.partial"))
    while run.epoch < recipe.epochs:
        loss = run.advance(pairs.all)
        inside, beside = (run.accuracy(part) for part in (test_pairs.inside, test_pairs.beside))
        yield Epoch(run.epoch, loss, inside, beside)
    run.finish(out)


def _divided(
    requests: Sequence[Request], recipe: SeracRecipe
) -> tuple[list[Request], list[Request]]:
    """Return the requests that teach, and the requests that measure."""
    order = list(requests)
    random.Random(recipe.seed).shuffle(order)
    count = int(len(order) * recipe.held_out_share)
    return order[count:], order[:count]


def _encoded(pairs: Sequence[tuple[str, str]], task: Task) -> Iterator[Encoding]:
    for prompt, answer in pairs:
        try:
            yield task.encode(prompt, answer)
        except RequestError:  # too long for the model, or for the task's limits
            continue


class _SeracRun:
    """One run, with its state on disk after every epoch."""

    def __init__(self, start: InitialReader, recipe: SeracRecipe, folder: Path) -> None:
        self._model, self._task, self._tokenizer = start.model, start.task, start.tokenizer
        self._recipe, self._folder = recipe, folder
        self.epoch = 0
        self._parameters = dict(start.model.named_parameters())
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self._resume()

    def advance(self, encodings: Sequence[Encoding]) -> float:
        """Run one epoch, and return its mean loss."""
        recipe = self._recipe
        batches = length_sorted(encodings, recipe.batch_tokens_max)
        random.Random(f"{recipe.seed}|{self.epoch}").shuffle(batches)
        losses = []
        self._model.train()
        for number, batch in enumerate(batches):
            share = (self.epoch + number / len(batches)) / recipe.epochs
            for group in self._optimizer.param_groups:
                group["lr"] = recipe.learning_rate * (1.0 - share)
            losses.append(self._update([encodings[i] for i in batch]))
        self._model.eval()
        self.epoch += 1
        self._save()
        return sum(losses) / len(losses)

    @torch.no_grad()
    def accuracy(self, encodings: Sequence[Encoding]) -> float | None:
        """Return the share that greedy decoding answers exactly."""
        if not encodings:
            return None
        right_count = 0
        for batch in length_sorted(encodings, self._recipe.batch_tokens_max):
            group = [encodings[i] for i in batch]
            logits, targets = self._answers(group)
            hits = (logits.argmax(-1) == targets).split([len(e.targets) for e in group])
            right_count += sum(bool(answer_hits.all()) for answer_hits in hits)
        return right_count / len(encodings)

    def finish(self, out: Path) -> None:
        """Move the model to `out`, with the recipe beside it."""
        self._model.eval().requires_grad_(False)
        folder = self._folder / "model"
        self._model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)
        (folder / "serac.json").write_bytes(canonical.dumps(asdict(self._recipe)))
        folder.rename(out)
        shutil.rmtree(self._folder)

    def _update(self, batch: Sequence[Encoding]) -> float:
        logits, targets = self._answers(batch)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), self._recipe.gradient_clip)
        self._optimizer.step()
        return float(loss.detach())

    def _answers(self, batch: Sequence[Encoding]) -> tuple[Tensor, Tensor]:
        """Return logits [n, vocab] in float32 and targets [n] of all answer positions."""
        device = self._model.device
        inputs = {n: t.to(device) for n, t in self._task.inputs(batch).items()}
        logits = self._model(**inputs, use_cache=False, return_dict=True).logits
        places = [(i, p) for i, e in enumerate(batch) for p in e.positions]
        rows, columns = torch.tensor(places, device=device).T
        targets = torch.tensor([t for e in batch for t in e.targets], device=device)
        return logits[rows, columns].float(), targets

    # -- the state on disk

    def _save(self) -> None:
        tensors = {f"model.{n}": p.detach().contiguous() for n, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            state = self._optimizer.state[parameter]
            tensors |= {f"{key}.{name}": state[key].contiguous() for key in state}
        meta = canonical.dumps({"epoch": self.epoch, **asdict(self._recipe)}).decode()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{STATE_FILE}.tmp"
        path.write_bytes(safetensors.torch.save(tensors, metadata={_META_KEY: meta}))
        path.replace(self._folder / STATE_FILE)

    def _resume(self) -> None:
        path = self._folder / STATE_FILE
        if not path.exists():
            return
        with safetensors.safe_open(path, framework="pt") as file:
            meta = canonical.loads(file.metadata()[_META_KEY].encode())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if {k: v for k, v in meta.items() if k != "epoch"} != asdict(self._recipe):
            raise CeditError(
                f"{self._folder} holds a run with other settings: remove it, or name another "
                "directory."
            )
        self.epoch = meta["epoch"]
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"model.{name}"])
                state = {k: tensors[f"{k}.{name}"] for k in ("step", "exp_avg", "exp_avg_sq")}
                self._optimizer.state[parameter] = state
