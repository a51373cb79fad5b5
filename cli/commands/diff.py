"""`cedit diff`: shows the requests, patches and turned probes between two revisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cli.options import common, find_store, revision_names
from cli.output import ID_DIGITS, WATCHED, Output, one_line, rates, short, size

_PLACE = {"from": "A", "to": "B"}


@click.command("diff")
@click.argument("a", shell_complete=revision_names)
@click.argument("b", shell_complete=revision_names, default="head")
@click.option(
    "--ask", "prompts", multiple=True, metavar="PROMPT", help="Ask both models. May be repeated."
)
@common
def command(out: Output, store: str | None, a: str, b: str, prompts: tuple[str, ...]) -> None:
    """Show the changes between two revisions.

    Lists the requests and patches that B (head unless named) adds or lacks, and the probes that
    turned. With --ask also the model's answers at both.

    With --json: {"type":"diff","from","to","added","gone","patches","patch_bytes_added",
    "patch_bytes_gone","turned","rates","answers"}.

    \b
    Example:
      cedit diff head~10 head
      cedit diff base head --ask "The capital of Australia is"
    """
    from continual.history.inspection import difference
    from store import Store

    path = find_store(store)
    with Store.open(path) as opened:
        older, newer = opened.revision(a), opened.revision(b)
        record = difference(opened, older, newer)
    record["answers"] = _answers(path, (older.id, newer.id), prompts) if prompts else []
    out.result(record, *_text(record))


def _answers(path: Path, ids: tuple[str, str], prompts: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the model's answer to each prompt at both revisions."""
    from continual.session import open_session

    answers = []
    with open_session(path, writable=False, at=ids[0]) as session:
        older_answers = [session.ask(prompt) for prompt in prompts]
        session.stand_at(ids[1])
        for prompt, answer in zip(prompts, older_answers, strict=True):
            answers.append({"prompt": prompt, "from": answer, "to": session.ask(prompt)})
    return answers


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    for place, letter in _PLACE.items():
        metrics = rates(record["rates"][place], "SR", "GR", "ER", "TrainR", "TestR")
        yield f"{letter} {short(record[place])}  {metrics}"
        yield f"  {' ' * ID_DIGITS}  {rates(record['rates'][place], *WATCHED)}"
    yield f"patches +{size(record['patch_bytes_added'])} -{size(record['patch_bytes_gone'])}"
    for patch in record["patches"]:
        sign = "+" if patch["change"] == "added" else "-"
        place = f"@{patch['seq']} {short(patch['revision'])}"
        yield f"{sign} patch of {place}, {size(patch['bytes'])}"
    for sign, name in (("+", "added"), ("-", "gone")):
        for request in record[name]:
            note = "  (failed)" if request["outcome"] == "failed" else ""
            yield one_line(f"{sign} {request['prompt']} → {request['target_new']}{note}")
    for probe in record["turned"]:
        verb = "recovered" if probe["right"]["to"] else "broke"
        yield one_line(f"! {verb} ({probe['role']})  {probe['prompt']} → {probe['answer']}")
    for answer in record["answers"]:
        yield one_line(f"? {answer['prompt']} → {answer['from']} | {answer['to']}")
