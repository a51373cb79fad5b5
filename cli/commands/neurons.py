"""`cedit neurons`: finds the neurons that an answer is owed to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, require_revision, require_writable, revision_names
from cli.output import WATCHED, Output, columns, counted, one_line, rates, short

if TYPE_CHECKING:
    from rich.console import RenderableType

    from continual.analysis.neurons.finding import (
        FactNeurons,
        NeuronEffects,
        NeuronFinder,
        PromptedFact,
    )

MASKED = "masked"
TASKS = ("causal", "seq2seq", MASKED)
NEURONS_SHOWN = 12
ARCHITECTURES = {MASKED: "AutoModelForMaskedLM"}


@click.command("neurons")
@click.argument("source", metavar="PROMPT|FILE")
@click.option("--answer", metavar="TEXT", help="To attribute (default: the one the model gives).")
@click.option(
    "--rephrase", "rephrases", metavar="TEXT", multiple=True, help="PROMPT in other words."
)
@click.option("--relation", metavar="NAME", help="Of FILE, the facts of this relation alone.")
@click.option(
    "--erase",
    "erased",
    metavar="RELATION",
    help="Set the values of a relation's neurons to zero, in a revision.",
)
@click.option(
    "--at",
    metavar="REVISION",
    shell_complete=revision_names,
    default="head",
    help="The revision (default: head).",
)
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="A model's folder in the place of a store.",
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=TASKS[0],
    show_default=True,
    help="Of --model: masked takes prompts that hold its mask.",
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), default=20, show_default=True, help="Of the integral."
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.2,
    show_default=True,
    help="Share of a prompt's highest score.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.7,
    show_default=True,
    help="Share of a fact's prompts that its neurons are in.",
)
@common
def command(
    out: Output,
    store: str | None,
    source: str,
    answer: str | None,
    rephrases: tuple[str, ...],
    relation: str | None,
    erased: str | None,
    at: str,
    model: Path | None,
    task: str,
    steps: int,
    threshold: float,
    share: float,
) -> None:
    """Find the neurons that an answer is owed to.

    Integrated gradients attribute P(answer) to each neuron of each FFN at the position where the
    answer is said (Dai et al. 2022). A fact's neurons are those that enough of its prompts share.
    Then they are suppressed (times 0) and amplified (times 2): at that position alone, and in the
    weights, where every position feels it. The store stays as it is.

    With --erase the 20 neurons that most facts of a relation have lose their values, at all
    positions: a revision without requests, measured and rolled back as any other. Expect other
    answers to change, too. `cedit revert` and `cedit rebase` do not know it.

    FILE has corrections or facts as `cedit apply` reads them; of an old and a new target the one is
    taken that the model gives. An answer that it does not give is warned of: its attribution says
    nothing about what the model knows.

    With --json there is a line for each fact: {"type":"neurons","prompt","answer","says","right",
    "subject","relation","prompts","share","neurons":[{"block","index","score"}],"probability",
    "suppressed","amplified","suppressed_in_weights","amplified_in_weights"}, and for FILE one for
    each relation: {"type":"neurons of relation","relation","facts","neurons","suppressed",
    "amplified"}, the last two as changes of P relative to it. With --erase there is one alone:
    {"type":"erase","relation","neurons","facts","before","after","revision","fingerprint"} and the
    metrics; before and after are P(answer).

    \b
    Example:
      cedit neurons "The capital of Australia is"
      cedit neurons "The capital of Australia is" --answer Canberra --at base --json
      cedit neurons facts.jsonl --relation capital
      cedit neurons facts.jsonl --erase capital
      cedit neurons "Canberra is the capital of [MASK]." --model bert-base --task masked
    """
    if erased is not None and (relation is not None or model is not None or at != "head"):
        raise click.UsageError("--erase is for a store's head, and names its relation itself.")
    facts = _facts(source, answer, rephrases, relation if erased is None else erased)
    options: dict[str, Any] = {"steps": steps, "threshold": threshold, "share": share}
    if erased is not None:
        _erase(out, store, facts, erased, options)
        return
    with _finder(store, at, model, task) as finder:
        _set(finder, **options)
        found = finder.find(facts, lambda number: _tell(out, number, len(facts)))
        effects = [finder.effects(fact) for fact in found]
        share = finder.thresholds.relation_share
    records = [_record(fact, effect) for fact, effect in zip(found, effects, strict=True)]
    for fact, record in zip(found, records, strict=True):
        out.record(record)
        if not record["right"]:
            out.warn([_wrong(record)])
        if len(found) == 1:
            out.text(*_shown(fact, record))
    if len(found) > 1:
        out.text(_table(records))
    if _is_file(source):
        _show_relations(out, found, effects, share)


def _set(finder: NeuronFinder, *, steps: int, threshold: float, share: float) -> None:
    from dataclasses import replace

    finder.steps = steps
    finder.thresholds = replace(finder.thresholds, of_max=threshold, share=share)


def _erase(
    out: Output,
    store: str | None,
    facts: Sequence[PromptedFact],
    relation: str,
    options: dict[str, Any],
) -> None:
    """Erase a relation at head by its facts that the model has right. Raises CeditError if it has
    none of them right."""
    from statistics import fmean

    from continual.analysis.neurons.finding import NeuronFinder
    from continual.analysis.neurons.relations import to_erase
    from continual.errors import CeditError
    from continual.history.erasing import erase
    from continual.history.inspection import rates_at
    from continual.session import open_session

    path = find_store(store)
    require_writable(path)
    with open_session(path) as session:
        finder = NeuronFinder(session.edited, session.task)
        _set(finder, **options)
        found = finder.find(facts, lambda number: _tell(out, number, len(facts)))
        known = [fact for fact in found if fact.is_right]
        if not known:
            raise CeditError(
                f"The model answers no fact of {relation!r} rightly in all of its prompts: there "
                "is nothing to find its neurons by."
            )
        neurons = to_erase(known)
        before = fmean(finder.probability(fact) for fact in known)
        revision = erase(session, relation, neurons)
        finder = NeuronFinder(session.edited, session.task)
        after = fmean(finder.probability(fact) for fact in known)
        metrics = rates_at(session.store, revision)
    record = {
        "type": "erase",
        "relation": relation,
        "neurons": [{"block": n.block, "index": n.place} for n in neurons],
        "facts": len(known),
        "before": before,
        "after": after,
        "revision": revision.id,
        **metrics,
        "fingerprint": revision.fingerprint,
    }
    out.result(
        record,
        one_line(f"{counted(len(neurons), 'neuron')} of {relation} without a value"),
        f"P(answer) of {counted(len(known), 'fact')} that the model had right: "
        f"{record['before']:.4f}, and now {record['after']:.4f}",
        rates(metrics, "ER", "TrainR", "TestR", *WATCHED),
        f"head {short(revision.id)}  fingerprint {short(revision.fingerprint)}",
    )


def _is_file(source: str) -> bool:
    return source == "-" or Path(source).is_file()


def _facts(
    source: str, answer: str | None, rephrases: Sequence[str], relation: str | None
) -> list[PromptedFact]:
    """Return the facts to look at. Raises UsageError for options that do not go together, and
    CeditError for a file without facts, or without any of the relation."""
    from continual.analysis.neurons.finding import PromptedFact
    from continual.errors import CeditError

    if not _is_file(source):
        if relation is None and not source.strip():
            raise click.UsageError("The PROMPT is empty: give it a text.")
        if relation is not None:
            raise click.UsageError(
                f"--relation and --erase take facts from a FILE, and there is no {source!r}."
            )
        return [PromptedFact((source, *rephrases), () if answer is None else (answer,))]
    if answer is not None or rephrases:
        raise click.UsageError("--answer and --rephrase belong to a PROMPT; FILE has its own.")
    facts = list(_facts_in(source))
    if not facts:
        raise CeditError(f"There are no facts in {source}: each line is one, with its prompt.")
    chosen = [fact for fact in facts if relation in (None, fact.relation)]
    if not chosen:
        known = sorted({fact.relation for fact in facts if fact.relation is not None})
        names = ", ".join(known[:12]) or "none"
        raise CeditError(f"No fact in {source} is of the relation {relation!r}: it has {names}.")
    return chosen


def _facts_in(source: str) -> Iterator[PromptedFact]:
    """Yield the facts in a file. Raises CeditError for a record that cannot be read."""
    from continual.analysis.neurons.finding import PromptedFact
    from continual.errors import CeditError
    from continual.streams import open_stream

    for item in open_stream(source):
        if item.reason is not None:
            raise CeditError(f"{source}, record {item.number}: {item.reason}.")
        for request in item.requests:
            yield PromptedFact.of(request)


@contextmanager
def _finder(store: str | None, at: str, model: Path | None, task: str) -> Iterator[NeuronFinder]:
    """Open a store at a revision, or load a model."""
    if model is not None:
        with _finder_of_model(model, task) as finder:
            yield finder
        return
    path = find_store(store)
    require_revision(path, at)
    from continual.analysis.neurons.finding import NeuronFinder
    from continual.session import open_session

    with open_session(path, writable=False, at=at) as session:
        yield NeuronFinder(session.edited, session.task)


@contextmanager
def _finder_of_model(folder: Path, task: str) -> Iterator[NeuronFinder]:
    from continual.analysis.neurons import MaskedPrompts
    from continual.analysis.neurons.finding import NeuronFinder
    from continual.base import load_base
    from continual.model import EditedModel
    from continual.tasks import make_task, new_settings, task_class

    table = {"name": task}
    is_masked = task == MASKED
    base = load_base(folder, ARCHITECTURES[MASKED] if is_masked else task_class(table).architecture)
    language = (
        MaskedPrompts(base.tokenizer, base.context_tokens_max)
        if is_masked
        else make_task(base, new_settings(base, table))
    )
    with EditedModel(base) as edited:
        yield NeuronFinder(edited, language)


def _tell(out: Output, number: int, total: int) -> None:
    if total > 1 and (number == total or number % 10 == 0):
        out.note(f"{number} of {total} facts")


def _record(found: FactNeurons, effects: NeuronEffects) -> dict[str, Any]:
    """Return the JSON record of a fact's neurons."""
    from dataclasses import asdict

    from continual.analysis.neurons.finding import neurons_json

    wrong = next((prompt for prompt in found.prompts if not prompt.is_right), None)
    return {
        "type": "neurons",
        "prompt": str(found.fact.prompts[0]),
        "answer": found.answer,
        "says": (wrong or found.prompts[0]).said,
        "right": found.is_right,
        "subject": found.fact.subject,
        "relation": found.fact.relation,
        "prompts": len(found.prompts),
        "share": found.share,
        "neurons": neurons_json(found),
        **asdict(effects),
    }


