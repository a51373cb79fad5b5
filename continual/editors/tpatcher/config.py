"""The settings of T-Patcher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from continual.effects.places import FFN, GatePlace
from continual.errors import EditError
from continual.tables import SettingsTable

CROWDED_FROM = 1000  # neurons
NARROWED = 0.85  # of what the margin leaves, where a neuron changed too much


@dataclass(frozen=True)
class TPatcherConfig(SettingsTable):
    """Settings; the losses and their weights are the paper's (section 4).

    A neuron starts from the closed form: its key points along its own queries, or where that does
    not separate them from memory, in the direction of the widest margin; it is scaled to fire at 1
    on the edit's query, and its bias puts the threshold a share `margin` of the way from the
    highest score in memory (0: the most general) to its own lowest score (1: the most specific).
    In these units that is the paper's `beta`; see `beta`. Among many neurons the margin is larger;
    see `among`.

    With `copies`, key and bias are made for the prompt and for copies of it behind a few foreign
    words, so that the neuron fires on other wordings; see `copies`. Where these do not all lie on
    one side of a plane, and the memory on the other, the prompt alone has to do.

    With `asks_subject`, the neurons of a request that names its subject fire only where the text
    names it, too. They then need a plane only against general text and other texts that name the
    subject, and have room for other wordings: `subject_margin`, `subject_copies`, `subject_reach`
    and `subject_norm_max` take the place of `margin`, `copies`, `reach` and `norm_max`. Wordings
    that other requests of its relation lend make such a gate wider, so that it can do with a higher
    margin, `wordings_margin`. With `subject_whitening` their keys have the widest margin of all,
    measured where general text spreads alike in all directions; their copies stand behind whole
    sentences, and all of them count, whatever they are answered.

    Neurons stand at the FFN of the last block, or at the block's output where that FFN has no site,
    unless `block`, `key`, `value_block` or `value` says otherwise; see `effects.places`. Elsewhere
    their values are trained by passes of the model.
    """

    table: ClassVar[str] = "editor.tpatcher"
    new_stores: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "causal": {"asks_subject": True, "wordings_margin": 0.45},
        "classification": {"copies": 16, "reach": 0.25, "norm_max": 16.0},
    }

    block: int | None = None  # the block whose state the keys read; None: the last one
    key: str = FFN  # the state that the keys read: ffn, hidden or pooled
    value_block: int | None = None  # the block where the values land; None: the block of the keys
    value: str | None = None
    """The output on which the values land: ffn or hidden; None: ffn where the FFN is ahead."""
    margin: float = 0.5
    """The threshold's place between the highest score in memory (0) and a neuron's own (1)."""
    crowding: float = 0.25  # how fast the margin grows with the neurons that are on; 0: not at all
    copies: int = 0  # copies of the prompt behind foreign words; those answered as the prompt count
    copies_margin: float = 0.8  # the margin of a neuron that has copies, in the place of `margin`
    asks_subject: bool = False
    """A neuron asks for its request's subject in the text, where something is watched."""
    subject_margin: float = 0.35
    """The margin of a neuron that asks for a subject, in the place of `margin`."""
    wordings_margin: float | None = None
    """The margin of such a neuron whose request has other wordings, which make its gate wider, in
    the place of `subject_margin`; None: `subject_margin`."""
    subject_copies: int = 8
    """The copies of a neuron that asks for a subject, in the place of `copies`."""
    subject_reach: float = 0.1
    """The reach of a neuron that asks for a subject, in the place of `reach`."""
    subject_norm_max: float = 32.0
    """The norm_max of a neuron that asks for a subject, in the place of `norm_max`."""
    subject_whitening: float = 0.02
    """Added to the variance of each direction, in mean variances, where the key of a neuron that
    asks for a subject is searched for; 0: the closed form."""
    whitening: float = 0.0
    """Added to the variance of each direction, in mean variances, where the key of a neuron that
    asks for no subject is searched for; 0: the closed form."""
    centred: bool = True  # keys point from the mean of the memory, not from zero
    reach: float = 0.5
    """The share of its own activation at which a neuron's values must be right already."""
    confidence: float = 0.02  # l_e at which the training of a neuron's values is done
    progress: float = 0.2
    """The share of l_e that further training of right values has to gain; else it ends."""
    value_steps_max: int = 50  # steps of the training of a neuron's values, at most
    candidates: int = 256
    """Logits that compete while values are trained; all of them judge the result."""
    neurons_max: int = 5  # neurons of a request at the first attempt, at most
    norm_max: float = 4.0  # the norm of a value, at most, in mean norms of the residual sum
    separation: float = 0.02  # the least share of its own score by which a key must beat the memory
    # the paper's training of all of (k, b, v), the last thing that is tried
    alpha: float = 1.0  # the paper's training of (k, b, v), tried last: the weight of l_a
    memory_weight: float = 10.0  # the paper's training: m, the weight of l_m1 and l_m2
    activation_top: int = 5  # the paper's training: the highest terms that count in l_a
    memory_top: int = 1000  # the paper's training: the highest terms that count in l_m1 and l_m2
    learning_rate: float = 1e-2  # the paper's training: Adam's learning rate
    weight_decay: float = 0.01  # the paper's training: Adam's weight decay
    gradient_clip: float = 5.0  # the paper's training: the norm of a gradient, at most
    steps_max: int = 300  # the paper's training: steps, at most
    check_every: int = 10  # the paper's training: steps between two checks that the keys separate

    def __post_init__(self) -> None:
        if not 0.0 <= self.margin < 1.0:
            raise self.refused(f"margin = {self.margin} is not in [0, 1)")
        if not 0.0 <= self.copies_margin < 1.0:
            raise self.refused(f"copies_margin = {self.copies_margin} is not in [0, 1)")
        if not 0.0 <= self.subject_margin < 1.0:
            raise self.refused(f"subject_margin = {self.subject_margin} is not in [0, 1)")
        if self.wordings_margin is not None and not 0.0 <= self.wordings_margin < 1.0:
            raise self.refused(f"wordings_margin = {self.wordings_margin} is not in [0, 1)")
        for name in ("copies", "subject_copies"):
            if getattr(self, name) < 0:
                raise self.refused(f"{name} = {getattr(self, name)} is less than 0")
        for name in ("whitening", "subject_whitening"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise self.refused(f"{name} = {getattr(self, name)} is not 0 or a positive number")
        if not 0.0 <= self.crowding <= 1.0:
            raise self.refused(f"crowding = {self.crowding} is not in [0, 1]")
        if self.neurons_max < 1 or self.value_steps_max < 1:
            raise self.refused("neurons_max and value_steps_max are at least 1")

    def place(self, site: GatePlace) -> GatePlace:
        """Return the place of neurons in a model with this last place: there, unless a setting says
        otherwise. Raises EditError if the model has no such place."""
        if (self.block, self.key, self.value_block, self.value) == (None, FFN, None, None):
            return site
        last_block = site.value_block
        block = last_block if self.block is None else self.block
        place = GatePlace.at(block, self.key, self.value_block, self.value)
        if not 0 <= place.block <= place.value_block <= last_block:
            raise EditError(
                f"[{self.table}] names {place}: the model has blocks 0 to {last_block}."
            )
        return place

    def among(self, neurons: int) -> TPatcherConfig:
        """Return the settings for an edit of a model with this number of neurons on.

        Each neuron has its small chance to fire on an input that it is not meant for, and these
        chances add up. So the room beside the margin, 1 - margin, falls with their number from
        `CROWDED_FROM` on, to the power of `crowding`: 0.25 halves it among 16 times as many.
        """
        room = max(1.0, neurons / CROWDED_FROM) ** -self.crowding
        return replace(
            self,
            margin=1.0 - (1.0 - self.margin) * room,
            copies_margin=1.0 - (1.0 - self.copies_margin) * room,
        )

    @property
    def reads_wordings(self) -> bool:
        """True if other wordings are among the own rows of a neuron that asks for a subject."""
        return self.subject_copies > 0 and self.subject_whitening > 0

    def asking(self, *, has_wordings: bool = False) -> TPatcherConfig:
        """Return the settings for neurons that ask for their subject. They are not narrowed by
        number: however many there are, few fire on texts about one subject."""
        margin = self.subject_margin
        if has_wordings and self.reads_wordings and self.wordings_margin is not None:
            margin = self.wordings_margin
        return replace(
            self,
            margin=margin,
            copies_margin=margin,
            copies=self.subject_copies,
            reach=self.subject_reach,
            whitening=self.subject_whitening,
            norm_max=self.subject_norm_max,
        )

    def narrower(self, times: int) -> TPatcherConfig:
        """Return the settings for an edit after its neurons have changed too much `times` times:
        the room beside the margin, 1 - margin, shrinks each time."""
        room = NARROWED**times
        return replace(
            self,
            margin=1.0 - (1.0 - self.margin) * room,
            copies_margin=1.0 - (1.0 - self.copies_margin) * room,
        )

    def among_copies(self) -> TPatcherConfig:
        """Return the settings for a neuron with copies among its own rows."""
        return replace(self, margin=self.copies_margin)

    @property
    def beta(self) -> float:
        """The highest activation allowed in memory where an edit's own is 1 (paper: beta)."""
        return -self.margin / (1.0 - self.margin)

    @property
    def gamma(self) -> float:
        """The same bound, relative to the edit's own activation (paper: gamma)."""
        return self.beta - 1.0
