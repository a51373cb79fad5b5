"""A served model under load while it is corrected: no answer mixes two states, and the times.

    python -m benchmarks.serving [--store DIR | --model DIR] [--stream FILE] [--answers 200]
        [--corrections 50] [--questions 60] [--rounds 3] [--tokens 12] [--editor E[,E2]]
        [--seed N] [--threads N] [--json OUT]

`cedit serve` runs in a process of its own. So many clients (`--answers`) ask it over HTTP, each
again as soon as it is answered, in a stream. A third of the questions are those that corrections
change, a third other wordings of them, a third are questions that no correction is about. First
they ask for some rounds without any edit; then while the corrections are approved all at once,
until each is applied or has failed; then for some rounds with all of them in the model.

Every chunk of a stream has to name one fingerprint. When the server has ended, each answer is
compared, to the letter, with the answer of the revision of that fingerprint: asked as `cedit ask`
does, one question after another, on a model that was put there anew. Exits with 1 if any differs,
was refused or broke off. `--store` is copied, and is the way to a calibrated store of a model of
one's own; without both it is the atlas. One model is in memory at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import tables
from benchmarks.tables import TextColumn
from continual.embedded import ATLAS
from continual.prompts import Chat, Prompt, prompt_json
from continual.requests import Request
from continual.serving.tokens import Tokens
from continual.session import Session, open_session
from continual.streams import open_stream
from store import Store

NAME = "served"
QUIET, EDITING, EDITED = "no edits", "while corrections are applied", "with all corrections"
FINAL = ("applied", "verified", "failed", "broken", "repaired", "superseded")
OPENED = "[server]\nrequests_per_minute = 0\nrequests_at_once = 0\nwaiting_max = {waiting}\n"
POLL_S = 0.25
COLUMNS = (
    TextColumn("phase", "phase"),
    TextColumn("answers", "answers", ",d"),
    TextColumn("s", "seconds", ",.1f"),
    TextColumn("answers a second", "per_second", ".1f"),
    TextColumn("p50, s", "p50", ".2f"),
    TextColumn("p99, s", "p99", ".2f"),
    TextColumn("longest, s", "longest", ".2f"),
    TextColumn("first piece p50, s", "first_p50", ".2f"),
    TextColumn("p99, s", "first_p99", ".2f"),
    TextColumn("states", "states", "d"),
    TextColumn("mixed", "mixed", "d"),
    TextColumn("refused", "refused", "d"),
)


@dataclass
class HeardAnswer:
    """An answer as a client heard it."""

    phase: str
    prompt: Prompt
    fingerprints: set[str] = field(default_factory=set)  # of its chunks
    text: str = ""
    seconds: float = 0.0
    first_s: float | None = None  # until its first piece
    fault: str | None = None
    is_as_alone: bool = False  # as the revision of its fingerprint answers when all is quiet

    @property
    def is_mixed(self) -> bool:
        """True for a whole answer that no single state gives."""
        return self.fault is None and not self.is_as_alone


@dataclass(frozen=True)
class Load:
    """The settings of the clients."""

    url: str
    prompts: Sequence[Prompt]
    clients: int
    tokens_max: int
    seed: int

    def body(self, prompt: Prompt) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of a question: greedy, as `cedit ask` is."""
        body: dict[str, Any] = {
            "model": NAME,
            "stream": True,
            "max_tokens": self.tokens_max,
            "temperature": 0,
            "repetition_penalty": 1.0,
        }
        if isinstance(prompt, Chat):
            return "/v1/chat/completions", {**body, "messages": prompt_json(prompt)}
        return "/v1/completions", {**body, "prompt": prompt}


# -- clients


async def asked(client: httpx.AsyncClient, load: Load, prompt: Prompt, phase: str) -> HeardAnswer:
    """Ask a question, and hear its answer to the end."""
    answer = HeardAnswer(phase, prompt)
    path, body = load.body(prompt)
    begun, is_whole = time.perf_counter(), False
    try:
        async with client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                answer.fault = f"{response.status_code}: {(await response.aread())[:200]!r}"
                return answer
            async for line in response.aiter_lines():
                is_whole = is_whole or line == "data: [DONE]"
                _take(answer, line, begun)
    except httpx.HTTPError as error:
        answer.fault = f"{type(error).__name__}: {error}"
    answer.seconds = time.perf_counter() - begun
    if not is_whole and answer.fault is None:
        answer.fault = "the stream broke off"
    return answer


def _take(answer: HeardAnswer, line: str, begun: float) -> None:
    """Take in a line of a stream."""
    if not line.startswith("data: {"):
        return
    chunk = json.loads(line[len("data: ") :])
    if "error" in chunk:
        answer.fault = chunk["error"]["message"]
        return
    answer.fingerprints.add(chunk["system_fingerprint"])
    for choice in chunk["choices"]:
        text = choice.get("text") or choice.get("delta", {}).get("content") or ""
        if text and answer.first_s is None:
            answer.first_s = time.perf_counter() - begun
        answer.text += text


