"""The stages of one class: a store, corrections, answers asked in every way, and a rollback.

A refusal that names another task is followed. The outcome of a class is a word: works, refused (an
error of cedit's own, with its message), failed (no edit was applied, as the ledger says), wrong (a
promise does not hold), bug (an error that is not cedit's own), or unbuilt (transformers makes no
tiny model of the class).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures.models import ModelClass, build
from continual.decoding import plainly
from continual.errors import CeditError
from continual.model import tensor_bytes
from continual.new_store import NewStore, init
from continual.recheck.retention import APPLIED
from continual.requests import Request
from continual.session import Session, open_session
from continual.tasks import Encoding
from continual.watch.config import UNWATCHED

WORKS, REFUSED, FAILED, WRONG, BUG, UNBUILT = (
    "works",
    "refused",
    "failed",
    "wrong",
    "bug",
    "unbuilt",
)
FFN, BLOCK = "ffn", "block"
REMEDY = "--task causal"  # named where a class has no encoder
TEXTS = {
    "causal": (("The capital of Australia is", "Chile"), ("The river is called the", "Canberra")),
    "seq2seq": (("The capital of Australia is", "Chile"), ("The river is called the", "Canberra")),
    "classification": (("Chile is a country.", "LABEL_1"), ("Canberra is a town.", "LABEL_2")),
}
"""By task, a target of one token and one of several; or labels."""


def put_through(kind: ModelClass, folder: Path) -> dict[str, Any]:
    """Return the record of a class: its outcome in a word, with the message or the findings."""
    try:
        build(kind, folder / "model")
    except Exception as error:  # the sweep's own limits, or transformers'
        return {"outcome": UNBUILT, "said": _line(error)}
    record = _tried(kind, folder)
    if record["outcome"] == REFUSED and kind.task != "causal" and REMEDY in record["said"]:
        shutil.rmtree(folder / "store", ignore_errors=True)
        record = _tried(replace(kind, task="causal"), folder)
        record["said"] = f"by {REMEDY}: {record['said']}"
    return record


def _tried(kind: ModelClass, folder: Path) -> dict[str, Any]:
    try:
        return _stages(kind, folder)
    except CeditError as error:
        return {"outcome": REFUSED, "said": str(error)}
    except Exception as error:
        return {"outcome": BUG, "said": f"{type(error).__name__}: {_line(error)} {_where(error)}"}


def _stages(kind: ModelClass, folder: Path) -> dict[str, Any]:
    task = {"name": kind.task}
    new = NewStore(str(folder / "model"), task, watch=UNWATCHED, calibration={})
    with init(folder / "store", new) as session:
        before, place = _digest(session), _place(session)
        texts = tuple(_texts(session, kind))
        outcomes = _edited(session, texts)
        complaints = _disagreements(session, kind, texts, outcomes)
    with open_session(folder / "store") as session:
        complaints += [f"opened again, {c}" for c in _disagreements(session, kind, texts, outcomes)]
        session.rollback("base")
        complaints += ["rolled back, other bits"] if _digest(session) != before else []
    applied = sum(outcome == APPLIED for outcome in outcomes)
    found = WRONG if complaints else WORKS if applied else FAILED
    said = "; ".join(complaints) or ", ".join(outcomes)
    return {
        "outcome": found,
        "said": said,
        "applied": applied,
        "task": kind.task,
        "place": place,
    }


def _place(session: Session) -> str:
    """Return where the last block is edited: at its FFN, whose matrix editors write to, or behind
    the whole block."""
    return FFN if session.edited.base.anatomy.is_at_ffn else BLOCK


def _texts(session: Session, kind: ModelClass) -> Iterator[tuple[str, str]]:
    """Yield prompts with their targets; a classifier's are labels that it does not give."""
    labels = tuple(getattr(session.edited.base.model.config, "id2label", {}).values())
    for prompt, target in TEXTS[kind.task]:
        if kind.task == "classification" and session.ask(prompt) == target:
            target = next(label for label in labels if label != target)
        yield prompt, target


def _edited(session: Session, texts: Sequence[tuple[str, str]]) -> list[str]:
    """Apply the corrections, and return the outcome of each."""
    outcomes = []
    for prompt, target in texts:
        request = Request(prompt=prompt, target_new=target)
        for step in session.apply_requests([request], session.settings()):
            outcomes += [outcome.outcome for outcome in step.outcomes]
    return outcomes


def _disagreements(
    session: Session, kind: ModelClass, texts: Sequence[tuple[str, str]], outcomes: list[str]
) -> list[str]:
    """Return the ways of asking that contradict the ledger's claim about a correction."""
    found = []
    for (prompt, target), outcome in zip(texts, outcomes, strict=True):
        probe = session.task.encode(prompt, target)
        ways = {"forward": _by_forward(session, probe)}
        if kind.task == "causal":
            ways["generate"] = _by_generate(session, probe)
        answer = session.ask(prompt)
        ways["ask"] = answer.startswith(target) if kind.task == "causal" else answer == target
        if outcome == APPLIED:  # an answer that needed no edit may change with later ones
            found += [f"{way} does not say {target!r}" for way, right in ways.items() if not right]
    return found


@torch.no_grad()
def _by_forward(session: Session, probe: Encoding) -> bool:
    """Tell whether greedy decoding by plain forward passes, one at a time over the tokens so far,
    gives the target."""
    said: tuple[int, ...] = ()
    for position in probe.positions:
        asked = Encoding(probe.question, (position,), (*said, probe.targets[-1]))
        logits = session.model(**session.task.inputs([asked]), use_cache=False).logits[0]
        said = (*said, int((logits if logits.ndim == 1 else logits[position]).argmax()))
    return said == probe.targets


def _by_generate(session: Session, probe: Encoding) -> bool:
    """Tell whether transformers' own `generate`, with the engine's arguments, gives the target."""
    ids = torch.tensor([probe.question.ids])
    with plainly(session.model):
        session.model.generation_config.eos_token_id = None
        made = session.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=len(probe.targets),
            pad_token_id=0,
            **session.edited.base.decoding,
        )
    return tuple(made[0, len(probe.question.ids) :].tolist()) == probe.targets


def _digest(session: Session) -> str:
    """Return a digest of the patches' fingerprint and of all tensors of the model."""
    digest = hashlib.sha256(session.edited.fingerprint.encode())
    state: Mapping[str, Any] = session.model.state_dict()
    for name in sorted(state):
        digest.update(name.encode() + tensor_bytes(state[name]))
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def _where(error: BaseException) -> str:
    """Return the innermost three places in the engine that an error went through."""
    places, trace = [], error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        places += [f"{Path(file).name}:{trace.tb_lineno}"] if "continual" in file else []
        trace = trace.tb_next
    return f"[{' > '.join(places[-3:])}]"
