"""Measures how well a plane at the last FFN separates a correction's wordings from other text.

    python -m benchmarks.gates --model DIR [--records 40] [--skip N] [--rows 0,30,100,300,1000,3000]
        [--copies 0,8] [--wordings 0,1] [--worded-copies 0,8] [--margin .35,…]
        [--contexts none,N] [--chat] [--output DIR] [--data DIR] [--seed N] [--threads 1]

Makes a neuron's gate for each record of CounterFact as T-Patcher makes it, by the key with the
widest margin to the rows in memory, and looks where it opens. Nothing is edited, and no value is
trained. Memory has a number of rows of general text that the base wrote, prompts of other relations
about the subject, the prompt about other subjects, and the prompt with its new answer. A gate's own
rows are the prompt, copies of it behind sentences, other wordings of its relation, and copies of
these. A gate takes either any text, or only texts that name the subject. Queries are read without a
context, or with the context of one block after another; with `--chat` every prompt is a user's
turn. The table has the shares of held-out prompts that open it: it should open on paraphrases, and
stay shut on neighbours, other questions about the subject, and general text. The plot shows them
over the number of rows.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import plots, tables
from benchmarks.counterfact_model import data_folder
from benchmarks.real_model.questions import (
    NEIGHBOUR,
    PARAPHRASE,
    SUBJECT,
    CounterFactRecord,
    QuestionCounts,
    load_facts,
    shuffled,
)
from benchmarks.tables import TextColumn
from continual.anatomy.overrides import NONE
from continual.base import load_base
from continual.editors.tpatcher import TPatcherConfig
from continual.editors.tpatcher.separating import widest_key
from continual.editors.tpatcher.whitening import QueryWhitening
from continual.model import EditedModel
from continual.naming import names
from continual.prompts import Chat, Prompt, normalised
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding, Question, make_task
from continual.tasks.chat import ChatTemplate
from continual.watch import general
from continual.watch.config import WatchConfig

GENERAL = "general"
SHARES = {
    PARAPHRASE: "paraphrases",
    NEIGHBOUR: "neighbours",
    SUBJECT: "the subject's other questions",
    GENERAL: "general text",
}
COLUMNS = (
    TextColumn("texts that open it", "editor"),
    TextColumn("context", "context"),
    TextColumn("copies", "copies", "d"),
    TextColumn("wordings", "wordings", "d"),
    TextColumn("copies of each", "worded_copies", "d"),
    TextColumn("margin", "margin", ".2f"),
    TextColumn("general rows", "rows", "d"),
    *(TextColumn(heading, kind, ".3f") for kind, heading in SHARES.items()),
    TextColumn("without a plane", "inseparable", "d"),
)
ANY, NAMING = "any", "those that name the subject"
ABOUT_SUBJECT, ABOUT_OTHERS = 8, 8  # prompts in memory
PREFIX_WORDS = (6, 21)


@dataclass(frozen=True)
class GateForm:
    """The own rows of a gate, its margin, and the texts that it takes."""

    copies: int  # of the prompt
    wordings: int
    worded_copies: int  # of each wording
    margin: float
    naming: bool  # only texts that name the subject


@dataclass(frozen=True)
class GateQueries:
    """A record's queries, and the held-out prompts for its gate."""

    subject: str  # normalised
    asked: Tensor  # [1 + wordings, 1 + copies, d]: the prompt's first, each before its copies
    about_subject: Tensor  # [n, d] in memory: other prompts, and the prompt with its answer
    about_others: Tensor  # [n, d]
    others: Mapping[str, tuple[Tensor, list[bool]]]  # by kind: queries; is the subject named?

    def own(self, form: GateForm) -> Tensor:
        """Return the own rows [n, d] of a gate, the prompt's first."""
        worded = self.asked[1 : 1 + form.wordings, : 1 + form.worded_copies]
        return torch.cat([self.asked[0, : 1 + form.copies], worded.flatten(0, 1)])