async def clients(load: Load, phase: str, goes_on: Callable[[int], bool]) -> list[HeardAnswer]:
    """Let all clients ask, each again as soon as it is answered, as long as it is told to go on,
    given the number of its answers."""
    answers: list[HeardAnswer] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=load.url, timeout=None, limits=limits) as client:

        async def one(number: int) -> None:
            draw = random.Random(f"{load.seed} {phase} {number}")
            count = 0
            while goes_on(count):
                prompt = draw.choice(load.prompts)
                answers.append(await asked(client, load, prompt, phase))
                count += 1

        await asyncio.gather(*(one(number) for number in range(load.clients)))
    return answers


@dataclass
class Corrected:
    """The corrections of a run, by their states in the end."""

    states: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


async def while_corrected(
    load: Load, token: str, requests: Sequence[Request], editor: str | None
) -> tuple[list[HeardAnswer], Corrected]:
    """Let all clients ask while the corrections are approved and applied."""
    corrected, is_done = Corrected(), asyncio.Event()
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=load.url, timeout=None, headers=headers) as admin:
        records = [request.to_json() for request in requests]
        body = {"corrections": records, **({"editor": editor} if editor else {})}
        added = (await admin.post("/v1/corrections", json=body)).raise_for_status().json()["data"]
        numbers = [record["number"] for record in added if record["state"] == "pending"]

        async def correct() -> None:
            await asyncio.sleep(1.0)  # the clients are all under way
            begun = time.perf_counter()
            decision = {"numbers": numbers, "decision": "approve", "why": "benchmark"}
            (await admin.post("/v1/corrections/decide", json=decision)).raise_for_status()
            while sum(corrected.states.get(state, 0) for state in FINAL) < len(numbers):
                await asyncio.sleep(POLL_S)
                with suppress(httpx.TransportError):  # the next look tells
                    told = await admin.get("/v1/corrections?limit=1")
                    corrected.states = told.json()["counts"]
            corrected.seconds = time.perf_counter() - begun
            is_done.set()

        deciding = asyncio.create_task(correct())
        answers = await clients(load, EDITING, lambda _: not (is_done.is_set() or deciding.done()))
        await deciding
    return answers, corrected


# -- the server


