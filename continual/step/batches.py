"""Fills batches: the items of a stream in, the requests of one step out.

Knows items, and the tokens of their requests. Leaves the step itself to `pipeline`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from continual.errors import RequestError, StreamError
from continual.recheck.encoded_requests import EncodedRequest, encode
from continual.site import Site
from continual.step.settings import ApplySettings
from continual.streams import Item
from continual.streams.places import StreamPlace


@dataclass(frozen=True)
class Batch:
    """The input of one step: items of a stream, and the readable requests in them."""

    encoded_requests: tuple[EncodedRequest, ...]
    quarantined: tuple[Item, ...] = ()
    source: str | None = None  # the stream's name
    places: Mapping[str, StreamPlace] = field(
        default_factory=dict
    )  # to go on from, by stream's name
    unknown: Mapping[str, int] = field(default_factory=dict)  # records by unknown key

    @property
    def streams(self) -> dict[str, dict[str, Any]]:
        """The streams' states after this batch."""
        return {name: place.to_json() for name, place in self.places.items()}

    @property
    def unnamed(self) -> int:
        """The number of requests whose prompt does not name their subject."""
        requests = (encoded_request.request for encoded_request in self.encoded_requests)
        return sum(bool(r.subject) and not r.named_subject for r in requests)


REPEATS_MAX = 1000  # items of one step beyond its size: most of them stand already


class _Filling:
    """A batch that fills up with items."""

    def __init__(self, source: str, stands: Callable[[str], bool]) -> None:
        self._source, self._stands = source, stands
        self._candidates: list[EncodedRequest] = []
        self._bad: list[Item] = []
        self._places: dict[str, StreamPlace] = {}
        self._unknown: Counter[str] = Counter()
        self._items = 0
        self.new = 0  # requests that do not stand already

    def take(self, item: Item, encoded_requests: Iterable[EncodedRequest]) -> None:
        """Take in an item and its requests."""
        self._items += 1
        for encoded_request in encoded_requests:
            self._candidates.append(encoded_request)
            self.new += not self._stands(encoded_request.id)
        if item.reason is not None:
            self._bad.append(item)
        if item.stream is not None and not item.is_again:
            self._places[item.stream] = StreamPlace(item.position, item.rolling)
        self._unknown.update(item.unknown)

    def is_full(self, size: int) -> bool:
        """Tell whether the batch has as many new requests as a step takes, or too many items."""
        return self.new >= size or self._items >= size + REPEATS_MAX

    def batch(self) -> Batch | None:
        """Return the batch; None if no item came."""
        if not self._items:
            return None
        return Batch(
            tuple(self._candidates), tuple(self._bad), self._source, self._places, self._unknown
        )


def batches(
    items: Iterable[Item],
    source: str,
    site: Site,
    settings: ApplySettings,
    stands: Callable[[str], bool] = lambda _: False,
) -> Iterator[Batch]:
    """Yield batches of `batch_size` new requests (an item stays whole). A bad item, and a request
    that `stands` already, by its id, join the batch in which they come.

    Raises StreamError at the first bad item if the settings are strict.
    """
    filling = _Filling(source, stands)
    for item in items:
        item, encoded_requests = _encoded(item, site)
        if item.reason is not None and settings.strict:
            raise StreamError(f"{source}, record {item.number}: {item.reason}")
        filling.take(item, encoded_requests)
        if filling.is_full(settings.batch_size) and (batch := filling.batch()):
            yield batch
            filling = _Filling(source, stands)
    if (batch := filling.batch()) is not None:
        yield batch


def _encoded(item: Item, site: Site) -> tuple[Item, list[EncodedRequest]]:
    """Return the item, and its requests as tokens; one that breaks a limit makes it a bad item."""
    try:
        return item, [encode(request, site.task) for request in item.requests]
    except RequestError as error:
        return replace(item, requests=(), reason=error.reason), []
