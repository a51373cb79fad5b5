"""Any order of operations, against a plain model: the state and its fingerprint are equal.

Hypothesis draws the operations. `Acts` drives a store alone, with crashes at any moment; `Edits`
drives sessions on the embedded model: apply, rollback, revert, replay, tag, gc, reopen, crash.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from benchmarks.faults import commands, processes, workload
from benchmarks.faults.findings import Finding
from benchmarks.faults.kills import FAST
from benchmarks.faults.processes import Say
from benchmarks.faults.workload import Act
from continual import session
from continual.embedded import ATLAS
from continual.history.inspection import status
from continual.history.replaying import rebuild
from store import Store, gc
from store.check import verify

CORRECTIONS = 12  # that are drawn from
CRASH_MAX_S = 0.4
EDITORS = st.sampled_from([None, "ft-last"])  # the default, and one whose patches are dense


class Acts(RuleBasedStateMachine):
    """A store, and the list of the acts done to it."""

    steps: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=FAST if FAST.is_dir() else None))
        workload.make(self.folder / "store")
        self.acts: list[Act] = []
        self.store = Store.open(self.folder / "store", writable=True)

    @rule(kind=st.sampled_from(sorted(set(workload.PLAN))))
    def act(self, kind: str) -> None:
        act = Act(kind, len(self.acts))
        workload.perform(self.store, act)
        self.acts.append(act)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder / "store", writable=True)

    @rule()
    def collect(self) -> None:
        found = gc.find(self.store)
        gc.collect(self.store, found)

    @rule(
        kinds=st.lists(st.sampled_from(sorted(set(workload.PLAN))), min_size=1, max_size=4),
        seconds=st.floats(0.0, 0.02),
    )
    def crash(self, kinds: list[str], seconds: float) -> None:
        self.store.close()
        first = len(self.acts)
        more = [Act(kind, first + number) for number, kind in enumerate(kinds)]
        child = processes.fork(partial(workload.run_plan, self.folder / "store", more))
        child.go()
        child.listen(seconds)
        child.kill()
        heard = child.finish()
        assert not heard.problems, heard.problems
        done = first + sum("done" in one for one in heard.said)
        self.store = Store.open(self.folder / "store", writable=True)
        problems, at = workload.standing(self.store, [*self.acts, *more], done)
        assert not problems, problems
        self.acts = [*self.acts, *more][:at]

    @invariant()
    def it_is_what_was_done(self) -> None:
        if hasattr(self, "store"):
            type(self).steps += 1
            found = workload.differences(self.store, workload.expected_after(self.acts))
            assert not found, found

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        assert not [problem for problem in verify(self.store) if not problem.harmless]
        self.store.close()
        shutil.rmtree(self.folder)


@dataclass
class ModelRevision:
    """A revision as the plain model knows it."""

    fingerprint: str
    active: frozenset[str]  # ids of requests


@dataclass
class ModelHistory:
    """The history as a dict, and the place of its head."""

    states: dict[str, ModelRevision] = field(default_factory=dict)
    head: str = ""
    tags: dict[str, str] = field(default_factory=dict)


class Edits(RuleBasedStateMachine):
    """Sessions on the atlas, and a plain model of their history."""

    steps: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=FAST if FAST.is_dir() else None))
        shutil.copytree(commands.new_store(), self.folder / "store")
        self.session = session.open_session(self.folder / "store")
        base = self.session.store.head
        self.plain = ModelHistory({base.id: ModelRevision(base.fingerprint, frozenset())}, base.id)

    @property
    def here(self) -> ModelRevision:
        return self.plain.states[self.plain.head]

    @rule(number=st.integers(0, CORRECTIONS - 1), editor=EDITORS)
    def apply(self, number: int, editor: str | None) -> None:
        before = self.session.store.length
        self.session.apply([_corrections()[number]], editor=editor)
        self._take(before)

    @rule(draw=st.randoms(use_true_random=False))
    def rollback(self, draw: random.Random) -> None:
        target = draw.choice(sorted(self.plain.states))
        self.session.rollback(target)
        self.plain.head = target

    @precondition(lambda self: self.here.active)
    @rule(draw=st.randoms(use_true_random=False))
    def revert(self, draw: random.Random) -> None:
        request = draw.choice(sorted(self.here.active))
        active = self.here.active - {request}
        done = self.session.revert(request)
        self.plain.states[done.revision.id] = ModelRevision(done.revision.fingerprint, active)
        self.plain.head = done.revision.id
        if not active:
            base = self.session.store.base.fingerprint
            assert self.here.fingerprint == base, "without any edit it is not the base model"

    @rule(name=st.sampled_from(["a", "b"]))
    def tag(self, name: str) -> None:
        self.session.store.tag(name, "head")
        self.plain.tags[name] = self.plain.head

    @rule(with_cache=st.booleans())
    def collect(self, with_cache: bool) -> None:
        gc.collect(self.session.store, gc.find(self.session.store, with_cache=with_cache))

    @rule()
    def replay(self) -> None:
        lineage = self.session.store.lineage("head")
        assert all(made.is_same for made in rebuild(self.session, lineage))
        self.session.stand_at("head")

    @rule()
    def reopen(self) -> None:
        self.session.close()
        self.session = session.open_session(self.folder / "store")

    @rule(
        number=st.integers(0, CORRECTIONS - 1),
        editor=EDITORS,
        seconds=st.floats(0.0, CRASH_MAX_S),
    )
    def crash(self, number: int, editor: str | None, seconds: float) -> None:
        before = self.session.store.length
        self.session.close()
        child = processes.fork(partial(_apply_alone, self.folder / "store", number, editor))
        child.go()
        child.listen(seconds)
        child.kill()
        heard = child.finish()
        assert not heard.problems, heard.problems
        self.session = session.open_session(self.folder / "store")
        told = next((one["head"] for one in heard.said if "head" in one), None)
        assert told in (None, self.session.store.head_id), "what was acknowledged is lost"
        self._take(before)

    def _take(self, before: int) -> None:
        """Have the plain model follow the revisions of an apply."""
        for revision in self.session.store.revisions(before):
            applied = {one["id"] for one in revision.body["requests"] if _is_applied(one)}
            assert revision.parent == self.plain.head
            state = ModelRevision(revision.fingerprint, self.here.active | applied)
            self.plain.states[revision.id] = state
            self.plain.head = revision.id

    @invariant()
    def it_is_what_was_done(self) -> None:
        if not hasattr(self, "session"):
            return
        type(self).steps += 1
        store = self.session.store
        assert store.head_id == self.plain.head
        assert store.head.fingerprint == self.here.fingerprint
        assert self.session.edited.fingerprint == self.here.fingerprint
        assert store.tags() == self.plain.tags
        assert status(store)["requests_active"] == len(self.here.active)

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        assert not [one for one in verify(self.session.store) if not one.harmless]
        self.session.close()
        shutil.rmtree(self.folder)


def _is_applied(outcome: dict[str, Any]) -> bool:
    return outcome["outcome"] == "applied"


def _apply_alone(path: Path, number: int, editor: str | None, say: Say) -> None:
    with session.open_session(path) as opened:
        opened.apply([_corrections()[number]], editor=editor)
        say(head=opened.store.head_id)


@cache
def _corrections() -> list[dict[str, Any]]:
    """Return corrections of different subjects, so that none supersedes another."""
    with ATLAS.corrections.open(encoding="utf-8") as lines:
        records = {record["subject"]: record for record in map(json.loads, islice(lines, 60))}
    return list(records.values())[:CORRECTIONS]


def of_machine(
    finding: Finding, machine: type[Acts] | type[Edits], examples: int, steps: int
) -> None:
    """Run a machine; the first example that fails is the violation, shrunk as far as it goes."""
    machine.steps = 0
    given = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    problems = []
    try:
        run_machine(machine, settings=given)
    except Exception as error:
        problems.append(f"{error!r} {getattr(error, '__notes__', '')}")
    finding.count(machine.__name__, problems)
    finding.cases = machine.steps
    finding.note = f"{examples} histories"


def find(is_short: bool) -> Iterator[Finding]:
    """Yield a finding for each row of the table."""
    acts = Finding("any order of acts on a store, with crashes")
    of_machine(acts, Acts, *((10, 15) if is_short else (150, 40)))
    yield acts
    edits = Finding("any order of apply, rollback, revert, replay, tag, gc, crash")
    of_machine(edits, Edits, *((2, 8) if is_short else (25, 25)))
    yield edits
