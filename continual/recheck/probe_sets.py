"""Probe files, read like streams: {"prompt", "answer"}, with "messages" instead of "prompt" for a
chat, and "label" instead of "answer" for a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from continual.errors import CeditError, RequestError, StreamError
from continual.pictures.album import album_of
from continual.pictures.records import PictureBorder
from continual.requests import Probe, explain
from continual.streams import open_stream
from continual.tasks import Task


def read_probes(path: Path, task: Task) -> list[Probe]:
    """Read all probes of a file, and check that each fits the task. Raises CeditError with the
    line."""
    try:
        objects = list(open_stream(str(path)).objects(_knows))
    except (StreamError, RequestError) as error:
        raise CeditError(f"The probe file {path} cannot be read: {error}.") from None
    return [_probe(path, number, record, task) for number, record in objects]


def _knows(record: Mapping[str, object]) -> bool:
    """Tell whether a table with these columns holds probes."""
    return bool({"prompt", "messages"} & record.keys() and {"answer", "label"} & record.keys())


def _probe(path: Path, number: int, record: Mapping[str, object], task: Task) -> Probe:
    try:
        album = album_of(task)
        shown = record if album is None else PictureBorder(album, path.parent).of(record)
        probe = Probe.model_validate(_answered(shown))
        task.encode(probe.prompt, probe.answer)
    except ValidationError as error:
        raise CeditError(f"{path}, line {number}: {explain(error)}") from None
    except (ValueError, RecursionError, RequestError) as error:
        raise CeditError(f"{path}, line {number}: {error}") from None
    return probe


def _answered(record: Mapping[str, object]) -> Mapping[str, object]:
    """Return the record with its label, if it has one and no answer, as the answer."""
    if "label" not in record or "answer" in record:
        return record
    return {**{k: v for k, v in record.items() if k != "label"}, "answer": record["label"]}
