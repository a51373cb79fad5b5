"""Many records are found through an index, which follows the bank and is kept with the store."""

from __future__ import annotations

import torch

from continual.effects.records import EmbeddedRecords, MemoryBank, Reading, Record
from continual.history.inspection import status
from continual.memory import INDEX_FILE
from continual.memory.index import RecordIndex
from continual.memory.inputs import Queries
from continual.memory.routing import routes_of
from continual.patches.memory import MemoryPatch
from continual.session import open_session
from tests.tiny_language import CAPITALS, ask
from tests.tiny_memories import WordScope, about


class Given(WordScope):
    """The texts are numbers of rows in a table of vectors."""

    candidates = 3
    threshold = 0.5

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(0.5)
        self.table = table

    def queries(self, texts):
        rows = self.table[[int(text) for text in texts]]
        return Queries(tuple(texts), torch.stack([rows, rows.flip(0)], 1))


def table(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=-1)


def patch(numbers: range, vectors: torch.Tensor, removed: tuple[int, ...] = ()) -> MemoryPatch:
    records = tuple(Record(f"{i:032x}"[::-1], f"prompt {i}", "x") for i in numbers)
    kept = EmbeddedRecords(records, vectors[list(numbers)])
    gone = tuple(f"{i:032x}"[::-1] for i in removed)
    return MemoryPatch(kept, (Reading("serac", ""),) * len(records), "words", gone)


def test_an_index_finds_what_looking_at_each_finds_as_the_bank_goes_on_and_back():
    vectors = table(60)
    bank, scope = MemoryBank(), Given(vectors)
    index = RecordIndex(bank, records_min=20)
    texts = [str(i) for i in range(60)]
    found = []
    for change in (
        lambda: bank.extend(patch(range(10), vectors)),
        lambda: bank.extend(patch(range(10, 40), vectors, (3, 4))),
        lambda: bank.extend(patch(range(40, 60), vectors, (11,))),
        lambda: bank.extend(patch(range(3, 5), vectors)),
        lambda: bank.truncate(2),
        lambda: bank.extend(patch(range(50, 53), vectors.flip(1), (20,))),
    ):
        change()
        routes = routes_of(texts, bank, scope, index)
        assert routes == routes_of(texts, bank, scope)
        found.append([route and route.place for route in routes])
    assert found[4] == found[1]  # gone back to
    assert len({tuple(one) for one in found}) == 5


def test_of_records_that_are_equally_near_the_latest_wins_whichever_the_index_names():
    """There are more of them than the index is asked for; two of the latest are gone."""
    vectors = table(60)
    vectors[10:50] = vectors[5]
    bank, scope = MemoryBank(), Given(vectors)
    bank.extend(patch(range(50), vectors))
    bank.extend(patch(range(50, 60), vectors, (48, 49)))
    texts = [str(i) for i in range(60)]
    found = routes_of(texts, bank, scope, RecordIndex(bank, records_min=20))
    for number in (5, 10, 30, 49):
        assert found[number] is not None and found[number].place == 47
    assert found == routes_of(texts, bank, scope)


def test_records_that_are_nearly_as_near_are_told_apart_as_without_an_index():
    vectors = table(60)
    vectors[10:50] = vectors[5] + 1e-6 * vectors[10:50]
    vectors[30:40] = vectors[5]
    bank, scope = MemoryBank(), Given(torch.nn.functional.normalize(vectors, dim=-1))
    bank.extend(patch(range(50), scope.table))
    bank.extend(patch(range(50, 60), scope.table, (37, 39)))
    texts = [str(i) for i in range(60)]
    found = routes_of(texts, bank, scope, RecordIndex(bank, records_min=20))
    assert found == routes_of(texts, bank, scope)
    near = [route.place for route in (found[5], found[35]) if route is not None]
    assert len(near) == 2 and set(near) <= {5, *range(10, 50)} - {37, 39}


def test_where_the_index_is_certain_no_record_is_looked_at_besides(monkeypatch):
    vectors = table(400)
    bank, scope = MemoryBank(), Given(vectors)
    bank.extend(patch(range(400), vectors))
    wanted = routes_of(["3", "70"], bank, scope)
    monkeypatch.setattr("continual.memory.routing.RoutedInputs._look", None)
    assert routes_of(["3", "70"], bank, scope, RecordIndex(bank, records_min=20)) == wanted


def test_what_is_asked_is_routed_as_what_is_judged(reader):
    recall = reader.edited.recall
    recall._index.records_min = 6
    for first in (0, 12, 24):
        reader.apply([about(c) for c in range(first, first + 12)], editor="serac", force=True)
        ledger = reader.run_state.ledger
        entries = [entry for entry in ledger.entries if entry.key in ledger.outcomes()]
        texts = [recall.text(entry.encoding.question.ids) for entry in entries]
        judged = [ledger.route(entry) for entry in entries]
        assert recall.routes(texts) == judged
        assert len({route.record.id for route in judged if route is not None}) >= 6
    assert recall._index.is_used


def test_a_store_keeps_its_index_and_heals_one_that_does_not_fit(reader):
    reader.edited.recall._index.records_min = 2
    reader.apply([about(c, CAPITALS[c - 20]) for c in range(20, 25)], editor="serac")
    assert reader.answer(ask(21)).route is not None
    path = reader.store.path
    reader.close()
    kept = path / "cache" / INDEX_FILE
    assert kept.is_file()

    def asked(writable: bool = False) -> tuple[bool, str]:
        with open_session(path, writable=writable) as session:
            recall = session.edited.recall
            recall._index.records_min = 2
            recall._index.load(session.store, "words")
            was_kept = recall._index._index is not None
            return was_kept, session.answer(ask(21, 1), tokens_max=1).text

    assert asked() == (True, CAPITALS[1])
    kept.write_bytes(kept.read_bytes()[:-7])
    assert asked() == (False, CAPITALS[1])
    assert asked(writable=True) == (False, CAPITALS[1])  # and makes it anew
    assert asked() == (True, CAPITALS[1])
    with open_session(path) as session:
        assert status(session.store)["index"] == {"vectors": 5, "recall": None}
        session.rollback("head~1")
        assert status(session.store)["index"] is None  # it stands for where head was
    assert asked() == (False, CAPITALS[1])
