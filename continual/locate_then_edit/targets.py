"""Searches for the values that edits aim at: z for many requests at once (ROME eq. 4, MEMIT eq.
16).

z = h + δ at the token to write to, the subject's last one or the prompt's; h is the residual sum of
the last edited block there. δ goes down the gradient of

    mean NLL of the target over an edit's prompts, each the mean over the target's tokens
    + kl_factor · mean over its anchors of KL(p_δ ‖ p), p the next token's distribution there
    + weight_decay · ‖δ‖ / ‖h‖²

with the terms of the public code of ROME and MEMIT, and the KL taken at the end of an anchor, as in
the papers (the code takes it at the subject). ‖δ‖ never exceeds clamp_norm_factor · ‖h‖. The length
of a step is set in ‖h‖, and shrinks: hidden states differ in size from model to model and from
block to block, and one such step replaces five of Adam's, with a shorter δ in the end.

Nothing below the edited block, and nothing before that token, depends on δ. So a pass is recorded
once, and a step of the search takes the recorded sums of the ends of the texts, with δ added,
through the blocks above only, and turns only the rows of answers and anchors into logits. Requests
do not interact: each stops moving, and is run no more, once it has arrived. A request has arrived
when its target is the likeliest token everywhere in its texts and the first two terms are below
stop_loss; the third depends mostly on the length of a model's states, not on the request. With
`lead_steps` it stops so many steps after its target leads, whatever the loss (ENCORE,
2502.01636).

The end of the search matters more than its way there: its products may be rounded as `precision`
says, which is several times faster on a device with units for it. h is read in full, so that only
the δ in z carries the rounding, and the model itself judges whether an edit works.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from continual.locate_then_edit.config import ValueSearchConfig
from continual.locate_then_edit.edit_texts import EditTexts, LocatedText
from continual.locate_then_edit.keys import read_states
from continual.locate_then_edit.layers import QuickLayers, products
from continual.passes.batching import by_length
from continual.passes.suffix import EndPass, Ends, PackedEnds, WholeSequences, keeps_prefixes
from continual.site import Site


@dataclass(frozen=True)
class PassSize:
    """The sizes of a search and of its passes."""

    requests: int  # of a search, unless the settings say how many
    tokens: int  # of a pass
    padded: float  # in attention: the longest end of a group, in the length of its shortest

    @classmethod
    def on(cls, device: torch.device) -> PassSize:
        """Return the fastest sizes for a device."""
        return ON_CPU if device.type == "cpu" else ACCELERATED


ON_CPU = PassSize(128, 2047, 1.6)
ACCELERATED = PassSize(1024, 32_768, 4.0)
"""The sizes for a device that waits for work more than for memory."""
KEPT_BYTES_MAX = 4 * 2**30  # for the sums, keys and values that a search keeps of its texts


@dataclass(frozen=True)
class TargetValues:
    """The values that n requests aim at; float32."""

    states: Tensor  # z [n, d], with the overshoot that the settings ask for
    before: Tensor  # h [n, d]
    steps: tuple[int, ...]
    losses: tuple[float, ...]  # at the end of the search
    arrived: tuple[bool, ...]  # the bare prompt is answered rightly there

    def __getitem__(self, chosen: Sequence[int]) -> TargetValues:
        return TargetValues(
            self.states[list(chosen)],
            self.before[list(chosen)],
            tuple(self.steps[i] for i in chosen),
            tuple(self.losses[i] for i in chosen),
            tuple(self.arrived[i] for i in chosen),
        )

    def stretched(self, times: float) -> TargetValues:
        """Return the targets with each δ = z - h `times` as long."""
        if times == 1.0:
            return self
        return replace(self, states=self.before + times * (self.states - self.before))

    @classmethod
    def joined(cls, parts: Sequence[TargetValues]) -> TargetValues:
        """Join the targets of some requests, one after another."""
        return cls(
            torch.cat([part.states for part in parts]),
            torch.cat([part.before for part in parts]),
            tuple(steps for part in parts for steps in part.steps),
            tuple(loss for part in parts for loss in part.losses),
            tuple(arrived for part in parts for arrived in part.arrived),
        )


@dataclass(frozen=True)
class Evaluation:
    """The losses and gradients of n requests at some δ."""

    loss: Tensor  # [n]
    fit: Tensor  # [n] the loss without the term of δ itself
    gradient: Tensor  # [n, d] of each request's own loss
    is_right: Tensor  # [n] bool: the target is the arg-max at all positions of the bare prompt
    is_done: Tensor  # [n] bool: the same for all texts of the request


def find_targets(
    site: Site, batch: Sequence[EditTexts], block: int, config: ValueSearchConfig
) -> TargetValues:
    """Search for z of each edit at a block, chunk by chunk. A chunk has at most `config.chunk`
    edits, or the device's best number, and fits KEPT_BYTES_MAX."""
    packs = keeps_prefixes(site.edited.model, site.edited.anatomy)
    chunk_max = config.chunk or PassSize.on(site.edited.device).requests
    byte_counts = [_kept_bytes(site, edit_texts, block) for edit_texts in batch]
    chunks = [
        [batch[start + i] for i in chunk]
        for start in range(0, len(batch), chunk_max)
        for chunk in _in_order(byte_counts[start : start + chunk_max], KEPT_BYTES_MAX)
    ]
    search = partial(_searched, site, block, config, packs)
    return TargetValues.joined(list(site.executor.map(search, chunks)))


