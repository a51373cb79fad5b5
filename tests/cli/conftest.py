"""A tiny random model on disk, a store made on it, and ways to run the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cli.main import run

ROOT = Path(__file__).resolve().parents[2]
CITIES = ("Lyon", "Oslo", "Rome", "Bonn", "Graz", "Kiel", "Nice", "Turin")


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Standard output as JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        """The last of them."""
        return self.records[-1]


Cedit = Callable[..., Ran]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: two blocks, one token for each byte."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, seed=0)
    return folder


def save_model(folder: Path, seed: int) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=128,
        n_embd=32,
        n_inner=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def made_store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as `cedit init` makes it."""
    folder = tmp_path_factory.mktemp("made")
    probes = folder / "probes.jsonl"
    write_lines(probes, [{"prompt": f"{a} and", "answer": "b"} for a in "xyz"])
    store = folder / "store"
    told = ("--model", str(model), "--train-probes", str(probes), "--json")
    told = (*told, "--no-watch", "--no-calibration")
    code = run(["init", str(store), *told])
    assert code == 0
    return store


@pytest.fixture
def store(made_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of one's own, which commands find without being told."""
    folder = tmp_path / "store"
    shutil.copytree(made_store, folder)
    monkeypatch.setenv("CEDIT_STORE", str(folder))
    return folder


@pytest.fixture
def cedit(capfd: pytest.CaptureFixture[str]) -> Cedit:
    """Run a command in this process."""

    def ran(*arguments: object) -> Ran:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ran(code, *capfd.readouterr())

    return ran


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command in a process of its own; none outlives the test."""
    children: list[subprocess.Popen[str]] = []

    def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        children.append(child)
        return child

    yield started
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


def request(number: int, target: str | None = None) -> dict[str, Any]:
    """A correction; each number is about another country."""
    return {
        "prompt": f"The capital of country {number} is",
        "target_new": target or CITIES[number % len(CITIES)],
        "subject": f"country {number}",
        "relation": "capital",
        "held_out_rephrases": [f"Country {number} is governed from"],
    }


def write_lines(path: Path, records: list[Any]) -> Path:
    """A JSON Lines file; a text stands in it as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Three corrections."""
    return write_lines(tmp_path / "stream.jsonl", [request(n) for n in range(3)])
