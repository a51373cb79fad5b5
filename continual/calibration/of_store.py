"""Calibrations of an open store's editors: finds the missing ones, measures them, gives settings.

Knows where a store's facts and probes are, and that the lines of `cedit.toml` take precedence over
measured settings. Leaves to callers when a calibration is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from continual.calibration.calibrating import Calibration, told
from continual.calibration.choosing import is_sound
from continual.calibration.config import CalibrationConfig
from continual.calibration.facts import Draw, Sample
from continual.calibration.kept import Calibrated, CalibrationCache, Purpose
from continual.calibration.trials import TrialRunner
from continual.choices import EDITORS
from continual.editors.chains import chain_of
from continual.errors import CeditError, RequestError
from continual.grids import Grid, GridOf
from continual.open_store import OpenStore
from continual.recheck.general_rows import GeneralRows
from continual.requests import Probe, Request
from continual.settings import StoreSettings
from continual.step.settings import ApplySettings
from continual.tasks import Encoding
from continual.watch import general
from continual.watch.config import NEW_STORE, WatchConfig
from continual.watch.general import GeneralText

EditorTables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class StoreCalibration:
    """The calibrations of an open store's base model."""

    opened: OpenStore
    config: CalibrationConfig

    @classmethod
    def of(cls, opened: OpenStore) -> StoreCalibration:
        """Return the calibrations of a store with the settings of its `[calibration]` table."""
        table = StoreSettings.of(opened.store.settings).calibration
        return cls(opened, CalibrationConfig.of(table))

    # -- finished calibrations

    def known(self, editor: str, given: Mapping[str, Any]) -> Calibrated | None:
        """Return the finished calibration of an editor with these lines of `[editor.NAME]`; None
        without one."""
        calibration = CalibrationCache(self.opened.store).get(editor, self._purpose(given))
        return calibration if calibration is not None and calibration.chosen is not None else None

    def missing(self, chain: Sequence[str], tables: EditorTables) -> list[str]:
        """Return the editors of a chain that calibrate at their first use and have no finished
        calibration."""
        return [
            name
            for name in chain
            if EDITORS[name].grid
            and self._grid(name).by_itself
            and self.known(name, tables.get(name, {})) is None
        ]

    def tables(self, chain: Sequence[str], tables: EditorTables) -> dict[str, Mapping[str, Any]]:
        """Return the `[editor.NAME]` tables, with chosen settings added where people give none."""
        result = dict(tables)
        for name in chain:
            table = tables.get(name, {})
            if EDITORS[name].grid and (calibration := self.known(name, table)) is not None:
                result[name] = {**(calibration.chosen or {}), **table}
        return result

    def ordered(self, chain: Sequence[str], tables: EditorTables) -> tuple[str, ...]:
        """Return the chain with the editors that lose too much, by their evidence, moved behind the
        others. The last editor stays last: it is asked when all others failed."""
        *front, fallback = chain
        rejects = {name for name in front if self._is_unsound(name, tables.get(name, {}))}
        return (
            *(name for name in front if name not in rejects),
            *(name for name in front if name in rejects),
            fallback,
        )

    def _is_unsound(self, name: str, given: Mapping[str, Any]) -> bool:
        calibration = self.known(name, given) if EDITORS[name].grid else None
        if calibration is None or calibration.evidence is None:
            return False
        watch = WatchConfig.of(StoreSettings.of(self.opened.store.settings).watch)
        return not is_sound(calibration.evidence, self.config.stays_min, watch.neighbours_max)

    def _purpose(self, given: Mapping[str, Any]) -> Purpose:
        return Purpose(self.opened.edited.base.fingerprint, given)

    # -- a run

    def applied(
        self, settings: ApplySettings, sampled: Callable[[], Sequence[Request]]
    ) -> ApplySettings:
        """Return the settings of a run with those that calibrations on the base chose. If the store
        asks for calibration at first use, editors without one are measured now, on the requests
        `sampled`, and `auto` moves editors that lose too much towards its end."""
        if not self.config.at_first_use:
            return settings
        if missing := self.missing(settings.chain, settings.editors):
            self._measure_aloud(missing, settings.editors, sampled())
        chain = settings.chain
        if chain == chain_of("auto", self.opened.task.name):
            chain = self.ordered(chain, settings.editors)
        return replace(settings, chain=chain, editors=self.tables(chain, settings.editors))

    def _measure_aloud(
        self, editors: Sequence[str], tables: EditorTables, requests: Sequence[Request]
    ) -> None:
        listener = self.opened.listener
        names = ", ".join(editors)
        listener.note(f"First use on this base model: choosing the settings of {names} by trials.")
        for state in self.measure(editors, tables, requests):
            listener.progress(f"{state.editor}: trials", len(state.trials), 0)
            if state.chosen is not None:
                lines = "; ".join(told(state)) or "the defaults"
                listener.note(
                    f"{state.editor}: {lines} (`cedit calibrate` shows why; lines under "
                    f"[editor.{state.editor}] in cedit.toml take precedence)"
                )

    # -- measuring

    def forget(self, editors: Sequence[str], tables: EditorTables) -> None:
        """Delete the calibrations of these editors, so that they are measured anew."""
        for name in editors:
            CalibrationCache(self.opened.store).drop(name, self._purpose(tables.get(name, {})))

    def measure(
        self, editors: Sequence[str], tables: EditorTables, requests: Sequence[Request] = ()
    ) -> Iterator[Calibrated]:
        """Calibrate these editors, on facts of these requests or of the history, and yield the
        state after each trial. The model is at base meanwhile, and at head when this ends.

        Raises CeditError for an editor without a grid, or a model that writes no text.
        """
        source = "the stream" if requests else "the history"
        facts = list(requests) or self._history()
        with self._at_base():
            sample = self._sample(facts, source)
            for name in editors:
                yield from self._calibration(name, sample, tables.get(name, {})).run()

    def _calibration(self, name: str, sample: Sample, given: Mapping[str, Any]) -> Calibration:
        opened = self.opened
        grid = self._grid(name)
        trials = TrialRunner(name, grid, opened.site, sample, opened.statistics, self._seed)
        return Calibration(trials, CalibrationCache(opened.store), self.config, given)

    def _grid(self, name: str) -> Grid:
        grid_of: GridOf | None = EDITORS[name].load_grid()
        if grid_of is None:
            raise CeditError(f"The editor {name} offers no settings to try: it has its defaults.")
        return grid_of(self.opened.site)

    @contextmanager
    def _at_base(self) -> Iterator[None]:
        opened = self.opened
        if not opened.edited.depth:
            yield
            return
        opened.forget_run_state()
        opened.stand_at("base")
        try:
            yield
        finally:
            opened.stand_at_head()

    # -- the sample

    def _sample(self, requests: Sequence[Request], source: str) -> Sample:
        table = StoreSettings.of(self.opened.store.settings).watch
        watch = WatchConfig.of(table)
        text = self._general_text()
        if not text.memory:
            raise CeditError(
                "Calibration needs general text, and the base writes none: give the store some "
                "with `cedit watch --text FILE`, or set at_first_use = false under [calibration]."
            )
        draw = Draw(self.opened.site, text, watch, self._seed)
        return draw.sample(requests, source, self._probes(), self.config.facts)

    def _general_text(self) -> GeneralText:
        """Return the store's general text, or text that the base writes now if it has none."""
        store, site = self.opened.store, self.opened.site
        text = GeneralRows.at(store, site, store.lineage("head")).text
        if text.memory:
            return text
        config = WatchConfig.of({**NEW_STORE, "neighbours": 0})
        return general.write(site, config, self._seed).text

    def _probes(self) -> list[Encoding]:
        """Encode the training probes, without the ones that the task cannot encode."""
        records = self.opened.store.base.body.get("probes", {}).get("train", ())
        encodings = []
        for probe in map(Probe.model_validate, records):
            try:
                encodings.append(self.opened.task.encode(probe.prompt, probe.answer))
            except RequestError:
                continue
        return encodings

    def _history(self) -> list[Request]:
        """Return the requests of the corrections that are in force."""
        requests = self.opened.run_state.retention.requests
        return [entry.request for entry in requests.values() if entry.applied]

    @property
    def _seed(self) -> int:
        return StoreSettings.of(self.opened.store.settings).run.seed