class QueryReader:
    """Reads the queries behind prompts; with `chat` each prompt is a user's turn."""

    def __init__(self, site: Site, *, chat: bool = False) -> None:
        self._site, self._chat = site, chat

    def queries(self, prompts: Sequence[str]) -> Tensor:
        """Read the query [n, d] at the end of each prompt."""
        return self._read([self._site.task.question(self._turn(prompt)).ids for prompt in prompts])

    def behind(self, prompt: str, target: str) -> Tensor:
        """Read the query [1, d] at the end of a prompt with its answer."""
        encoding = self._site.task.encode(self._turn(prompt), target)
        return self._read([(*encoding.question.ids, *encoding.targets)])

    def _turn(self, prompt: str) -> Prompt:
        return Chat.asking(prompt) if self._chat else prompt

    def _read(self, texts: Sequence[tuple[int, ...]]) -> Tensor:
        encodings = [Encoding(Question(ids), (len(ids) - 1,), (0,)) for ids in texts]
        rows: Rows = self._site.rows_in_passes(encodings)
        return rows.query

    def asked(
        self,
        fact: CounterFactRecord,
        every: Sequence[CounterFactRecord],
        prefixes: Sequence[str],
        questions: Mapping[str, list[str]],
        wordings: int,
        seed: int,
    ) -> GateQueries:
        """Read the queries that make a record's gate and the ones that test it, in one go."""
        rng = random.Random(f"{seed}:{fact.case}")
        held_out = {question for asked in questions.values() for question in asked}
        elsewhere = [f for f in every if f.relation != fact.relation]
        about = [f.template.replace("{}", fact.subject, 1) for f in elsewhere]
        prompts = [fact.prompt, *_wordings(fact, every, held_out, wordings, rng)]
        fronts = ("", *(f"{prefix}. " for prefix in prefixes))
        parts = {
            "own": [f"{front}{prompt}" for prompt in prompts for front in fronts],
            "in memory, about it": rng.sample(
                [p for p in dict.fromkeys(about) if p not in held_out], ABOUT_SUBJECT
            ),
            "in memory, about others": [
                fact.template.replace("{}", other.subject, 1)
                for other in rng.sample(elsewhere, ABOUT_OTHERS)
            ],
            **questions,
        }
        queries = self.queries([prompt for part in parts.values() for prompt in part])
        split = dict(zip(parts, queries.split([len(part) for part in parts.values()]), strict=True))
        subject = normalised(fact.subject)
        return GateQueries(
            subject,
            split.pop("own").unflatten(0, (len(prompts), -1)),
            torch.cat([split.pop("in memory, about it"), self.behind(fact.prompt, fact.target)]),
            split.pop("in memory, about others"),
            {
                kind: (found, [names(normalised(q), subject) for q in questions[kind]])
                for kind, found in split.items()
            },
        )


def _wordings(
    fact: CounterFactRecord,
    every: Sequence[CounterFactRecord],
    held_out: Collection[str],
    count: int,
    rng: random.Random,
) -> list[str]:
    """Draw up to `count` other prompts of the relation with this subject, none of them held out."""
    alike = (f.template for f in every if f.relation == fact.relation)
    prompts = dict.fromkeys(t.replace("{}", fact.subject, 1) for t in alike if t != fact.template)
    usable = [prompt for prompt in prompts if prompt not in held_out]
    return rng.sample(usable, min(count, len(usable)))


def opened(asked: GateQueries, memory: Tensor, form: GateForm) -> dict[str, list[bool]] | None:
    """Make a record's gate and tell on which prompts it opens, by kind; None if no plane separates.

    `memory` [m, d] is general text. A gate that asks for the subject leaves prompts about others
    out of its memory, as they are out of its reach.
    """
    own = asked.own(form)
    silent = [memory, asked.about_subject, *([] if form.naming else [asked.about_others])]
    rows = torch.cat(silent)
    ridge = TPatcherConfig().subject_whitening
    whitening = QueryWhitening.of(memory, ridge) if form.naming else None
    start = own.mean(0) - rows.mean(0)
    key = widest_key(own, start, lambda k: rows[(rows @ k).argmax()], whitening)
    lowest, highest = (own @ key).min(), (rows @ key).max()
    if not lowest > highest:
        return None
    threshold = highest + form.margin * (lowest - highest)
    return {
        kind: [
            fires and (named or not form.naming)
            for fires, named in zip((queries @ key > threshold).tolist(), are_named, strict=True)
        ]
        for kind, (queries, are_named) in asked.others.items()
    }


def row(every: Sequence[GateQueries], memory: Tensor, form: GateForm) -> dict[str, Any]:
    """Return one line of the table."""
    found = [opened(asked, memory, form) for asked in every]
    shares: dict[str, float | None] = {}
    for kind in SHARES:
        fires = [f for one in found if one is not None for f in one.get(kind, [])]
        shares[kind] = sum(fires) / len(fires) if fires else None
    return {
        "editor": NAMING if form.naming else ANY,
        **asdict(form),
        "rows": len(memory),
        "inseparable": sum(one is None for one in found),
        **shares,
    }


def _questions(
    survey: QuestionCounts,
    fact: CounterFactRecord,
    facts: Sequence[CounterFactRecord],
    every: Sequence[CounterFactRecord],
    data: Path,
) -> dict[str, list[str]]:
    asked: dict[str, list[str]] = {PARAPHRASE: [], NEIGHBOUR: [], SUBJECT: [], GENERAL: []}
    for question in survey.questions([fact], every, data):
        if question.kind in asked:
            asked[question.kind].append(question.prompt)
    return asked


