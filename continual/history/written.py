"""The corrections in force as records that `apply` reads: JSON Lines, or a table.

Each record is read back as it is written: it has to be the same request. Knows records alone: no
model, no tensors.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from continual.errors import CeditError, RequestError
from continual.history.inspection import retained_at
from continual.readers import read_record
from continual.requests import Limits, Request
from continual.streams.records import DelimitedTable
from store import Revision, Store

Record = dict[str, Any]
COLUMNS = ("prompt", "messages", "target_new", "subject", "relation", "target_old", "forms")
"""The columns of a table that come first; the first and the third are always there."""


def requests_in_force(store: Store, revision: Revision) -> list[Request]:
    """Return the applied corrections at a revision, in the order of their edits."""
    return [r.request for r in retained_at(store, revision).requests.values() if r.applied]


def json_lines(requests: Sequence[Request]) -> Iterator[str]:
    """Yield a line of JSON for each request. Raises CeditError for one that no record spells."""
    for request in requests:
        yield json.dumps(_record(request), ensure_ascii=False) + "\n"


def csv_text(requests: Sequence[Request]) -> Iterator[str]:
    """Yield the lines of a table with a row for each request. Raises CeditError for one that no row
    spells."""
    records = [{key: _cell(value) for key, value in _record(r).items()} for r in requests]
    others = dict.fromkeys(key for record in records for key in record)
    used = [name for name in COLUMNS if name in others or name in ("prompt", "target_new")]
    columns = [*used, *(name for name in others if name not in used)]
    header, rows = _row(columns), [_row([r.get(c, "") for c in columns]) for r in records]
    for request, row in zip(requests, rows, strict=True):
        if _read_row(header + row) != request.id:
            raise _unspeakable(request, "--jsonl may have one")
    yield from (header, *rows)


def _record(request: Request) -> Record:
    """Return a record that is read as this request: with the source's own fields if they do not
    make it another format's."""
    content, case = request.content(), request.beside().get("case")
    named = {**content, **({} if case is None else {"case": case})}
    for record in ({**request.extra, **named}, named, {**named, "forms": []}):
        if _is_read_as(request, record):
            return dict(record)
    raise _unspeakable(request, "its prompt reads as a template of another format")


def _is_read_as(request: Request, record: Mapping[str, object]) -> bool:
    try:
        return [r.id for r in read_record(record)] == [request.id]
    except RequestError:
        return False


def _unspeakable(request: Request, remark: str) -> CeditError:
    return CeditError(
        f"The correction {request.id} ({str(request.prompt)!r}) has no record here that `apply` "
        f"would read as the same request ({remark}); `cedit export FILE` keeps it as it is."
    )


def _cell(value: object) -> str:
    """Return a value as a cell: texts to the letter, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _row(cells: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _read_row(text: str) -> str | None:
    """Return the id of the one request in a table; None if a stream would not read it so."""
    table = DelimitedTable(_Text(text.encode("utf-8")), Limits().line_bytes_max, ",")
    record = table.next(patient=False)
    if record is None or record.reason is not None or table.next(patient=False) is not None:
        return None
    try:
        requests = read_record(table.parsed(record.raw))
    except RequestError:
        return None
    return requests[0].id if len(requests) == 1 else None


class _Text:
    """A source of lines in memory; see `streams.records.Chunks`."""

    name = "the table"

    def __init__(self, content: bytes) -> None:
        self._lines = io.BytesIO(content)

    def chunk(self, *, patient: bool) -> bytes:
        """Return the next line."""
        return self._lines.readline()
