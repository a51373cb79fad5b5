"""KnowledgeEditor's network: it reads an edit as a text, and gates the edit's gradient.

The text "old answer >> new answer || input", as word embeddings of the base, goes through a BiLSTM
to a condition c. From c come, for each matrix, vectors α and β over its outputs and inputs, and ν:

    ΔW = σ(ν)·s·(g ⊙ a + b),   a = α_inᵀ·softmax(α_out),   b = β_inᵀ·softmax(β_out)

(De Cao et al. 2021, section 3.2, with W as [inputs, outputs]). The gradient of an edit is the sum
of uᵀδ over T tokens, so that g ⊙ a + b has T + 1 outer products and is never written out.

Not as published: g is the gradient divided by its norm, times the number of outputs, as softmax
leaves one share in as many of it; the step s is learned for each matrix, goes down the loss, and
α_in begins near one. Published, these have to be found in 200,000 steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from continual.errors import ModelError
from continual.gradients.networks import EditorNetwork, NetworkForm, NetworkInput, padded
from continual.gradients.side_paths import SidePath
from continual.passes.partial import logits_of
from continual.picture_marks import text_ids
from continual.task_model import TaskModel, answer_logits
from continual.tasks import Encoding

LSTM_WIDTH = 128
CONDITION_WIDTH = 1024
HIDDEN_WIDTH = 128
MULTIPLIER_RATE = 0.1  # of the gradient ascent on the multiplier
BOUND = 1e-3  # m, the KL that is allowed at the start
BOUND_MIN = 1e-5
SUCCESS, TIGHTENING = 0.9, 0.8
"""The bound is multiplied by the second when the share of successes is above the first."""
MARKS = (" >> ", " || ")
"""Between the old answer and the new one, and between that and the input."""


class KeNetwork(EditorNetwork):
    """A condition for each edit, and a head for each matrix. `form.rank` is the width of the word
    embeddings."""

    method = "ke"
    multiplier: Tensor  # of the KL's excess over the bound, [] float32
    bound: Tensor  # m, the KL that is allowed, [] float32

    def __init__(self, form: NetworkForm) -> None:
        super().__init__(form)
        self.lstm = nn.LSTM(form.rank, LSTM_WIDTH, batch_first=True, bidirectional=True)
        self.reading = nn.Linear(2 * LSTM_WIDTH, CONDITION_WIDTH)
        self.heads = nn.ModuleList(_head(sum(shape)) for shape in form.shapes.values())
        self.log_steps = nn.Parameter(torch.zeros(len(form.shapes)))
        self.register_buffer("multiplier", torch.ones(()))
        self.register_buffer("bound", torch.tensor(BOUND))

    @classmethod
    def size(cls, task_model: TaskModel, rank: int) -> int:
        """See `EditorNetwork.size`: the width of the word embeddings."""
        return int(_embeddings(task_model).shape[1])

    @classmethod
    @torch.no_grad()
    def condition(cls, task_model: TaskModel, encoding: Encoding) -> Tensor:
        """See `EditorNetwork.condition`: "old answer >> new answer || input" [tokens, d] float32 as
        word embeddings. The old answer is made of the tokens that lead where the new one's are
        wanted."""
        logits, _ = answer_logits(
            [encoding], logits_of(task_model.edited.model, task_model.inputs([encoding]))
        )
        tokenizer = task_model.edited.tokenizer
        arrow, bar = (tokenizer.encode(mark, add_special_tokens=False) for mark in MARKS)
        old, new = (
            _as_tokens(task_model, a) for a in (logits.argmax(-1).tolist(), encoding.targets)
        )
        question = (*encoding.question.source, *encoding.question.ids)
        text = [*old, *arrow, *new, *bar, *question]
        embeddings = _embeddings(task_model)
        ids = torch.tensor(text, device=embeddings.device)
        is_seen = text_ids(text) != text  # a picture is read as its states
        read: Tensor = (
            task_model.edited.model.get_input_embeddings()(ids[None])[0]
            if is_seen
            else embeddings[ids]
        )
        return read.float().cpu()

    def factors(self, path: str, edit: NetworkInput) -> SidePath:
        """Return the T + 1 outer products of an edit's update at a matrix."""
        assert edit.condition is not None
        number = list(self.form.shapes).index(path)
        inputs, outputs = self.form.shapes[path]
        vectors = self.heads[number](self._condition(edit.condition))
        alpha_out, alpha_in, beta_out, beta_in, nu = vectors.split(
            [outputs, inputs, outputs, inputs, 1]
        )
        step = nu.sigmoid() * self.log_steps[number].exp()
        gradient_in, gradient_out = _scaled(edit.rows[path], inputs)
        left = torch.cat([(gradient_in * (1 + alpha_in)).T, beta_in[:, None]], 1)
        gated = gradient_out * alpha_out.softmax(0)
        return SidePath(left, step * torch.cat([gated, beta_out.softmax(0)[None]]))

    def side_paths(self, edits: Sequence[NetworkInput]) -> dict[str, SidePath]:
        """See `EditorNetwork.side_paths`: one update for each edit."""
        paths: dict[str, SidePath] = {}
        for path in self.form.shapes:
            parts = [self.factors(path, edit) for edit in edits]
            paths[path] = SidePath(
                padded([part.left for part in parts], 1), padded([part.right for part in parts], 0)
            )
        return paths

    def loss(self, inside: Tensor, divergence: Tensor) -> Tensor:
        """See `EditorNetwork.loss`: the Lagrangian of -log p under KL ≤ m."""
        loss: Tensor = inside + self.multiplier * (divergence - self.bound)
        return loss

    def follow(self, divergence: float) -> None:
        """Raise the multiplier by the excess of the KL over m, and lower it where KL is below."""
        excess = divergence - float(self.bound)
        self.multiplier.add_(MULTIPLIER_RATE * excess).clamp_(min=0.0)

    def score(self, inside: Tensor, divergence: Tensor) -> Tensor:
        """See `EditorNetwork.score`: without the multiplier, which changes from epoch to epoch."""
        return inside + divergence

    def end_epoch(self, inside: float) -> None:
        """Tighten the bound when nearly all held-out edits succeed, as published."""
        if inside > SUCCESS:
            self.bound.mul_(TIGHTENING).clamp_(min=BOUND_MIN)

    def _condition(self, embedded: Tensor) -> Tensor:
        """Return c [CONDITION_WIDTH] of word embeddings [tokens, d]."""
        _, (last, _) = self.lstm(embedded[None])
        condition: Tensor = self.reading(last.flatten()).tanh()
        return condition