def _prefixes(texts: Sequence[str], count: int, rng: random.Random) -> Iterator[str]:
    for text in rng.sample(texts, count):
        words = text.split()
        yield " ".join(words[: rng.randrange(*PREFIX_WORDS)]).rstrip(".")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.gates", description=(__doc__ or "").splitlines()[0]
    )
    options.add_argument("--model", type=Path, required=True, metavar="DIR")
    options.add_argument("--records", type=int, default=40, metavar="N")
    options.add_argument("--skip", type=int, default=0, metavar="N", help="records of the order")
    options.add_argument("--rows", default="0,30,100,300,1000,3000", metavar="N,…")
    options.add_argument("--copies", default="0,8", metavar="N,…")
    options.add_argument("--contexts", default="none", metavar="N,…", help="blocks, or none")
    options.add_argument("--topic", action="store_true", help="contexts are topics")
    options.add_argument("--chat", action="store_true", help="every prompt is a user's turn")
    options.add_argument("--wordings", default="0", metavar="N,…", help="of the same relation")
    options.add_argument("--worded-copies", default="0", metavar="N,…", help="of each wording")
    options.add_argument("--margin", default=str(TPatcherConfig().subject_margin), metavar="M,…")
    options.add_argument("--openings", type=int, default=20, metavar="N")
    options.add_argument("--seed", type=int, default=0, metavar="N")
    options.add_argument("--data", type=Path, default=data_folder(), metavar="DIR")
    options.add_argument("--output", type=Path, default=Path("runs/gates"), metavar="DIR")
    options.add_argument("--threads", type=int, default=1, metavar="N")
    return options


def measure(site: Site, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every number of rows and copies, and return all lines of the table."""
    sizes = sorted({int(n) for n in given.rows.split(",")})
    forms = list(_forms(given))
    copies = max(max(form.copies, form.worded_copies) for form in forms)
    wordings = max(form.wordings for form in forms)
    config = WatchConfig()
    texts = 2 * -(-max(sizes) // config.tokens)
    read = general.write(
        site, WatchConfig(texts=texts), given.seed, lambda done, of: tables.note(f"{done} of {of}")
    )
    empty = site.rows_in_passes([site.task.encode("a", "b")]).query[:0]
    memory = empty if read.memory is None else read.memory.query
    order = shuffled(load_facts(given.data), given.seed)
    chosen = order[given.skip : given.skip + given.records]
    decode = site.edited.tokenizer.decode
    written = [decode(list(p.ids), skip_special_tokens=True) for p in read.text.memory]
    written = [text for text in written if len(text.split()) >= PREFIX_WORDS[0]]
    reader, survey = (
        QueryReader(site, chat=given.chat),
        QuestionCounts(openings=given.openings, seed=given.seed),
    )
    asked = []
    for number, fact in enumerate(chosen):
        rng = random.Random(f"{given.seed}:{fact.case}")
        prefixes = list(_prefixes(written, min(copies, len(written)), rng))
        questions = _questions(survey, fact, chosen, order, given.data)
        asked.append(reader.asked(fact, order, prefixes, questions, wordings, given.seed))
        tables.note(f"{number + 1} of {len(chosen)} records read")
    return [row(asked, memory[:size], form) for form in forms for size in sizes]


def _forms(given: argparse.Namespace) -> Iterator[GateForm]:
    """Yield all gates that are asked for; copies of no wording count once."""
    whole = [[int(n) for n in x.split(",")] for x in (given.copies, given.wordings)]
    worded = [int(n) for n in given.worded_copies.split(",")]
    margins = [float(m) for m in given.margin.split(",")]
    for naming, copies, wordings in product((False, True), *whole):
        for behind, margin in product(worded if wordings else worded[:1], margins):
            yield GateForm(copies, wordings, behind, margin, naming)


def main() -> None:
    """Measure, print and draw."""
    given = parser().parse_args()
    torch.set_num_threads(given.threads)
    base = load_base(given.model)
    rows = []
    for context in given.contexts.split(","):
        block = None if context == NONE else int(context)
        turn = ChatTemplate(base.tokenizer).before_answer if given.topic and block else None
        read = replace(base, anatomy=replace(base.anatomy, context_block=block, turn=turn))
        with EditedModel(read) as edited:
            found = measure(Site(edited, make_task(read, {"name": "causal"})), given)
        rows += [{**line, "context": context} for line in found]
    tables.show("where a gate opens", COLUMNS, rows)
    tables.write_json(given.output / "gates.json", "gates", {"rows": rows})
    last = {key: rows[-1][key] for key in ("copies", "wordings", "worded_copies", "margin")}
    last["context"] = context
    drawn = [line for line in rows if last.items() <= line.items()]
    figure = plots.curves(drawn, "rows", SHARES, "rows of general text", shares=True)
    plots.save(figure, given.output, "gates-rows")


if __name__ == "__main__":
    main()
