"""`cedit fix`: makes one correction, without a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from cli.options import EditorChain, common, find_store, require_writable
from cli.output import WATCHED, Output, one_line, rates, short

if TYPE_CHECKING:
    from continual.step.pipeline import Step

PARTLY_DONE = 3


@click.command("fix")
@click.argument("prompt")
@click.argument("answer")
@click.option("--subject", help="The part of PROMPT that the correction is about.")
@click.option("--relation", help="The relation that it states, such as capital.")
@click.option("--rephrase", "rephrases", multiple=True, help="Another way to ask (repeatable).")
@click.option(
    "--picture",
    "images",
    metavar="FILE",
    multiple=True,
    help="A picture that PROMPT shows (repeatable), where it says <image>, or in front.",
)
@click.option(
    "--editor",
    type=EditorChain(),
    metavar="E[,E2]",
    help="The editors to try, in turn (default: as `cedit apply`).",
)
@click.option("--force", is_flag=True, help="Edit even if the model answers rightly.")
@common
def command(
    out: Output,
    store: str | None,
    prompt: str,
    answer: str,
    editor: str | None,
    force: bool,
    images: tuple[str, ...],
    **told: Any,
) -> int:
    """Correct the answer to one prompt.

    A subject keeps the correction to texts that name it, and lets it answer other wordings. Exit
    code 3 means that the correction failed; `cedit show` has the reasons.

    With --json: {"type":"fix","id","prompt","target_new","before","after","outcome","reason","seq",
    "revision"} and the metrics.

    \b
    Example:
      cedit fix "The capital of Australia is" Canberra --subject Australia
      cedit fix "Question: Whose sign is this? Short answer:" Anna --picture sign.png
    """
    path = find_store(store)
    require_writable(path)
    record = {"prompt": prompt, "target_new": answer, **{k: v for k, v in told.items() if v}}
    if images:
        record["images"] = list(images)
    from continual.session import open_session

    with open_session(path) as session:
        earlier_answer = session.ask(prompt, pictures=images)
        (step,) = session.apply([record], editor=editor, force=force)
        result = {
            **_record(step, prompt, answer),
            "before": earlier_answer,
            "after": session.ask(prompt, pictures=images),
        }
    out.result(result, *_text(result))
    return PARTLY_DONE if result["outcome"] == "failed" else 0


def _record(step: Step, prompt: str, answer: str) -> dict[str, Any]:
    from continual.history.reports import step_record

    (outcome,) = (o for o in step.outcomes if not o.repair)
    metrics = step_record(step)
    names = ("SR", "GR", "ER", "TrainR", "TestR", "Locality", *WATCHED)
    return {
        "type": "fix",
        "id": outcome.id,
        "prompt": prompt,
        "target_new": answer,
        "outcome": outcome.outcome,
        "editor": outcome.editor,
        "reason": outcome.reason,
        "seq": step.revision.seq,
        "revision": step.revision.id,
        **{name: metrics[name] for name in names},
    }


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    by = f" by {record['editor']}" if record["editor"] else ""
    yield one_line(f"{record['outcome']}{by}: {record['prompt']}")
    yield one_line(f"  before  {record['before']}")
    yield one_line(f"  after   {record['after']}")
    if record["reason"]:
        yield one_line(f"  reason  {record['reason']}")
    yield rates(record, "SR", "GR", "ER", "TrainR", "TestR", "Locality")
    yield rates(record, *WATCHED)
    yield f"head {short(record['revision'])} (@{record['seq']})"
    if record["outcome"] == "skipped":
        yield "The model says this already: nothing was changed."
    elif record["outcome"] == "applied":
        yield f"To take it back: cedit revert {record['id'][:8]}"
