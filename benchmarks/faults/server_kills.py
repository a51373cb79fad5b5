"""kill -9 of the whole server, at random moments, while people ask, propose, approve and take back.

The server is `cedit serve` itself, on a small random model, forked when all is imported. Its client
does one thing after another and remembers each answer that it got; a timer kills the server in the
middle of any of them, of its start, or of the edits that go on meanwhile. Then the server is
started again on the same store: whatever was acknowledged is there, and a request that was sent
again with its key, because no answer had come, is there once. In the end all that was approved is
in the history, each correction by one step.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults import commands, processes
from benchmarks.faults.findings import Finding
from benchmarks.faults.processes import Child, Say
from benchmarks.faults.workload import copied
from continual.recheck.retention import outcomes_of
from store import Store
from store.check import verify

NAME = "tiny"
PER_STORE = 25  # kills before a fresh store is taken
LIFE_S = 2.0  # of a server that listens, at most
EARLY = 0.2  # share of the servers that are killed while they start
START_S = 2.0  # of the first start, until one was measured
PATIENCE_S = 60.0
WORDS = ("red", "green", "blue", "gold", "grey", "pink", "black", "white")
SETTLED = frozenset({"applied", "verified", "failed", "broken", "repaired", "superseded"})
DECIDED = SETTLED | {"approved", "applying"}


class ServerGone(Exception):
    """The server ended before it answered."""


# -- the model and the store


def make_template(folder: Path, say: Say) -> None:
    """Make a store on a random model whose tokens are bytes."""
    from continual.new_store import NewStore, init

    _save_model(folder / "model")
    calibration = {"at_first_use": False}
    watch = {"texts": 0, "neighbours": 0}
    new = NewStore(str(folder / "model"), watch=watch, calibration=calibration)
    init(folder / "store", new).close()
    say(made=True)


def _save_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    sizes = {"n_positions": 64, "n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4}
    tokens = {"vocab_size": len(vocabulary), "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    config = GPT2Config(initializer_range=0.3, **sizes, **tokens)
    GPT2LMHeadModel(config).save_pretrained(folder)


def correction(number: int) -> dict[str, str]:
    """Return a correction of its own for each number."""
    word = WORDS[number % len(WORDS)]
    return {"prompt": f"the colour of {number} is", "target_new": word, "subject": str(number)}


# -- the server


def serve(store: Path, port_file: Path, say: Say) -> None:
    """Run `cedit serve` in this process, its output in a file."""
    out = os.open(port_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    arguments = ("serve", "--store", str(store), "--port", "0", "--name", NAME, "--json")
    commands.perform(arguments, say)


@dataclass
class Server:
    """A server that runs, and its client."""

    child: Child
    port_file: Path
    token: str = ""
    port: int = 0
    is_killed: bool = False

    def kill(self, *_: Any) -> None:
        """End it with SIGKILL; for a timer's signal, too."""
        self.is_killed = True
        self.child.kill()

    def kill_after(self, seconds: float) -> None:
        """Kill it after some time, whatever goes on then."""
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))

    def wait(self, store: Path) -> None:
        """Wait until it listens. Raises ServerGone."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            told = self.port_file.read_text(encoding="utf-8") if self.port_file.exists() else ""
            lines = [line for line in told.splitlines(keepends=True) if line.startswith("{")]
            if lines and lines[0].endswith("\n"):
                self.port = int(json.loads(lines[0])["url"].rpartition(":")[2])
                tokens = json.loads((store / "server" / "tokens.json").read_text("utf-8"))
                self.token = tokens["tokens"][0]["token"]
                return
            if self.is_killed:
                raise ServerGone
            if not self.child.listen(0.01):
                raise ServerGone
        raise ServerGone

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, key: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Send a request; return status and body of its answer. Raises ServerGone for none."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {}
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            line.request(method, path, None if body is None else json.dumps(body), headers)
            response = line.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerGone from error
        finally:
            line.close()


@contextmanager
def running(store: Path, folder: Path, *, in_peace: bool = False) -> Iterator[Server]:
    """Run a server on a store within `with`; it is killed in the end at the latest, or ended in
    peace."""
    port_file = folder / "told"
    port_file.unlink(missing_ok=True)
    server = Server(processes.fork(partial(serve, store, port_file)), port_file)
    before = signal.signal(signal.SIGALRM, server.kill)
    try:
        server.child.go()
        yield server
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if in_peace:
            with suppress(ProcessLookupError):
                os.kill(server.child.pid, signal.SIGTERM)
        else:
            server.child.kill()
        server.child.finish()


# -- the client


@dataclass
class Known:
    """The answers that a client got: all of this has to stay true."""

    numbers: dict[int, int] = field(default_factory=dict)  # of corrections, by their own number
    states: dict[int, str] = field(default_factory=dict)  # decided last, by the queue's number
    fingerprints: set[str] = field(default_factory=set)  # of answers
    doubtful: set[int] = field(default_factory=set)  # whose last decision got no answer
    unanswered: int | None = None  # a proposal that has to be sent again
    count: int = 0  # of proposals


class Person:
    """A client that does one thing after another."""

    def __init__(self, known: Known, draw: random.Random) -> None:
        self.known, self._draw = known, draw
        self.acts = Counter[str]()
        self.problems: list[str] = []

    def act_until_killed(self, server: Server) -> None:
        """Go on until the server is gone."""
        while not server.is_killed:
            act = self._draw.choices(
                (self._propose, self._decide, self._revert, self._ask), (4, 4, 1, 3)
            )[0]
            act(server)

    def propose_again(self, server: Server) -> None:
        """Send the proposal again whose answer never came."""
        if self.known.unanswered is not None:
            self._send(server, self.known.unanswered)

    def _propose(self, server: Server) -> None:
        self.known.count += 1
        self.known.unanswered = self.known.count
        self._send(server, self.known.count)

    def _send(self, server: Server, own: int) -> None:
        body = {"correction": correction(own), "editor": "tpatcher"}
        status, told = server.call("POST", "/v1/corrections", body, key=f"key {own}")
        if status not in (200, 201):
            self.problems.append(f"proposal {own}: {status} {told}")
            return
        number = told["data"][0]["number"]
        if number in self.known.numbers.values():
            self.problems.append(f"proposal {own} got the number {number} of another")
        self.known.numbers[own] = number
        self.known.states[number] = "pending"
        self.known.unanswered = None
        self.acts["proposed"] += 1

    def _decide(self, server: Server) -> None:
        waiting = [n for n, state in self.known.states.items() if state == "pending"]
        if not waiting:
            return
        number = self._draw.choice(waiting)
        decision = self._draw.choices(("approve", "reject"), (5, 1))[0]
        self._decided(server, number, decision, "approved" if decision == "approve" else "rejected")

    def _decided(self, server: Server, number: int, decision: str, state: str) -> None:
        self.known.doubtful.add(number)
        status, told = server.call("POST", f"/v1/corrections/{number}/{decision}", {"why": "so"})
        self.known.doubtful.discard(number)
        if status == 200:
            self.known.states[number] = state
            self.acts[state] += 1
        elif status != 409:
            self.problems.append(f"{decision} {number}: {status} {told}")

    def _revert(self, server: Server) -> None:
        approved = [n for n, state in self.known.states.items() if state == "approved"]
        if not approved:
            return
        number = self._draw.choice(approved)
        _, told = server.call("GET", f"/v1/corrections/{number}")
        if told.get("state") in ("applied", "verified"):
            self._decided(server, number, "revert", "reverted")

    def _ask(self, server: Server) -> None:
        prompt = correction(self._draw.randint(1, max(1, self.known.count)))["prompt"]
        body = {"model": NAME, "prompt": prompt, "max_tokens": 6}
        status, told = server.call("POST", "/v1/completions", body)
        if status == 200:
            self.known.fingerprints.add(told["system_fingerprint"])
            self.acts["answered"] += 1
        else:
            self.problems.append(f"ask: {status} {told}")


# -- the look at a store


def look(store: Path, known: Known, is_end: bool, say: Say) -> None:
    """Say the faults of a store that a server left behind."""
    say(problems=list(_faults(store, known, is_end)))


def _faults(path: Path, known: Known, is_end: bool) -> Iterator[str]:
    from continual.review.queue import CorrectionQueue

    with Store.open(path, writable=True) as store:
        yield from (f"{p.object}: {p.problem}" for p in verify(store) if not p.harmless)
        queue = CorrectionQueue(store)
        states = {item.number: item.state for item in queue.items()}
        applied = Counter[str]()
        for revision in store.revisions():
            applied.update(o.id for o in outcomes_of(revision.body) if o.outcome == "applied")
        fingerprints = {revision.fingerprint for revision in store.revisions()}
        yield from _lost(known, states)
        for fingerprint in known.fingerprints - fingerprints:
            yield f"an answer was given at {fingerprint[:12]}, which is no revision"
        requests = Counter(item.request.id for item in queue.items() if item.request is not None)
        for counts, where in ((requests, "in the queue"), (applied, "applied")):
            for identity, count in counts.items():
                if count > 1:
                    yield f"request {identity[:12]} is {where} {count} times"
        if is_end:
            yield from _unsettled(states)


def _lost(known: Known, states: Mapping[int, str]) -> Iterator[str]:
    """Yield the acknowledged things that are not as they were acknowledged."""
    for number, told in known.states.items():
        state = states.get(number)
        if state is None:
            yield f"correction {number} is lost"
        elif number not in known.doubtful and not _follows(told, state):
            yield f"correction {number} was {told}, and is {state}"
    if len(states) > known.count:
        yield f"{len(states)} corrections of {known.count} proposals"


def _follows(told: str, state: str) -> bool:
    """Tell whether a correction that was told to be in a state may now be in another."""
    if told == "approved":
        return state in DECIDED
    return state == told


def _unsettled(states: Mapping[int, str]) -> Iterator[str]:
    for number, state in states.items():
        if state in ("approved", "applying"):
            yield f"correction {number} is {state} still"


# -- the runs


def at_random_moments(
    finding: Finding, control: Finding, kills: int, seconds: float | None = None, seed: int = 0
) -> None:
    """Kill servers so many times, or as often as there is time for. The control is a store put back
    to the time before its server acknowledged anything."""
    end = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=_fast()) as name:
        commands.warm_up()
        _import_server()
        processes.run(partial(make_template, Path(name) / "template"))
        run = KillRun(finding, control, Path(name), random.Random(seed), end)
        while run.kills < kills and not run.is_late:
            run.of_one_store(min(PER_STORE, kills - run.kills))
    told = ", ".join(f"{count} {act}" for act, count in run.acts.items())
    finding.note = (
        f"{run.kills} kills, {run.early} of them before it listened; acknowledged: {told}"
    )


def _fast() -> Path | None:
    return Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def _import_server() -> None:
    """Import before the fork all that a server needs."""
    import continual.serving.address
    import continual.session  # noqa: F401


@dataclass
class KillRun:
    """Kills of servers, store after store."""

    finding: Finding
    control: Finding
    folder: Path
    draw: random.Random
    end: float | None  # monotonic seconds
    kills: int = 0
    early: int = 0
    start_s: float = START_S
    acts: Counter[str] = field(default_factory=Counter)

    @property
    def is_late(self) -> bool:
        """True when its time is over."""
        return self.end is not None and time.monotonic() > self.end

    def of_one_store(self, kills: int) -> None:
        """Kill the servers of one store, one after another, and let a last one finish in peace."""
        template = self.folder / "template" / "store"
        store, known = copied(template, self.folder / "store"), Known()
        person = Person(known, self.draw)
        for _ in range(kills):
            if not self.is_late:
                self._kill(store, person)
        with running(store, self.folder, in_peace=True) as server:
            server.wait(store)
            _resolve(server, known)
            person.propose_again(server)
            _settle(server)
        verified = commands.run("verify", "--store", str(store))
        problems = [] if verified.code == 0 else [f"verify: {verified}"]
        self._count("the end", store, person, problems, is_end=True)
        found = processes.run(partial(look, copied(template, self.folder / "store"), known, False))
        if known.numbers:
            self.control.count("put back", processes.said_problems(found))
        self.acts.update(person.acts)

    def _kill(self, store: Path, person: Person) -> None:
        is_listening = False
        with running(store, self.folder) as server, suppress(ServerGone):
            if self.draw.random() < EARLY:
                server.kill_after(self.draw.uniform(0.0, self.start_s))
            begun = time.monotonic()
            server.wait(store)
            is_listening, self.start_s = True, time.monotonic() - begun
            server.kill_after(self.draw.uniform(0.0, LIFE_S))
            _resolve(server, person.known)
            person.propose_again(server)
            person.act_until_killed(server)
        self.kills, self.early = self.kills + 1, self.early + (not is_listening)
        self._count(f"kill {self.kills}", store, person, [], is_end=False)

    def _count(
        self, case: str, store: Path, person: Person, problems: list[str], *, is_end: bool
    ) -> None:
        found = processes.run(partial(look, store, person.known, is_end))
        self.finding.count(case, person.problems + processes.said_problems(found) + problems)
        person.problems = []


def _resolve(server: Server, known: Known) -> None:
    """Ask for the state of corrections whose last decision got no answer: it was made, or not."""
    for number in sorted(known.doubtful):
        _, told = server.call("GET", f"/v1/corrections/{number}")
        state = told["state"]
        known.states[number] = "approved" if state in DECIDED else state
        known.doubtful.discard(number)


def _settle(server: Server) -> None:
    """Wait until all that was approved is applied."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        _, told = server.call("GET", "/v1/corrections?limit=1")
        if not told["counts"]["approved"] + told["counts"]["applying"]:
            return
        time.sleep(0.05)


def find(is_short: bool) -> Iterator[Finding]:
    """Yield a finding for each row of the table."""
    killed = Finding("kill -9 of the server at random moments")
    control = Finding("a server's store from before it acknowledged anything", control=True)
    at_random_moments(killed, control, 8 if is_short else 200)
    yield killed
    yield control
