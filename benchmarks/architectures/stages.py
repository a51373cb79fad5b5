"""What one class is put through: a store, corrections, answers asked in every way, and back.

Each stage's outcome is a word: ok, refused (an error of cedit's own, with its message), failed (an
edit that was refused honestly), wrong (something that was promised is not so) or bug (anything that
is no error of cedit's own).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures.models import Kind, build
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
TEXTS = {
    "causal": (("The capital of Australia is", "Chile"), ("The river is called the", "Canberra")),
    "seq2seq": (("The capital of Australia is", "Chile"), ("The river is called the", "Canberra")),
    "classification": (("Chile is a country.", "LABEL_1"), ("Canberra is a town.", "LABEL_2")),
}
"""By task, a target of one token and one of several; or labels."""


def put_through(kind: Kind, folder: Path) -> dict[str, Any]:
    """The record of a class: its outcome in a word, and what was said or found."""
    try:
        build(kind, folder / "model")
    except Exception as error:  # the sweep's own limits, or transformers'
        return {"outcome": UNBUILT, "said": _line(error)}
    try:
        return _stages(kind, folder)
    except CeditError as error:
        return {"outcome": REFUSED, "said": str(error)}
    except Exception as error:
        return {"outcome": BUG, "said": f"{type(error).__name__}: {_line(error)} {_where(error)}"}


def _stages(kind: Kind, folder: Path) -> dict[str, Any]:
    new = NewStore(str(folder / "model"), {"name": kind.task}, watch=UNWATCHED)
    with init(folder / "store", new) as session:
        before = _digest(session)
        outcomes = _edited(session, kind)
        complaints = _disagreements(session, kind, outcomes)
    with open_session(folder / "store") as session:
        complaints += [f"opened again, {c}" for c in _disagreements(session, kind, outcomes)]
        session.rollback("base")
        complaints += ["rolled back, other bits"] if _digest(session) != before else []
    applied = sum(outcome == APPLIED for outcome in outcomes)
    found = WRONG if complaints else WORKS if applied else FAILED
    said = "; ".join(complaints) or ", ".join(outcomes)
    return {"outcome": found, "said": said, "applied": applied}


def _edited(session: Session, kind: Kind) -> list[str]:
    """The outcome of each correction."""
    outcomes = []
    for prompt, target in TEXTS[kind.task]:
        request = Request(prompt=prompt, target_new=target)
        for step in session.apply_requests([request], session.settings()):
            outcomes += [outcome.outcome for outcome in step.outcomes]
    return outcomes


def _disagreements(session: Session, kind: Kind, outcomes: list[str]) -> list[str]:
    """The ways of asking that contradict the ledger's claim about a correction."""
    found = []
    for (prompt, target), outcome in zip(TEXTS[kind.task], outcomes, strict=True):
        probe = session.task.encode(prompt, target)
        ways = {"forward": _by_forward(session, probe)}
        if kind.task == "causal":
            ways["generate"] = _by_generate(session, probe)
        answer = session.ask(prompt)
        ways["ask"] = answer.startswith(target) if kind.task == "causal" else answer == target
        if outcome == APPLIED:  # of one that needed no edit nothing is claimed after later ones
            found += [f"{way} does not say {target!r}" for way, right in ways.items() if not right]
    return found


@torch.no_grad()
def _by_forward(session: Session, probe: Encoding) -> bool:
    """Greedy decoding by plain forward passes over the tokens so far, in no batch."""
    said: tuple[int, ...] = ()
    for position in probe.positions:
        asked = Encoding(probe.question, (position,), (*said, probe.targets[-1]))
        logits = session.model(**session.task.inputs([asked]), use_cache=False).logits[0]
        said = (*said, int((logits if logits.ndim == 1 else logits[position]).argmax()))
    return said == probe.targets


def _by_generate(session: Session, probe: Encoding) -> bool:
    """Transformers' own `generate`, as the engine tells it."""
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
    """Of all tensors of the model, and of its logits."""
    digest = hashlib.sha256(session.edited.fingerprint.encode())
    state: Mapping[str, Any] = session.model.state_dict()
    for name in sorted(state):
        digest.update(name.encode() + tensor_bytes(state[name]))
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def _where(error: BaseException) -> str:
    """The innermost place in the engine that an error went through."""
    places, trace = [], error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        places += [f"{Path(file).name}:{trace.tb_lineno}"] if "continual" in file else []
        trace = trace.tb_next
    return f"[{' > '.join(places[-3:])}]"
