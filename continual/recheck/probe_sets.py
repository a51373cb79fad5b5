"""Probe files: JSON Lines of {"prompt", "answer"}, with "messages" in the place of "prompt" for a
chat, and "label" in the place of "answer" for a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from continual.errors import CeditError, RequestError
from continual.requests import Probe, explain
from continual.tasks import Task


def read_probes(path: Path, task: Task) -> list[Probe]:
    """All probes of a file, each checked to fit the task. Raises CeditError with the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CeditError(f"The probe file {path} cannot be read: {error}.") from error
    return [_probe(path, n, line, task) for n, line in enumerate(lines, 1) if line.strip()]


def _probe(path: Path, number: int, line: str, task: Task) -> Probe:
    try:
        probe = Probe.model_validate(_answered(json.loads(line)))
        task.encode(probe.prompt, probe.answer)
    except ValidationError as error:
        raise CeditError(f"{path}, line {number}: {explain(error)}") from None
    except (ValueError, RecursionError, RequestError) as error:
        raise CeditError(f"{path}, line {number}: {error}") from None
    return probe


def _answered(record: Any) -> Any:
    """The record with its label, where that is what it has, as the answer."""
    if not isinstance(record, dict) or "label" not in record or "answer" in record:
        return record
    return {**{k: v for k, v in record.items() if k != "label"}, "answer": record["label"]}
