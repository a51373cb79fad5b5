"""The groups that an editor network is trained and measured on, with all that is frozen in them.

An edit's rows are gradients of the base: they are read once. A group has some edits, their prompts
and rephrases, which are to be answered anew, and texts beside them, which are to be answered as
before. The states that enter the first edited block are recorded once for each group, and so are
the base's log probabilities behind the texts beside. Leaves the loss and its steps to ``training``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.errors import RequestError
from continual.gradients.matrices import EditableMatrix
from continual.gradients.networks import NetworkInput
from continual.gradients.rows import places_of, read_rows, with_gradient
from continual.gradients.side_paths import SidePath, beside
from continual.passes.partial import Recording, record, sums_from
from continual.requests import Request
from continual.task_model import TaskModel
from continual.tasks import Encoding, answer_places

ROWS_PASS = 64  # edits whose rows are read together


@dataclass(frozen=True)
class TaughtEdit:
    """One request as it is taught: its rows, the texts in its scope, and texts beside it."""

    rows: NetworkInput
    inside: tuple[Encoding, ...]  # the prompt first
    beside: tuple[Encoding, ...]


@dataclass(frozen=True)
class Outcome:
    """A group under the updates of a network."""

    loss_inside: Tensor  # the mean of -log p over the tokens of the answers
    divergence: Tensor  # the mean of KL(base ‖ edited) over the tokens beside
    right: int  # texts in scope with the new answer, of `texts_inside`
    same: int  # tokens beside that lead as before, of `tokens_beside`
    texts_inside: int
    tokens_beside: int


@dataclass(frozen=True)
class LessonGroup:
    """Some edits with their texts, and the frozen part of the passes over them."""

    edits: tuple[NetworkInput, ...]
    encodings: tuple[Encoding, ...]  # the texts in scope, then the texts beside
    inside_count: int
    owners: Tensor  # [B] the number of each text's edit
    recording: Recording
    first_block: int
    base_log_probs: Tensor  # [tokens beside, vocab]

    def under(
        self,
        task_model: TaskModel,
        matrices: Sequence[EditableMatrix],
        paths: Mapping[str, SidePath],
    ) -> Outcome:
        """Run the group with side paths, one for each edit or one for all."""
        modules = {matrix.path: matrix.module for matrix in matrices}
        of_texts = {path: side_path.of(self.owners) for path, side_path in paths.items()}
        with beside(modules, of_texts):
            logits = _answered(task_model, self.recording, self.first_block, self.encodings)
        log_probs = logits.log_softmax(-1)
        inside = sum(len(text.targets) for text in self.encodings[: self.inside_count])
        targets = self._targets(log_probs.device)
        picked = -log_probs[:inside].gather(1, targets[:inside, None]).squeeze(1)
        base = self.base_log_probs
        divergences = (base.exp() * (base - log_probs[inside:])).sum(1)
        return Outcome(
            picked.mean(),
            divergences.mean() if len(base) else picked.new_zeros(()),
            self._right(log_probs[:inside], targets[:inside]),
            int((base.argmax(1) == log_probs[inside:].argmax(1)).sum()),
            self.inside_count,
            len(base),
        )

    def _targets(self, device: torch.device) -> Tensor:
        return torch.tensor([t for text in self.encodings for t in text.targets], device=device)

    def _right(self, log_probs: Tensor, targets: Tensor) -> int:
        hits = log_probs.argmax(1) == targets
        sizes = [len(text.targets) for text in self.encodings[: self.inside_count]]
        return sum(bool(part.all()) for part in hits.split(sizes))


@dataclass(frozen=True)
class LessonMaker:
    """Turns requests into groups, for one base model and some of its matrices."""

    task_model: TaskModel
    matrices: tuple[EditableMatrix, ...]
    size: int  # edits in a group
    rephrases: int  # of each edit, at most
    texts_beside: int  # of each edit
    seed: int
    condition: Callable[[TaskModel, Encoding], Tensor | None]
    """Gives what the network reads of an edit besides its rows."""
    whole: bool  # rows of all tokens, not of the answer's alone

    def taught(self, requests: Sequence[Request], known: Sequence[Encoding]) -> list[TaughtEdit]:
        """Return the requests that the base answers wrongly, with their rows on the base. `known`
        are texts that it answers rightly: beside any request that has too few of its own."""
        draw = random.Random(self.seed)
        pairs = [(r, e) for r in requests if (e := self._encoded(r.prompt, r.target_new))]
        right = self.task_model.judge_in_full([encoding for _, encoding in pairs])
        wrong = [pair for pair, is_right in zip(pairs, right, strict=True) if not is_right]
        rows = self._rows([encoding for _, encoding in wrong])
        return [
            TaughtEdit(
                NetworkInput(of_edit, self.condition(self.task_model, encoding)),
                (encoding, *self._inside(request, draw)),
                self._beside(request, known, draw),
            )
            for (request, encoding), of_edit in zip(wrong, rows, strict=True)
        ]

    def groups(self, edits: Sequence[TaughtEdit]) -> Iterator[LessonGroup]:
        """Yield groups of edits in the order given; the last may be smaller."""
        for start in range(0, len(edits), self.size):
            yield self._group(edits[start : start + self.size])

    def _group(self, edits: Sequence[TaughtEdit]) -> LessonGroup:
        inside = [(text, i) for i, edit in enumerate(edits) for text in edit.inside]
        outside = [(text, i) for i, edit in enumerate(edits) for text in edit.beside]
        encodings = [text for text, _ in (*inside, *outside)]
        edited = self.task_model.edited
        first_block = min(matrix.block for matrix in self.matrices)
        inputs = self.task_model.inputs(encodings)
        recording = record(edited.model, edited.anatomy, inputs, [first_block])
        tokens = sum(len(text.targets) for text, _ in inside)
        with torch.no_grad():
            logits = _answered(self.task_model, recording, first_block, encodings)
        return LessonGroup(
            tuple(edit.rows for edit in edits),
            tuple(encodings),
            len(inside),
            torch.tensor([i for _, i in (*inside, *outside)], device=edited.device),
            recording,
            first_block,
            logits[tokens:].log_softmax(-1),
        )

    def _rows(self, encodings: Sequence[Encoding]) -> list[Mapping[str, Tensor]]:
        """Return the rows of each text, read in passes over many."""
        modules = {matrix.path: matrix.module for matrix in self.matrices}
        widths = {matrix.path: matrix.shape[0] for matrix in self.matrices}
        parts: list[Mapping[str, Tensor]] = []
        for start in range(0, len(encodings), ROWS_PASS):
            texts = encodings[start : start + ROWS_PASS]
            rows = read_rows(self.task_model, modules, texts, whole=self.whole)
            sizes = [len(places_of(text, whole=self.whole)) for text in texts]
            by_path = {path: tensor.split(sizes) for path, tensor in rows.items()}
            parts += [
                with_gradient({path: split[i] for path, split in by_path.items()}, widths)
                for i in range(len(texts))
            ]
        return parts

    def _inside(self, request: Request, draw: random.Random) -> Iterator[Encoding]:
        wordings = [*request.rephrases, *request.held_out_rephrases]
        for wording in draw.sample(wordings, min(self.rephrases, len(wordings))):
            if encoding := self._encoded(wording, request.target_new):
                yield encoding

    def _beside(
        self, request: Request, known: Sequence[Encoding], draw: random.Random
    ) -> tuple[Encoding, ...]:
        """Return the request's own locality probes, filled up with known texts."""
        own = [e for p in request.locality if (e := self._encoded(p.prompt, p.answer))]
        texts = draw.sample(own, min(self.texts_beside, len(own)))
        missing = min(self.texts_beside - len(texts), len(known))
        return (*texts, *draw.sample(list(known), missing))

    def _encoded(self, prompt: object, answer: str) -> Encoding | None:
        try:
            return self.task_model.task.encode(prompt, answer)  # type: ignore[arg-type]
        except RequestError:  # too long for the model, or for the task's limits
            return None


def _answered(
    task_model: TaskModel, recording: Recording, block: int, encodings: Sequence[Encoding]
) -> Tensor:
    """Return the logits [n, vocab] float32 at all answer tokens, from recorded states on."""
    edited = task_model.edited
    sums = sums_from(edited.model, edited.anatomy, recording, block)
    sequence, position = answer_places(encodings, sums.device)
    return task_model.tail(sums[sequence, position]).float()