def _wrong(record: dict[str, Any]) -> str:
    prompt, says, answer = (one_line(record[name]) for name in ("prompt", "says", "answer"))
    return (
        f"{prompt!r}: the model says {says!r} to it or to a rephrase of it, and not {answer!r}. "
        "The attribution of an answer that it does not give says nothing about what it knows."
    )


def _shown(found: FactNeurons, record: dict[str, Any]) -> Iterable[RenderableType]:
    """Return the lines and the table that describe one fact."""
    count = len(record["neurons"])
    yield one_line(f"{record['prompt']} → {record['answer']}")
    yield (
        f"{counted(count, 'neuron')} of {counted(record['prompts'], 'prompt')}, "
        f"in blocks {_blocks(found)}"
    )
    neurons = record["neurons"][:NEURONS_SHOWN]
    yield columns(
        ("block", "neuron", "attribution"),
        ((n["block"], n["index"], f"{n['score']:.4f}") for n in neurons),
        "block neuron attribution",
    )
    if count > len(neurons):
        yield f"… and {count - len(neurons)} more (--json has all of them)"
    yield ""
    yield columns(
        ("P(answer)", "as it is", "suppressed", "amplified"),
        (
            ("at its place", *_probabilities(record, "")),
            ("in the weights", *_probabilities(record, "_in_weights")),
        ),
        "suppressed amplified",
    )