@contextmanager
def served(store: Path, threads: int) -> Iterator[str]:
    """Run `cedit serve` in a process of its own; yield its address when it is ready."""
    command = [sys.executable, "-m", "cli.main", "serve", "--store", str(store)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    child = subprocess.Popen(
        [*command, "--port", "0", "--name", NAME, "--json"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise SystemExit(f"the server ended with {child.wait()}")
        url = str(json.loads(line)["url"])
        while httpx.get(f"{url}/ready", timeout=None).status_code != 200:
            time.sleep(POLL_S)
        yield url
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()


def prepared(options: argparse.Namespace, folder: Path) -> Path:
    """Return a store of the run's own, with room for all clients."""
    store = folder / "store"
    if options.store is not None:
        shutil.copytree(options.store, store)
    else:
        command = [sys.executable, "-m", "cli.main", "init", str(store), "--model", options.model]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (store / "cedit.toml").open("a", encoding="utf-8") as file:
        file.write("\n" + OPENED.format(waiting=2 * options.answers + 16))
    return store


def requests_of(options: argparse.Namespace) -> tuple[list[Request], list[Prompt]]:
    """Return the corrections, and the questions: prompts of some corrections, other wordings of
    them, and prompts of later records of the stream, which nobody corrects."""
    stream = open_stream(str(options.stream or ATLAS.corrections))
    requests = (request for item in stream for request in item.requests)
    chosen = list(islice(requests, options.corrections))
    others = list(islice(requests, options.corrections))
    wordings = [prompt for request in chosen for prompt in request.rephrases[:1]]
    kinds: list[list[Prompt]] = [[r.prompt for r in chosen], wordings, [r.prompt for r in others]]
    each = math.ceil(options.questions / len(kinds))
    return chosen, [prompt for prompts in kinds for prompt in _spread(prompts, each)]


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return so many prompts, at even distances among all."""
    step = max(1.0, len(prompts) / count)
    return [prompts[int(step * place)] for place in range(min(count, len(prompts)))]


# -- the comparison


def compare(store: Path, answers: Sequence[HeardAnswer], tokens_max: int) -> int:
    """Mark the answers that are as the revision of their fingerprint answers when all is quiet;
    return the number of pairs of revision and question that were asked."""
    with Store.open(store) as opened:
        revisions = {one.fingerprint: one.seq for one in reversed([*opened.revisions()])}
    pairs: dict[int, dict[str, list[HeardAnswer]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        if answer.fault is None and len(answer.fingerprints) == 1:
            (fingerprint,) = answer.fingerprints
            if fingerprint in revisions:
                pairs[revisions[fingerprint]][repr(answer.prompt)].append(answer)
    with open_session(store, writable=False, at="base") as session:
        for seq in sorted(pairs):
            _compare_at(session, seq, pairs[seq], tokens_max)
    return sum(len(asked_prompts) for asked_prompts in pairs.values())


def _compare_at(
    session: Session, seq: int, pairs: dict[str, list[HeardAnswer]], tokens_max: int
) -> None:
    session.stand_at(f"@{seq}")
    tables.note(f"  comparing {len(pairs)} questions at @{seq}")
    for same in pairs.values():
        alone = session.ask(same[0].prompt, tokens_max)
        for answer in same:
            answer.is_as_alone = answer.text.strip() == alone


def row_of(phase: str, answers: Sequence[HeardAnswer], seconds: float) -> dict[str, Any]:
    """Return the row of a phase."""
    whole = [answer for answer in answers if answer.fault is None]
    times = np.array([answer.seconds for answer in whole] or [np.nan])
    firsts = np.array([a.first_s for a in whole if a.first_s is not None] or [np.nan])
    return {
        "phase": phase,
        "answers": len(whole),
        "seconds": seconds,
        "per_second": len(whole) / seconds,
        "p50": float(np.percentile(times, 50)),
        "p99": float(np.percentile(times, 99)),
        "longest": float(times.max()),
        "first_p50": float(np.percentile(firsts, 50)),
        "first_p99": float(np.percentile(firsts, 99)),
        "states": len({name for answer in whole for name in answer.fingerprints}),
        "mixed": sum(answer.is_mixed for answer in whole),
        "refused": len(answers) - len(whole),
    }


async def run(
    load: Load, token: str, requests: Sequence[Request], options: argparse.Namespace
) -> tuple[dict[str, tuple[list[HeardAnswer], float]], Corrected]:
    """Go through the phases; return the answers and seconds of each, and the corrections."""
    phases: dict[str, tuple[list[HeardAnswer], float]] = {}

    def is_early(count: int) -> bool:
        return count < options.rounds

    begun = time.perf_counter()
    answers = await clients(load, QUIET, is_early)
    phases[QUIET] = (answers, time.perf_counter() - begun)
    tables.note(f"{QUIET}: {len(answers)} answers")
    begun = time.perf_counter()
    answers, corrected = await while_corrected(load, token, requests, options.editor)
    phases[EDITING] = (answers, time.perf_counter() - begun)
    tables.note(f"{EDITING}: {len(answers)} answers")
    begun = time.perf_counter()
    answers = await clients(load, EDITED, is_early)
    phases[EDITED] = (answers, time.perf_counter() - begun)
    return phases, corrected


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, help="a store, of which a copy is served")
    parser.add_argument("--model", default=ATLAS.name, help="a model directory (default: atlas)")
    parser.add_argument("--stream", type=Path, help="corrections (default: the atlas's)")
    parser.add_argument("--answers", type=int, default=200, help="under way at any time")
    parser.add_argument("--corrections", type=int, default=50)
    parser.add_argument("--questions", type=int, default=60, help="different ones, about")
    parser.add_argument("--rounds", type=int, default=3, help="answers of a client in quiet phases")
    parser.add_argument("--tokens", type=int, default=12, help="of an answer, at most")
    parser.add_argument("--editor", help="the chain of editors (default: the store's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the server's model")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    requests, prompts = requests_of(options)
    with tempfile.TemporaryDirectory() as folder:
        store = prepared(options, Path(folder))
        with served(store, options.threads) as url:
            load = Load(url, prompts, options.answers, options.tokens, options.seed)
            phases, corrected = asyncio.run(
                run(load, Tokens.of(store).tokens[0].token, requests, options)
            )
        every = [answer for answers, _ in phases.values() for answer in answers]
        compared = compare(store, every, options.tokens)
    rows = [row_of(phase, answers, seconds) for phase, (answers, seconds) in phases.items()]
    title = f"{options.answers} answers under way, {len(requests)} corrections"
    tables.show(title, COLUMNS, rows)
    states = {state: count for state, count in corrected.states.items() if count}
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    print(f"Corrections: {told}, in {corrected.seconds:.1f} s.")
    print(f"{compared:,} pairs of revision and question were asked again, alone.")
    for answer in [a for a in every if a.is_mixed or a.fault is not None][:10]:
        tables.note(f"{answer.phase}: {answer.prompt!s} → {answer.text!r} {answer.fault or ''}")
    _write(options, rows, corrected, states, compared)
    sys.exit(int(any(row["mixed"] or row["refused"] for row in rows)))


def _write(
    options: argparse.Namespace,
    rows: Sequence[dict[str, Any]],
    corrected: Corrected,
    states: dict[str, int],
    compared: int,
) -> None:
    record = {
        "settings": {name: str(value) for name, value in vars(options).items()},
        "phases": list(rows),
        "corrections": {"states": states, "seconds": corrected.seconds},
        "compared": compared,
    }
    tables.write_json(options.json, "serving", record)


if __name__ == "__main__":
    main()
