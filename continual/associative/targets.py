"""The values that edits aim at: z for many requests at once (ROME eq. 4, MEMIT eq. 16).

z = h + δ at the token that is written to, the subject's last one or the prompt's, h the residual
sum of the last edited block there. δ goes down the gradient of

    mean NLL of the target over the texts of the lesson, each the mean over the target's tokens
    + kl_factor · mean over its anchors of KL(p_δ ‖ p), p the next token's distribution there
    + weight_decay · ‖δ‖ / ‖h‖²

the terms as in the public code of ROME and MEMIT, and the KL taken where an anchor ends, as in the
papers (the code takes it at the subject). ‖δ‖ never exceeds clamp_norm_factor · ‖h‖. The steps are
of a length that is set in ‖h‖, and shrink: hidden states differ in size from model to model and
from block to block, and one such step does what five of Adam's do, with a shorter δ in the end.

Nothing below the edited block, and nothing before that token, depends on δ. So a pass is recorded
once, and a step of the search takes the recorded sums of the ends of the texts, with δ added,
through the blocks above only, and turns only the rows of answers and anchors into logits. Requests
do not interact: each stands still, and is looked at no more, once it has arrived. A request has
arrived when its target is the likeliest token everywhere in its texts and the first two terms are
below stop_loss; the third depends on how long states are in a model, more than on anything that was
asked for.

Where a step goes matters less than where it ends: the products of the search may be rounded as
`precision` says, which is several times faster where a device has units for it. h is read in full,
so that z is off by what δ is at most, and whether an edit works is judged by the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from continual.associative.config import AssociativeConfig
from continual.associative.keys import read_states
from continual.associative.layers import QuickLayers, products
from continual.associative.lessons import Lesson, Text
from continual.batching import by_length
from continual.site import Site
from continual.suffix import EndPass, Ends, keeps_prefixes

PASS_TOKENS_MAX = 2048
ACCELERATED_TOKENS_MAX = 16_384  # of a pass on a device that waits for work rather than for memory
PADDED_MAX = 2  # the longest end of a pass, in the length of its shortest: many are one token


@dataclass(frozen=True)
class Targets:
    """What n requests aim at; float32."""

    states: Tensor  # z [n, d]
    before: Tensor  # h [n, d]
    steps: tuple[int, ...]
    losses: tuple[float, ...]  # at z
    arrived: tuple[bool, ...]  # the bare prompt is answered rightly with z in its place

    def __getitem__(self, chosen: Sequence[int]) -> Targets:
        return Targets(
            self.states[list(chosen)],
            self.before[list(chosen)],
            tuple(self.steps[i] for i in chosen),
            tuple(self.losses[i] for i in chosen),
            tuple(self.arrived[i] for i in chosen),
        )

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """Of some requests, one after another."""
        return cls(
            torch.cat([part.states for part in parts]),
            torch.cat([part.before for part in parts]),
            tuple(steps for part in parts for steps in part.steps),
            tuple(loss for part in parts for loss in part.losses),
            tuple(arrived for part in parts for arrived in part.arrived),
        )


@dataclass(frozen=True)
class Look:
    """n requests at some δ."""

    loss: Tensor  # [n]
    fit: Tensor  # [n] the loss without what δ itself costs
    gradient: Tensor  # [n, d] of each request's own loss
    is_right: Tensor  # [n] bool: the target is the arg-max at all positions of the bare prompt
    is_done: Tensor  # [n] bool: and of all other texts


def find_targets(
    site: Site, lessons: Sequence[Lesson], block: int, config: AssociativeConfig
) -> Targets:
    """z of each lesson at a block, in chunks that are searched together."""
    parts = [
        _search(site, lessons[first : first + config.chunk], block, config)
        for first in range(0, len(lessons), config.chunk)
    ]
    return Targets.joined(parts)


def _search(
    site: Site, lessons: Sequence[Lesson], block: int, config: AssociativeConfig
) -> Targets:
    """Normalised gradient descent on the δ of every lesson side by side."""
    bench = Bench(site, lessons, block, config)
    lengths = torch.linalg.vector_norm(bench.before, dim=1, keepdim=True)
    delta = torch.zeros_like(bench.before)
    live = torch.ones(len(lessons), dtype=torch.bool, device=delta.device)
    steps = torch.zeros_like(live, dtype=torch.long)
    look = bench.look(delta)
    for step in range(config.steps_max):
        live = live & ~(look.is_done & (look.fit < config.stop_loss))
        if not bool(live.any()):
            break
        size = config.step * config.step_decay**step * lengths
        moved = delta - size * torch.nn.functional.normalize(look.gradient, dim=1)
        moved = _clamped(moved, config.clamp_norm_factor * lengths)
        delta = torch.where(live[:, None], moved, delta)
        steps += live
        bench.focus(live)
        look = _merged(look, bench.look(delta), live)
    return Targets(
        bench.before + delta,
        bench.before,
        tuple(steps.tolist()),
        tuple(look.loss.tolist()),
        tuple(look.is_right.tolist()),
    )


def _clamped(delta: Tensor, longest: Tensor) -> Tensor:
    """δ [n, d] no longer than allowed [n, 1]."""
    norms = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    shrunk: Tensor = longest / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return delta * shrunk.clamp(max=1.0)


def _merged(old: Look, new: Look, live: Tensor) -> Look:
    """The new look at the live requests, the old one at the others."""
    return Look(
        torch.where(live, new.loss, old.loss),
        torch.where(live, new.fit, old.fit),
        torch.where(live[:, None], new.gradient, old.gradient),
        torch.where(live, new.is_right, old.is_right),
        torch.where(live, new.is_done, old.is_done),
    )


# --- what a search looks at -----------------------------------------------------------------------


class Bench:
    """The recorded passes of some lessons, and their losses at any δ."""

    def __init__(
        self, site: Site, lessons: Sequence[Lesson], block: int, config: AssociativeConfig
    ) -> None:
        self._lessons, self._config = lessons, config
        self._keeps_prefixes = keeps_prefixes(site.edited.model, site.edited.anatomy)
        self.before = read_states(site, lessons, block)  # h [n, d] of the bare prompts
        self._device = site.edited.device
        self._layers = QuickLayers(site.edited.model, site.edited.anatomy, block)
        with self._quickened():
            self._passes = self._recorded(site, block)

    def focus(self, live: Tensor) -> None:
        """Look at these requests [n] only, from here on."""
        if self._keeps_prefixes:
            self._passes = [some for p in self._passes if (some := p.focused(live)) is not None]

    def look(self, delta: Tensor) -> Look:
        """The losses and gradients at δ [n, d]; zero for requests that are in no pass."""
        sums = _Sums.zero(delta)
        with self._quickened():
            for recorded in self._passes:
                sums.add(recorded.look(delta, self._config.kl_factor))
        norms = delta.norm(dim=1)
        scale = self._config.weight_decay / self.before.square().sum(1)
        tiny = torch.finfo(norms.dtype).tiny
        direction = delta / norms.clamp(min=tiny)[:, None]
        return Look(
            sums.fit + scale * norms,
            sums.fit,
            sums.gradient + scale[:, None] * direction,
            sums.wrong_plain == 0,
            sums.wrong == 0,
        )

    @contextmanager
    def _quickened(self) -> Iterator[None]:
        """The model as the search runs it."""
        precision = self._config.precision
        quick = self._layers if precision == "medium" else None
        if quick is not None and quick.are_rounded:
            precision = "highest"  # attention's products, which are too small to gain by it
        with _rounded(precision, self._device), nullcontext() if quick is None else quick.on():
            yield

    def _recorded(self, site: Site, block: int) -> list[_Pass]:
        placed = [p for i, lesson in enumerate(self._lessons) for p in _placed(i, lesson)]
        first = [p.text.place if self._keeps_prefixes else 0 for p in placed]
        lengths = [len(p.text.encoding) - f for p, f in zip(placed, first, strict=True)]
        most = PASS_TOKENS_MAX if self._device.type == "cpu" else ACCELERATED_TOKENS_MAX
        return [
            _Pass.recorded(site, [placed[i] for i in b], [first[i] for i in b], block)
            for b in by_length(lengths, most, PADDED_MAX)
        ]


@contextmanager
def _rounded(precision: str, device: torch.device) -> Iterator[None]:
    """Products of float32 matrices as `torch.set_float32_matmul_precision` has it.

    With rounded products the fused attention of a CPU takes ten times as long, at the few tokens of
    an end, as its plain form does.
    """
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with plain, products(precision):
        yield


@dataclass
class _Sums:
    """What passes add up to, request by request."""

    fit: Tensor  # [n] see `Look`
    gradient: Tensor  # [n, d] of it
    wrong_plain: Tensor  # [n] rows of the bare prompt that are wrong
    wrong: Tensor  # [n] rows of any text that are wrong

    @classmethod
    def zero(cls, delta: Tensor) -> _Sums:
        none = torch.zeros_like(delta[:, 0])
        return cls(none, torch.zeros_like(delta), none.clone(), none.clone())

    def add(self, other: _Sums) -> None:
        self.fit += other.fit
        self.gradient += other.gradient
        self.wrong_plain += other.wrong_plain
        self.wrong += other.wrong


@dataclass(frozen=True)
class _Placed:
    """A text of a lesson, and how much each of its rows counts in that lesson's loss."""

    owner: int
    text: Text
    share: float
    is_anchor: bool
    is_plain: bool


