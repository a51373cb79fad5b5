"""The gates on an edited model: neurons and other effects that open on a query, by their places.

Knows which modules a gate hooks, and in which order gates are hooked. Leaves what an open gate does
to ``effects``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TypeVar, cast

from torch import Tensor, nn

from continual.anatomy import reads_ahead
from continual.base import PretrainedBase
from continual.effects import GatedEffect
from continual.effects.context import Context, RunningMeans, Window
from continual.effects.gated import Mount, NeuronBank
from continual.effects.hearing import HeardEffect, HeardGates
from continual.effects.places import FFN, INNER, POOLED, QUERIES, TOPIC, GatePlace
from continual.effects.pooling import PassTokens, means
from continual.errors import ModelError
from continual.model.effects import ModelEffects
from continual.reading import RunningText, decoder
from continual.storage import device_of

AnyGated = TypeVar("AnyGated", bound=GatedEffect)


class ModelGates(ModelEffects):
    """The part of an edited model that has gates at its places."""

    def __init__(self, base: PretrainedBase) -> None:
        super().__init__(base)
        self.decode = decoder(base.tokenizer)
        self._running = RunningText(self.decode)
        self._tokens = PassTokens()
        self._gated: dict[str, GatedEffect] = {}  # the effects with gates
        self._gate_hooks = ExitStack()

    def bank(self, block: int) -> NeuronBank:
        """Return the neurons at the FFN of a block."""
        return self.gates(GatePlace.at(block))

    @property
    def site_bank(self) -> NeuronBank:
        """The neurons at the last place of the model."""
        return self.gates(self.site_place)

    def gates(self, place: GatePlace) -> NeuronBank:
        """Return the neurons at a place, made and attached at the first call."""
        return self.gated(neurons_at(place), place, NeuronBank)

    def gated(self, name: str, place: GatePlace, make: Callable[[Mount], AnyGated]) -> AnyGated:
        """Return the effect of this name, with its gates at a place, made and attached at the first
        call. One name has one kind of effect. Raises ModelError for blocks that the model does not
        have, and for effects other than neurons at the last place of the model: the values
        added there are computed from rows."""
        existing_effect = self._gated.get(name)
        if existing_effect is not None:
            return cast(AnyGated, existing_effect)
        if place == self.site_place and name != neurons_at(place):
            raise ModelError(
                f"The effect {name!r} has its gates from {place}: that place is for neurons. Let "
                "its values land on the block's output."
            )
        effect = make(self.mount(place))
        self._effects[name] = self._gated[name] = effect
        if self._hooks is not None:
            with self._hooking():
                self._detach_gates()
                self._attach_gates()
        return effect

    def mount(self, place: GatePlace) -> Mount:
        """Return the modules that gates at a place hook, as a `Mount`. Raises ModelError for blocks
        that the model does not have."""
        self._require_block(place.block)
        self._require_block(place.value_block)
        anatomy, model = self.anatomy, self.model
        landing = anatomy.block(model, place.value_block)
        if place.value == FFN:
            landing = anatomy.down_module(model, place.value_block)
        return Mount(
            place,
            anatomy.width,
            device_of(landing),
            (self._reader(place), landing),
            self._pool() if place.key == POOLED else None,
            self._running.texts,
            self._context(place) if place.has_context else None,
            is_site=place == self.site_place,
            key_width=anatomy.ffn_width if place.key == INNER else None,
        )

    def _reader(self, place: GatePlace) -> nn.Module:
        """Return the module whose input or output is the query at a place."""
        if place.key == INNER:
            return self.anatomy.down_module(self.model, place.block)
        if place.key in QUERIES:
            return self.anatomy.query_module(self.model, place.block)
        return self.anatomy.block(self.model, place.block)

    def _context(self, place: GatePlace) -> Context:
        """Return the context of the queries at a place in the pass under way. Raises ModelError for
        blocks that the model does not have."""
        self._require_block(place.context)
        running = RunningMeans(self._window(place))

        def means(states: Tensor) -> Tensor:
            tokens, text = self._tokens, self._running
            return running.of(states, tokens.mask, text.read, tokens.cached)

        return Context(self.anatomy.query_module(self.model, place.context), means)

    def _window(self, place: GatePlace) -> Window:
        """Return the tokens that a context at a place is the mean of. Raises ModelError for a topic
        in a store that does not say which tokens it leaves out."""
        if place.key != TOPIC:
            return Window()
        if self.anatomy.turn is None:
            raise ModelError(
                f"Gates from {place.reading} leave out the tokens between a user's turn and the "
                "answer, and [anatomy] turn is gone from cedit.toml: put it back."
            )
        return Window(self.anatomy.turn)

    def _pool(self) -> Callable[[Tensor], Tensor]:
        """Return the function from a block's outputs [B, T, d] to their pooled states in the pass
        under way. Runs the model, to see whether it is an encoder."""
        is_whole = self._reads_ahead
        if self.model.can_generate() and not self.model.config.is_encoder_decoder:
            with self.bare():
                dict(self.base.decoding)  # found once, with a cache, which a gate would refuse
        return lambda states: means(states, self._tokens.real(states), is_whole=is_whole)

    @cached_property
    def _reads_ahead(self) -> bool:
        with self.bare():
            return reads_ahead(self.model, self.anatomy)

    @property
    def open_gates(self) -> Sequence[GatedEffect]:
        """The effects with gates that have any pieces."""
        return [effect for effect in self._gated.values() if effect.size]

    @property
    def plain_neurons(self) -> dict[int, NeuronBank]:
        """Return the neurons that a wider FFN of the model could have itself, by block: banks with
        at least one of them (see `NeuronBank.is_plain`)."""
        banks = (effect for effect in self.open_gates if isinstance(effect, NeuronBank))
        return {bank.place.block: bank for bank in banks if bool(bank.is_plain.any())}

    @contextmanager
    def gates_heard(self) -> Iterator[list[HeardGates]]:
        """Collect the rows of effects that open at each pass within `with`; the passes are of one
        sequence. An effect that cannot tell is left out."""
        with ExitStack() as stack:
            yield [
                HeardGates(
                    frozenset(effect.beside),
                    effect.place,
                    effect.place.moves_rows(self.site_place),
                    stack.enter_context(effect.heard()),
                )
                for effect in self.open_gates
                if isinstance(effect, HeardEffect)
            ]

    @property
    def moves_rows(self) -> bool:
        """True if gates on the model may change rows at its last place."""
        return any(e.place.moves_rows(self.site_place) for e in self.open_gates)

    @property
    def is_read_off_rows(self) -> bool:
        """True if rows at the last place determine the answer: no values land behind it, and the
        model's own logits are computed row by row."""
        return not self.anatomy.no_rows and not any(
            e.place.is_behind(self.site_place) for e in self.open_gates
        )

    def _attach_gates(self) -> None:
        """Hook the gates in the order of their places, whatever order they came in: values on one
        output are then added in the same order in every session."""
        for effect in sorted(self._gated.values(), key=lambda effect: effect.place):
            self._gate_hooks.enter_context(effect.attached())

    def _detach_gates(self) -> None:
        self._gate_hooks.close()

    @contextmanager
    def before_last_neurons(self) -> Iterator[None]:
        """Run the model within `with` without the neurons of its last place and without values that
        land behind it: rows there depend on neither."""
        with self.site_bank.silenced(), self.up_to_last_sum():
            yield

    @contextmanager
    def up_to_last_sum(self) -> Iterator[None]:
        """Run the model within `with` without values that land behind the last residual sum."""
        with ExitStack() as stack:
            for effect in self.open_gates:
                if effect.place.is_behind(self.site_place):
                    stack.enter_context(effect.silenced())
            yield


def neurons_at(place: GatePlace) -> str:
    """Return the name of the effect of a place's neurons."""
    return f"neurons at {place.block}" if place.is_local else f"neurons from {place}"