def _as_tokens(task_model: TaskModel, answer: Sequence[int]) -> Sequence[int]:
    """Return an answer as tokens: a label by its name."""
    task = task_model.task
    return task.tokens(task.text(answer)) if task.name == "classification" else answer


def _embeddings(task_model: TaskModel) -> Tensor:
    """Return the base's word embeddings [vocab, d]. Raises ModelError for a model without any."""
    weight = getattr(task_model.edited.model.get_input_embeddings(), "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(
            "ke reads word embeddings, and this model has none: choose another editor."
        )
    return weight


def _head(width: int) -> nn.Sequential:
    """Return the map from c to 2·(inputs + outputs) + 1 numbers."""
    return nn.Sequential(
        weight_norm(nn.Linear(CONDITION_WIDTH, HIDDEN_WIDTH)),
        nn.Tanh(),
        weight_norm(nn.Linear(HIDDEN_WIDTH, 2 * width + 1)),
    )


def _scaled(rows: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Return u [T, inputs] and δ [T, outputs] with Σ uᵀδ down the loss and of the norm of the
    number of outputs."""
    keys, gradients = rows[:, :inputs], rows[:, inputs:]
    norm = ((keys @ keys.T) * (gradients @ gradients.T)).sum().clamp(min=1e-30).sqrt()
    return keys, -gradients.shape[1] / norm * gradients
