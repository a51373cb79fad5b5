"""Real texts for a large memory: the records that it keeps, and the inputs that it is asked.

Records are the prompts of zsRE, CounterFact and ParaRel and the claims of FEVER. If a request has
several rephrases, all but the last are records too. Inputs are the last rephrases, which are no
records. Records are embedded as the trained scope embeds them, half prompt and half subject, inputs
as a whole. Batches have many texts, unlike an edit's: the vectors are equal up to float32's
rounding.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.scope_data import DATA
from continual.errors import RequestError
from continual.memory.encoder import SentenceEncoder
from continual.readers import pararel, read_record
from continual.requests import Request

FILES = (
    "zsre/zsre_mend_train_1k.json",
    "zsre/zsre_eval_portability.json",
    "zsre/knowedit_zsre.json",
    "counterfact/counterfact-train.json",
    "counterfact/counterfact-val.json",
)
FEVER = "fever/paper_dev.jsonl"
BATCH = 128
RECORDS_MAX, INPUTS_MAX = 40_000, 500  # of all, drawn by a seed: embedding takes minutes

SubjectedText = tuple[str, str | None]  # a text and its subject


def load(kept: Path, data: Path = DATA) -> tuple[Tensor, Tensor]:
    """Return the records [n, d] and the inputs [m, d], embedded once and kept in a file."""
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        records, inputs = texts(data)
        save_file(embedded(records, inputs), kept)
    found = load_file(kept)
    return found["records"], found["inputs"]


def texts(data: Path = DATA) -> tuple[list[SubjectedText], list[str]]:
    """Return the records and the inputs, each text once."""
    records: dict[str, str | None] = {}
    inputs: dict[str, None] = {}
    every = [*requests(data), *_claims(data / FEVER)]
    random.Random(0).shuffle(every)
    for request in every:
        if len(records) >= RECORDS_MAX:
            break
        *others, last = [*request.rephrases, *request.held_out_rephrases] or [None]
        records |= dict.fromkeys((request.prompt, *filter(None, others)), request.subject)
        if last is not None:
            inputs[last] = None
    return list(records.items()), [text for text in inputs if text not in records][:INPUTS_MAX]


def requests(data: Path) -> Iterator[Request]:
    """Yield the requests of all files."""
    for name in FILES:
        for record in json.loads((data / name).read_bytes()):
            try:
                yield from read_record(record)
            except RequestError:  # an edit without a target
                continue
    for relation in sorted((data / "pararel/graphs_json").glob("P*.jsonl")):
        patterns = [line["pattern"] for line in _lines(relation)]
        for fact in _lines(data / "pararel/trex_lms_vocab" / relation.name):
            try:
                yield pararel.join(fact, patterns, relation.stem)
            except RequestError:  # no pattern ends in the object
                break


def embedded(records: Sequence[SubjectedText], inputs: Sequence[str]) -> dict[str, Tensor]:
    """Embed the texts; return `records` and `inputs`, of unit length."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(SentenceEncoder().folder), device="cpu")

    def of(wanted: Iterable[str]) -> dict[str, Tensor]:
        each = list(dict.fromkeys(wanted))
        rows = model.encode(each, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
        return dict(zip(each, normalize(rows.float(), dim=1), strict=True))

    own = of(text for record in records for text in record if text is not None)
    kept = torch.stack([own[text] + own[subject or text] for text, subject in records])
    asked = of(inputs)
    return {
        "records": normalize(kept, dim=1),
        "inputs": torch.stack([asked[text] for text in inputs]),
    }


def _claims(path: Path) -> Iterator[Request]:
    return (Request(prompt=line["claim"], target_new=line["label"]) for line in _lines(path))


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