def _placed(owner: int, lesson: Lesson) -> Iterator[_Placed]:
    for number, text in enumerate(lesson.texts):
        share = 1.0 / (len(lesson.texts) * len(text.encoding.targets))
        yield _Placed(owner, text, share, is_anchor=False, is_plain=number == 0)
    for anchor in lesson.anchors:
        yield _Placed(owner, anchor, 1.0 / len(lesson.anchors), is_anchor=True, is_plain=False)


class _Pass:
    """Texts of nearly one length, recorded from some positions on with the sums of the edited
    block."""

    def __init__(
        self, site: Site, run: EndPass, placed: Sequence[_Placed], starts: Sequence[int]
    ) -> None:
        self._site, self._run, self._placed, self._starts = site, run, placed, starts
        device = site.edited.device
        size = run.sums.shape[1]
        places = [p.text.place - start for p, start in zip(placed, starts, strict=True)]
        self._places = torch.tensor(places, device=device)
        self._owners = torch.tensor([p.owner for p in placed], device=device)
        self._sequences = torch.arange(len(placed), device=device)
        self._answers = _Rows.of(placed, starts, device, anchors=False)
        self._anchors = _Rows.of(placed, starts, device, anchors=True)
        parts = (self._answers, self._anchors)
        self._rows = torch.cat([part.sequences * size + part.positions for part in parts])
        self._known: Tensor | None = None  # [anchors, vocab] log p without δ, once it was looked at

    @classmethod
    def recorded(
        cls, site: Site, placed: Sequence[_Placed], starts: Sequence[int], block: int
    ) -> _Pass:
        """From the model as it stands."""
        model, anatomy = site.edited.model, site.edited.anatomy
        ends = Ends(tuple(p.text.encoding.ids for p in placed), tuple(starts))
        run = EndPass(model, anatomy, ends, block, site.edited.tokenizer.pad_token_id or 0)
        return cls(site, run, placed, starts)

    def focused(self, live: Tensor) -> _Pass | None:
        """The texts of these requests [n] alone; None where there are none of them."""
        wanted = live[self._owners]
        if bool(wanted.all()):
            return self
        rows = wanted.nonzero().squeeze(-1)
        if len(rows) == 0:
            return None
        chosen = rows.tolist()
        some = _Pass(
            self._site,
            self._run.select(rows),
            [self._placed[i] for i in chosen],
            [self._starts[i] for i in chosen],
        )
        if self._known is not None:
            some._known = self._known[live[self._anchors.owners]]
        return some

    def look(self, delta: Tensor, kl_factor: float) -> _Sums:
        """The pass's part of each request's loss, without what δ itself costs."""
        delta = delta.detach().requires_grad_()
        sums = self._run.sums
        moved = sums.index_put(
            (self._sequences, self._places), delta[self._owners].to(sums.dtype), accumulate=True
        )
        answers, anchors = self._answers, self._anchors
        log_probs, now = self._seen(moved)
        missed = -log_probs.gather(1, answers.targets[:, None]).squeeze(1)
        if self._known is None:
            self._known = now.detach() if not bool(delta.any()) else self._unmoved()
        drift = (now.exp() * (now - self._known)).sum(1)
        loss = torch.zeros_like(delta[:, 0])
        loss = loss.index_add(0, answers.owners, answers.shares * missed)
        loss = loss.index_add(0, anchors.owners, kl_factor * anchors.shares * drift)
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        wrong = (log_probs.argmax(1) != answers.targets).to(loss.dtype)
        none = torch.zeros_like(loss.detach())
        return _Sums(
            loss.detach(),
            gradient,
            none.index_add(0, answers.owners, wrong * answers.is_plain),
            none.index_add(0, answers.owners, wrong),
        )

    def _seen(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """[answers, vocab] and [anchors, vocab] log p with these sums of the edited block."""
        log_probs = self._site.logits(self._run.answers(sums, self._rows)).log_softmax(1)
        count = len(self._answers.sequences)
        return log_probs[:count], log_probs[count:]

    @torch.no_grad()
    def _unmoved(self) -> Tensor:
        """[anchors, vocab] log p without δ."""
        return self._seen(self._run.sums)[1]


@dataclass(frozen=True)
class _Rows:
    """The rows of a pass that become logits: places, and whose they are."""

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
    ) -> _Rows:
        """Of texts that are recorded from these positions on."""
        chosen = [(i, p) for i, p in enumerate(placed) if p.is_anchor is anchors]
        rows = [(i, q - starts[i], p) for i, p in chosen for q in p.text.encoding.positions]
        targets = [t for _, p in chosen for t in p.text.encoding.targets]

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