def _searched(
    site: Site, block: int, config: ValueSearchConfig, packs: bool, chunk: Sequence[EditTexts]
) -> TargetValues:
    """Search for the values of one chunk."""
    return _search(ValueSearch(site, chunk, block, config, packs))


def _kept_bytes(site: Site, edit_texts: EditTexts, block: int) -> int:
    """Estimate the bytes that an edit's texts keep: a block's sums, the keys and values of all
    blocks above it."""
    anatomy, weight = site.edited.anatomy, site.edited.model.get_input_embeddings().weight
    tokens = sum(len(text.encoding) for text in (*edit_texts.texts, *edit_texts.anchors))
    states = 1 + 2 * (anatomy.last - block)
    return int(tokens * states * anatomy.width * weight.element_size())


def _search(search: ValueSearch) -> TargetValues:
    """Run normalised gradient descent on the δ of all edits side by side."""
    config = search.config
    lengths = torch.linalg.vector_norm(search.before, dim=1, keepdim=True)
    delta = torch.zeros_like(search.before)
    live = torch.ones_like(lengths[:, 0], dtype=torch.bool)
    steps = torch.zeros_like(live, dtype=torch.long)
    leading = torch.zeros_like(steps)  # evaluations in a row at which the target leads
    evaluation = search.evaluation(delta)
    for step in range(config.steps_max):
        leading = (leading + 1) * evaluation.is_done
        has_led = leading > (config.steps_max if config.lead_steps is None else config.lead_steps)
        live = live & ~(evaluation.is_done & (evaluation.fit < config.stop_loss)) & ~has_led
        if not bool(live.any()):
            break
        size = config.step * config.step_decay**step * lengths
        proposal = delta - size * torch.nn.functional.normalize(evaluation.gradient, dim=1)
        proposal = _clamped(proposal, config.clamp_norm_factor * lengths)
        delta = torch.where(live[:, None], proposal, delta)
        steps += live
        search.focus(live)
        evaluation = _merged(evaluation, search.evaluation(delta), live)
    return TargetValues(
        search.before + config.overshoot * delta,
        search.before,
        tuple(steps.tolist()),
        tuple(evaluation.loss.tolist()),
        tuple(evaluation.is_right.tolist()),
    )


