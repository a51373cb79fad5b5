"""MMEdit's metrics, position by position, and its protocol of single edits."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.mmedit import controlled, locality, ranked, run, table, token_accuracy
from continual.new_store import NewStore, init
from continual.readers import read_record
from continual.requests import Request
from continual.session import Session
from tests import tiny_language as language
from tests.tiny_pictures import picture_file, save_seeing


def random_logits(seed: int, length: int, vocabulary: int = 30) -> torch.Tensor:
    return torch.randn(length, vocabulary, generator=torch.Generator().manual_seed(seed))


def best(row: list[float], ranks: int) -> list[int]:
    return sorted(range(len(row)), key=lambda token: -row[token])[:ranks]


def test_success_is_the_share_of_target_tokens_that_lead():
    logits = random_logits(1, 8)
    targets = logits.argmax(-1)
    targets[::3] = 0
    plain = [best(row, 1)[0] == t for row, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    assert token_accuracy(logits, targets) == torch.tensor(plain).float().mean()


def test_locality_compares_the_likeliest_ids_rank_by_rank_from_the_right():
    before, after = random_logits(2, 9), random_logits(2, 9)
    after[::2] += random_logits(3, 5)
    after = torch.cat([random_logits(4, 2), after])  # a context in front makes it longer
    for ranks in (1, 10):
        pairs = list(zip(before.tolist()[::-1], after.tolist()[::-1], strict=False))
        equal = [
            a == b for x, y in pairs for a, b in zip(best(x, ranks), best(y, ranks), strict=True)
        ]
        share = locality(ranked(before, ranks), ranked(after, ranks))
        assert len(equal) == 9 * ranks
        assert abs(share - sum(equal) / len(equal)) < 1e-6


def test_each_record_is_edited_alone_and_the_model_is_the_base_again(tmp_path: Path):
    model = save_seeing(tmp_path / "model")
    new = NewStore(str(model), task={"name": "multimodal"}, watch={"texts": 0, "neighbours": 0})
    with init(tmp_path / "store", new) as session:
        requests = requests_in(session, tmp_path)
        base = session.edited.fingerprint
        shares = run(session, requests, "tpatcher")
        assert session.edited.fingerprint == base
        assert shares["Rel"] == shares["Rel exact"] == 1.0
        names = {"T-Gen", "M-Gen", "T-Loc", "M-Loc", "other picture", "plain picture", "no picture"}
        assert all(0 <= shares[name] <= 1 for name in names)
        lines = list(table({"tpatcher": shares}))
        assert len(lines) == 2 and "100.00" in lines[1]


def test_along_a_stream_nothing_is_taken_back_and_controls_are_asked_at_its_end(tmp_path: Path):
    model = save_seeing(tmp_path / "model")
    new = NewStore(str(model), task={"name": "multimodal"}, watch={"texts": 0, "neighbours": 0})
    with init(tmp_path / "store", new) as session:
        requests = requests_in(session, tmp_path)
        base = session.edited.fingerprint
        found = controlled(session, requests, "tpatcher")
        assert [point["corrections"] for point in found["steps"]] == [1, 2]
        assert found["steps"][1]["SR"] == found["steps"][1]["ER"] == 1.0
        assert session.edited.fingerprint != base
        assert [session.ask(r.prompt, 1) for r in requests] == [r.target_new for r in requests]
        assert set(found["controls"]) == {"other picture", "plain picture", "no picture"}
        assert all(0 <= pair["same"] <= 1 for pair in found["controls"].values())


def requests_in(session: Session, folder: Path) -> list[Request]:
    """Two edits in MMEdit's keys, each with all of its probes."""
    border = session.picture_border(folder)
    assert border is not None
    requests = []
    for number in range(2):
        images = [picture_file(folder, 10 * number + n).name for n in range(3)]
        record = {
            "src": "the capital of Badar is",
            "rephrase": "people in Badar call their capital",
            "alt": language.CAPITALS[4 + number],
            "loc": "nq question: the king of Kelin lives in",
            "loc_ans": language.CAPITALS[1],
            "m_loc_q": "the capital of Lonek is",
            "m_loc_a": language.CAPITALS[2],
            **dict(zip(("image", "image_rephrase", "m_loc"), images, strict=True)),
        }
        requests += read_record(border.of(record))
    return requests