def _probabilities(record: dict[str, Any], where: str) -> tuple[str, ...]:
    names = ("probability", f"suppressed{where}", f"amplified{where}")
    return tuple(f"{record[name]:.4f}" for name in names)


def _blocks(found: FactNeurons) -> str:
    """Return the numbers of neurons by block, in a line."""
    from collections import Counter

    counts = Counter(neuron.block for neuron in found.neurons)
    return ", ".join(f"{block} ({count})" for block, count in sorted(counts.items())) or "–"


def _table(records: Sequence[dict[str, Any]]) -> RenderableType:
    rows = (
        (
            record["prompt"],
            record["answer"],
            len(record["neurons"]),
            *_probabilities(record, ""),
            "" if record["right"] else "wrong",
        )
        for record in records
    )
    names = ("prompt", "answer", "neurons", "P", "suppressed", "amplified", "")
    return columns(names, rows, "neurons P suppressed amplified", shrinks="prompt")


def _show_relations(
    out: Output, found: Sequence[FactNeurons], effects: Sequence[NeuronEffects], share: float
) -> None:
    """Print each relation's neurons, and the change of P over its facts."""
    from continual.analysis.neurons.relations import relations_of

    relations = relations_of(found, effects, share)
    for relation in relations:
        out.record(
            {
                "type": "neurons of relation",
                "relation": relation.relation,
                "facts": relation.facts,
                "neurons": [{"block": n.block, "index": n.place} for n in relation.neurons],
                "suppressed": relation.suppressed,
                "amplified": relation.amplified,
            }
        )
    if relations:
        names = ("relation", "facts", "neurons", "suppressed", "amplified")
        rows = [
            (r.relation, r.facts, len(r.neurons), _percent(r.suppressed), _percent(r.amplified))
            for r in relations
        ]
        out.text("", columns(names, rows, "facts neurons suppressed amplified"))


def _percent(change: float | None) -> str:
    return "–" if change is None else f"{change:+.1%}"