def _clamped(delta: Tensor, longest: Tensor) -> Tensor:
    """Shorten δ [n, d] to the allowed lengths [n, 1]."""
    norms = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    shrunk: Tensor = longest / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return delta * shrunk.clamp(max=1.0)


def _merged(old: Evaluation, new: Evaluation, live: Tensor) -> Evaluation:
    """Return the new evaluation of the live requests, the old one of the others."""
    return Evaluation(
        torch.where(live, new.loss, old.loss),
        torch.where(live, new.fit, old.fit),
        torch.where(live[:, None], new.gradient, old.gradient),
        torch.where(live, new.is_right, old.is_right),
        torch.where(live, new.is_done, old.is_done),
    )


# --- the recorded passes of a search --------------------------------------------------------------


class ValueSearch:
    """The recorded passes of some edits' texts, and their losses at any δ."""

    def __init__(
        self,
        site: Site,
        batch: Sequence[EditTexts],
        block: int,
        config: ValueSearchConfig,
        packs: bool,
    ) -> None:
        """Record the passes. With `packs` only the ends of texts are run, see `keeps_prefixes`."""
        self.config, self._batch, self._packs = config, batch, packs
        self.before = read_states(site, batch, block)  # h [n, d] of the bare prompts
        self._device = site.edited.device
        self._layers = QuickLayers(site.edited.model, site.edited.anatomy, block)
        with self._quickened():
            self._passes = self._recorded(site, block)

    def focus(self, live: Tensor) -> None:
        """Run only the live requests [n] from here on."""
        self._passes = [part for p in self._passes if (part := p.focused(live)) is not None]

    def evaluation(self, delta: Tensor) -> Evaluation:
        """Return the losses and gradients at δ [n, d]; zero for requests that are in no pass."""
        sums = _LossSums.zero(delta)
        with self._quickened():
            for pass_ in self._passes:
                sums.add(pass_.evaluation(delta, self.config.kl_factor))
        norms = delta.norm(dim=1)
        scale = self.config.weight_decay / self.before.square().sum(1)
        tiny = torch.finfo(norms.dtype).tiny
        direction = delta / norms.clamp(min=tiny)[:, None]
        return Evaluation(
            sums.fit + scale * norms,
            sums.fit,
            sums.gradient + scale[:, None] * direction,
            sums.wrong_plain == 0,
            sums.wrong == 0,
        )

    @contextmanager
    def _quickened(self) -> Iterator[None]:
        """Run the model with the search's layers and precision while the `with` lasts."""
        precision = self.config.precision
        quick = self._layers if precision == "medium" else None
        if quick is not None and quick.are_rounded:
            precision = "highest"  # attention's products, which are too small to gain by it
        with products(precision), nullcontext() if quick is None else quick.on():
            yield

    def _recorded(self, site: Site, block: int) -> list[_SearchPass]:
        placed = [p for i, edit_texts in enumerate(self._batch) for p in _placed(i, edit_texts)]
        size = PassSize.on(self._device)
        if self._packs:
            batches = _in_order([len(p.text.encoding) - p.text.place for p in placed], size.tokens)
            return [_SearchPass.packed(site, [placed[i] for i in b], block, size) for b in batches]
        batches = by_length([len(p.text.encoding) for p in placed], size.tokens)
        return [_SearchPass.whole(site, [placed[i] for i in b], block) for b in batches]


