"""The two files that say what a saved model is: `README.md`, a model card, and `cedit.json`.

Knows records and Markdown; leaves the model's own files to the forms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from continual.saving.job import KINDS

ROWS_MAX = 200  # corrections in the card; `cedit.json` has all
CELL_MAX = 160  # characters
METRICS = ("SR", "GR", "ER", "TrainR", "TestR", "Locality", "Watch", "Neighbours", "Continuation")
PIPELINES = {
    "causal": "text-generation",
    "seq2seq": "text2text-generation",
    "classification": "text-classification",
}
LOADED_BY = {
    "transformers": "transformers.AutoModel….from_pretrained(DIR)",
    "peft": "peft.PeftModel.from_pretrained(BASE, DIR)",
}


def manifest_text(record: Mapping[str, Any]) -> str:
    """Return the text of `cedit.json`."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def card_text(record: Mapping[str, Any]) -> str:
    """Return the model card of a saved model's record."""
    return "\n".join([*_front_matter(record), *_body(record)]) + "\n"


def _front_matter(record: Mapping[str, Any]) -> Iterator[str]:
    yield "---"
    yield f"base_model: {json.dumps(record['base']['name'], ensure_ascii=False)}"
    yield f"base_model_relation: {record['relation']}"
    yield f"library_name: {record['form']}"
    if (pipeline := PIPELINES.get(record["task"])) is not None:
        yield f"pipeline_tag: {pipeline}"
    yield "tags:"
    yield from ("- cedit", "- model-editing", "---", "")


def _body(record: Mapping[str, Any]) -> Iterator[str]:
    base, corrections = record["base"], record["corrections"]
    yield f"# {base['name']}, corrected"
    yield ""
    yield (
        f"Corrections on {base['name']}: {len(corrections)}, by cedit {record['cedit']}. "
        f"`{LOADED_BY[record['form']]}` loads it; cedit is not needed."
    )
    yield ""
    yield from _table(("", ""), _facts(record))
    yield from _left_out(record)
    yield from _metrics(record)
    yield from _corrections(corrections)


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "revision", f"`{record['revision']}` (@{record['seq']})"
    yield "fingerprint", f"`{record['fingerprint']}`"
    yield "fingerprint of the base", f"`{record['base']['fingerprint']}`"
    yield "number format", record["dtype"]
    yield "architecture", record["architecture"]
    if widening := record.get("widening"):
        yield (
            "FFN",
            f"{widening['before']} → {widening['width']} units, for {widening['neurons']} neurons",
        )
    if rank := record.get("rank"):
        yield "rank", str(rank)


def _left_out(record: Mapping[str, Any]) -> Iterator[str]:
    if not record["left_out"] and not record["lost"]:
        return
    yield from ("## Not in this model", "")
    for kind, entry in record["left_out"].items():
        yield f"- {entry['pieces']} {KINDS[kind]}: {entry['reason']}."
    if lost := record["lost"]:
        yield f"- Corrections that cedit's own model answers rightly: {len(lost)}; see the table."
    yield ""


def _metrics(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Measured", "")
    measured = {name: record["metrics"].get(name) for name in METRICS}
    rates = [f"{name} {value:.3f}" for name, value in measured.items() if value is not None]
    if rates:
        yield f"By cedit, at this revision: {', '.join(rates)}."
        yield ""
    yield f"Every probe was asked again of this model, loaded by {record['form']} alone:"
    yield ""
    names = ("probes", "right in cedit", "right here", "turned")
    rows = [(role, *map(str, counts.values())) for role, counts in record["probes"].items()]
    yield from _table(("", *names), rows)


def _corrections(corrections: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("## Corrections", "")
    rows = [
        (c["prompt"], c["target_new"], "yes" if c["right"] else "no")
        for c in corrections[:ROWS_MAX]
    ]
    yield from _table(("prompt", "answer", "right here"), rows)
    if len(corrections) > ROWS_MAX:
        yield f"And {len(corrections) - ROWS_MAX} more, in `cedit.json`."


def _table(names: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"
    yield ""


def _cell(text: str) -> str:
    """Return a text on one line of a Markdown table, cut at CELL_MAX characters."""
    line = " ".join(text.split())
    line = line if len(line) <= CELL_MAX else line[: CELL_MAX - 1] + "…"
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
