"""Chooses the token that a request is written to: one where a value changes the answer.

The papers write at the subject's last token, because large models have gathered their knowledge of
the subject there (Meng et al. 2022, section 2.2). Other models differ: a small one, or one that was
taught few wordings, may look a fact up from the whole prompt, at its end. Then no value at the
subject changes the answer, and the edit writes to the prompt's last token, which the public code
offers as an option. The search itself decides between the two: it finds a value that gives the
target at the subject, or it finds none.

A value at the prompt's end cannot give an answer of several tokens where blocks above it carry
nothing to the tokens behind. Such a request is written to each token that says one of its answer,
with a value for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Self

from continual.locate_then_edit.config import LocateThenEditConfig, ValueSearchConfig
from continual.locate_then_edit.edit_texts import EditTexts
from continual.locate_then_edit.targets import TargetValues, find_targets
from continual.site import Site


class FoundValues:
    """Values found at the latest state of a model, for edits that are tried there once more.

    Halves of a batch that was refused as a whole search for nothing, and neither do trials that
    differ in the solve alone.
    """

    def __init__(self) -> None:
        self._state = ""
        self._found: dict[tuple[object, ...], tuple[list[EditTexts], TargetValues]] = {}

    def copied(self) -> FoundValues:
        """Return values that others may be added to, apart from these."""
        values = FoundValues()
        values.take_over(self)
        return values

    def take_over(self, found: Self) -> None:
        """Add the values that another process found, of the same state or of a later one."""
        if found._state and found._state != self._state:
            self._state, self._found = found._state, {}
        self._found = {**found._found, **self._found}

    def located(
        self, site: Site, batch: Sequence[EditTexts], block: int, config: LocateThenEditConfig
    ) -> tuple[list[EditTexts], TargetValues]:
        """Return the same as `located`, with the texts and values of edits that were searched for
        before with the same settings of the search."""
        if self._state != site.edited.fingerprint:
            self._state, self._found = site.edited.fingerprint, {}
        search = replace(config, overshoot=1.0)
        how = block, *(getattr(search, each.name) for each in fields(ValueSearchConfig))
        pending = [edit_texts for edit_texts in batch if (edit_texts.id, *how) not in self._found]
        if pending:
            texts, targets = located(site, pending, block, search)
            for identity in dict.fromkeys(edit_texts.id for edit_texts in texts):
                places = [i for i, edit_texts in enumerate(texts) if edit_texts.id == identity]
                self._found[identity, *how] = [texts[i] for i in places], targets[places]
        parts = [self._found[edit_texts.id, *how] for edit_texts in batch]
        all_texts = [edit_texts for texts, _ in parts for edit_texts in texts]
        all_targets = TargetValues.joined([targets for _, targets in parts])
        return all_texts, all_targets.stretched(config.overshoot)


def located(
    site: Site, batch: Sequence[EditTexts], block: int, config: LocateThenEditConfig
) -> tuple[list[EditTexts], TargetValues]:
    """Return the edits' texts with their places chosen by `config.place`, and z of each at a block.

    An edit without a value at either token stays at its subject. With `config.place` = "answer" an
    edit may come several times, once for each token of its answer.
    """
    if config.place in ("end", "answer"):
        batch = [edit_texts.at_end() for edit_texts in batch]
    targets = find_targets(site, batch, block, config)
    if config.place == "answer":
        return _by_token(site, batch, targets, block, config)
    misses = [i for i, has_arrived in enumerate(targets.arrived) if not has_arrived]
    if config.place != "auto" or not misses:
        return list(batch), targets
    end_batch = [batch[i].at_end() for i in misses]
    end_targets = find_targets(site, end_batch, block, config)
    order = list(range(len(batch)))
    result = list(batch)
    for j, i in enumerate(misses):
        if end_targets.arrived[j]:
            order[i], result[i] = len(batch) + j, end_batch[j]
    return result, TargetValues.joined([targets, end_targets])[order]


def _by_token(
    site: Site,
    batch: Sequence[EditTexts],
    targets: TargetValues,
    block: int,
    config: LocateThenEditConfig,
) -> tuple[list[EditTexts], TargetValues]:
    """Return the edits, those whose answer no value at the end gives with a value for each of its
    tokens instead, if all of these are found."""
    parts = {
        i: batch[i].by_token()
        for i, has_arrived in enumerate(targets.arrived)
        if not has_arrived and len(batch[i].texts[0].encoding.targets) > 1
    }
    if not parts:
        return list(batch), targets
    found = find_targets(site, [part for group in parts.values() for part in group], block, config)
    result: list[EditTexts] = []
    order: list[int] = []
    first = len(batch)
    for i, edit_texts in enumerate(batch):
        group = parts.get(i, [])
        places = range(first, first + len(group))
        first += len(group)
        if group and all(found.arrived[place - len(batch)] for place in places):
            result += group
            order += places
        else:
            result.append(edit_texts)
            order.append(i)
    return result, TargetValues.joined([targets, found])[order]