def _in_order(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Batch places in their order: each batch sums to at most `most`, or has one larger place."""
    batches: list[list[int]] = []
    room = 0
    for place, size in enumerate(sizes):
        if not batches or size > room:
            batches.append([])
            room = most
        batches[-1].append(place)
        room -= size
    return batches


@dataclass
class _LossSums:
    """The sums over passes, request by request."""

    fit: Tensor  # [n] see `Evaluation`
    gradient: Tensor  # [n, d] of it
    wrong_plain: Tensor  # [n] rows of the bare prompt that are wrong
    wrong: Tensor  # [n] rows of any text that are wrong

    @classmethod
    def zero(cls, delta: Tensor) -> _LossSums:
        zeros = torch.zeros_like(delta[:, 0])
        return cls(zeros, torch.zeros_like(delta), zeros.clone(), zeros.clone())

    def add(self, other: _LossSums) -> None:
        self.fit += other.fit
        self.gradient += other.gradient
        self.wrong_plain += other.wrong_plain
        self.wrong += other.wrong


@dataclass(frozen=True)
class _Placed:
    """A text of an edit, and the weight of each of its rows in that edit's loss."""

    owner: int
    text: LocatedText
    share: float
    is_anchor: bool
    is_plain: bool


def _placed(owner: int, edit_texts: EditTexts) -> Iterator[_Placed]:
    for number, text in enumerate(edit_texts.texts):
        share = 1.0 / (len(edit_texts.texts) * len(text.encoding.targets))
        yield _Placed(owner, text, share, is_anchor=False, is_plain=number == 0)
    for anchor in edit_texts.anchors:
        yield _Placed(owner, anchor, 1.0 / len(edit_texts.anchors), is_anchor=True, is_plain=False)


class _SearchPass:
    """Some texts, recorded from some positions on with the sums of the edited block."""

    def __init__(
        self, site: Site, run: EndPass, placed: Sequence[_Placed], starts: Sequence[int]
    ) -> None:
        self._site, self._run, self._placed, self._starts = site, run, placed, starts
        device = run.sums.device
        places = [p.text.place - start for p, start in zip(placed, starts, strict=True)]
        sequences = torch.arange(len(placed), device=device)
        self._places = run.row(sequences, torch.tensor(places, device=device))
        self._owners = torch.tensor([p.owner for p in placed], device=device)
        self._answers = _LogitRows.of(placed, starts, device, anchors=False)
        self._anchors = _LogitRows.of(placed, starts, device, anchors=True)
        parts = (self._answers, self._anchors)
        self._rows = torch.cat([run.row(part.sequences, part.positions) for part in parts])
        self._known: Tensor | None = None  # [anchors, vocab] log p without δ, as first read

    @classmethod
    def packed(
        cls, site: Site, placed: Sequence[_Placed], block: int, size: PassSize
    ) -> _SearchPass:
        """Record the ends of texts, from the token to write to, on the model as it stands."""
        starts = tuple(p.text.place for p in placed)
        ends = Ends(tuple(p.text.encoding.ids for p in placed), starts)
        run = PackedEnds(site.edited.model, site.edited.anatomy, ends, block, size.padded)
        return cls(site, run, placed, starts)

    @classmethod
    def whole(cls, site: Site, placed: Sequence[_Placed], block: int) -> _SearchPass:
        """Record the whole of each text on the model as it stands."""
        edited = site.edited
        ids = [p.text.encoding.ids for p in placed]
        run = WholeSequences(edited.model, edited.anatomy, ids, block, edited.base.pad)
        return cls(site, run, placed, [0] * len(placed))

    def focused(self, live: Tensor) -> _SearchPass | None:
        """Return a pass with the live requests' [n] texts alone; None if it has none of them. A
        pass of whole texts stays as it is."""
        mask = live[self._owners]
        if bool(mask.all()) or not isinstance(self._run, PackedEnds):
            return self
        indices = mask.nonzero().squeeze(-1).tolist()
        if not indices:
            return None
        part = _SearchPass(
            self._site,
            self._run.select(indices),
            [self._placed[i] for i in indices],
            [self._starts[i] for i in indices],
        )
        if self._known is not None:
            part._known = self._known[live[self._anchors.owners]]
        return part

    def evaluation(self, delta: Tensor, kl_factor: float) -> _LossSums:
        """Return the pass's part of each request's loss, without the term of δ itself."""
        delta = delta.detach().requires_grad_()
        sums = self._run.sums
        moved_sums = sums.index_add(0, self._places, delta[self._owners].to(sums.dtype))
        answers, anchors = self._answers, self._anchors
        logits = self._logits(moved_sums)
        log_probs = logits.detach().log_softmax(1)
        anchor_log_probs = log_probs[len(answers.owners) :]
        if self._known is None:
            self._known = anchor_log_probs.clone() if not bool(delta.any()) else self._unmoved()
        costs: Tensor = _Costs.apply(  # type: ignore[no-untyped-call]
            logits, log_probs, answers.targets, self._known
        )
        weights = torch.cat([answers.shares, kl_factor * anchors.shares])
        zeros = torch.zeros_like(delta[:, 0])
        loss = zeros.index_add(0, torch.cat([answers.owners, anchors.owners]), weights * costs)
        target_log_probs = -costs.detach()[: len(answers.owners)]
        misses = (log_probs[: len(target_log_probs)].amax(1) > target_log_probs).to(loss.dtype)
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        return _LossSums(
            loss.detach(),
            gradient,
            zeros.detach().index_add(0, answers.owners, misses * answers.is_plain),
            zeros.detach().index_add(0, answers.owners, misses),
        )

    def _logits(self, sums: Tensor) -> Tensor:
        """Return logits [answers and anchors, vocab] for these sums of the edited block."""
        return self._site.logits(self._run.answers(sums, self._rows))

    @torch.no_grad()
    def _unmoved(self) -> Tensor:
        """Return [anchors, vocab] log p without δ."""
        return self._logits(self._run.sums)[len(self._answers.owners) :].log_softmax(1)


class _Costs(torch.autograd.Function):
    """-log p of the target in the rows of answers, then KL(p ‖ known) in the rows of anchors."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, log_probs: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the costs [n] of logits [n, vocab], given their log p [n, vocab], the targets
        [answers], and the anchors' log p without δ [anchors, vocab]. `backward` writes the gradient
        into `log_probs`."""
        count = len(targets)
        losses = -log_probs[:count].gather(1, targets[:, None]).squeeze(1)
        anchor_log_probs = log_probs[count:]
        drift = (anchor_log_probs.exp() * (anchor_log_probs - known)).sum(1)
        ctx.save_for_backward(log_probs, targets, known, drift)
        return torch.cat([losses, drift])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits: p - [target], and p·(log p - log known - KL)."""
        log_probs, targets, base_log_probs, drift = ctx.saved_tensors
        count = len(targets)
        log_ratio = log_probs[count:] - base_log_probs - drift[:, None]
        gradient = log_probs.exp_()
        gradient[count:] *= log_ratio
        gradient[:count].scatter_add_(1, targets[:, None], -torch.ones_like(gradient[:count, :1]))
        return gradient.mul_(gradients[0][:, None]), None, None, None


@dataclass(frozen=True)
class _LogitRows:
    """The rows of a pass that become logits: their places and owners."""

    sequences: Tensor
    positions: Tensor
    owners: Tensor
    shares: Tensor
    targets: Tensor  # empty for anchors
    is_plain: Tensor

    @classmethod
    def of(
        cls,
        placed: Sequence[_Placed],
        starts: Sequence[int],
        device: torch.device,
        anchors: bool,
    ) -> _LogitRows:
        """Collect the rows of the answers, or of the anchors, of texts recorded from `starts`
        on."""
        entries = [(i, p) for i, p in enumerate(placed) if p.is_anchor is anchors]
        rows = [(i, q - starts[i], p) for i, p in entries for q in p.text.encoding.positions]
        targets = [t for _, p in entries for t in p.text.encoding.targets]

        def integers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            integers([i for i, _, _ in rows]),
            integers([q for _, q, _ in rows]),
            integers([p.owner for _, _, p in rows]),
            torch.tensor([p.share for _, _, p in rows], device=device),
            integers(targets),
            torch.tensor([p.is_plain for _, _, p in rows], dtype=torch.bool, device=device),
        )
