"""Probe files, read as streams are: {"prompt", "answer"}, with "messages" in the place of "prompt"
for a chat, and "label" in the place of "answer" for a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from continual.errors import CeditError, RequestError, StreamError
from continual.requests import Probe, explain
from continual.streams import open_stream
from continual.tasks import Task


def read_probes(path: Path, task: Task) -> list[Probe]:
    """All probes of a file, each checked to fit the task. Raises CeditError with the line."""
    try:
        objects = list(open_stream(str(path)).objects(_knows))
    except (StreamError, RequestError) as error:
        raise CeditError(f"The probe file {path} cannot be read: {error}.") from None
    return [_probe(path, number, record, task) for number, record in objects]


def _knows(record: Mapping[str, object]) -> bool:
    """Whether a table with these columns is one of probes."""
    return bool({"prompt", "messages"} & record.keys() and {"answer", "label"} & record.keys())


def _probe(path: Path, number: int, record: Mapping[str, object], task: Task) -> Probe:
    try:
        probe = Probe.model_validate(_answered(record))
        task.encode(probe.prompt, probe.answer)
    except ValidationError as error:
        raise CeditError(f"{path}, line {number}: {explain(error)}") from None
    except (ValueError, RecursionError, RequestError) as error:
        raise CeditError(f"{path}, line {number}: {error}") from None
    return probe


def _answered(record: Mapping[str, object]) -> Mapping[str, object]:
    """The record with its label, where that is what it has, as the answer."""
    if "label" not in record or "answer" in record:
        return record
    return {**{k: v for k, v in record.items() if k != "label"}, "answer": record["label"]}
