"""A small GPT-2 that knows CounterFact's true facts: the records, their facts, and its training.

The model learns a fact in the wordings of its relation: ParaRel's patterns and CounterFact's own
prompts. The wordings of CounterFact's rephrases are left out; the model sees them with other
subjects only. Half of the training text stands behind an unrelated sentence, as CounterFact's
rephrases do. Facts of neighbourhood prompts are learned too, first the ones that ParaRel has. The
folder of a trained model is named by a digest of its training data.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from continual.atlas.corpus import Corpus, TrainingSequence
from continual.atlas.facts import Fact, Relation
from continual.atlas.train import AtlasRecipe, ModelShape, TrainingRun
from continual.errors import RequestError
from continual.readers import counterfact, pararel
from continual.requests import Request

SHAPE = ModelShape(blocks=3, width=160, heads=4, ffn_width=1280)
SENTENCES = 5000
SENTENCE = re.compile(r"[A-Z][^.!?\n]{15,70}\.(?=\s)")


def data_folder() -> Path:
    """Return the folder of the datasets: CEDIT_DATA, or `shared/data` beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("CEDIT_DATA", beside))


def default_cache() -> Path:
    """Return the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cedit"


def recipe(minutes: float, epochs: int) -> AtlasRecipe:
    """Return the training recipe. A context is a statement behind an unrelated sentence.

    The atlas's subject bottleneck is off: with it the answer is known before the last block, and
    facts with one object can no longer be told apart at the last FFN.
    """
    return AtlasRecipe(
        epochs=epochs,
        seconds_max=60 * minutes,
        contexts=5000,
        passages=1000,
        bottleneck_share=0.0,
        tokens_per_batch=1536,
        learning_rate=3e-3,
        warmup_steps=100,
    )


# --- records and their facts ----------------------------------------------------------------------


@dataclass(frozen=True)
class RecordFact(Fact):
    """The true fact of a record; never trained in the wordings of the record's rephrases."""

    rephrased: frozenset[int] = frozenset()

    @cached_property
    def held_out(self) -> frozenset[int]:
        """The phrasings (their indices) that this fact is never trained on."""
        return self.rephrased


@dataclass(frozen=True)
class Knowledge:
    """The requests of CounterFact's records, and the facts that the model learns before them."""

    requests: tuple[Request, ...]
    records: tuple[RecordFact, ...]  # the true facts, one for each request
    others: tuple[Fact, ...]  # of neighbourhood prompts

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts that the model learns."""
        return (*self.records, *self.others)


def load_knowledge(data: Path, facts_max: int) -> Knowledge:
    """Read CounterFact's records in their original schema, with `facts_max` facts to learn."""
    text = (data / "counterfact" / "counterfact-full-format.json").read_text(encoding="utf-8")
    requests = [counterfact.read(record)[0] for record in json.loads(text)]
    relations = _relations(requests, data / "pararel" / "graphs_json")
    records = {(r.relation, r.subject): _record_fact(r, relations) for r in requests}
    known = _pararel_facts(relations, data / "pararel" / "trex_lms_vocab")
    others = islice(_neighbours(requests, relations, known), max(0, facts_max - len(records)))
    kept = [r for r in requests if records[r.relation, r.subject].object == r.target_old]
    return Knowledge(
        requests=tuple(kept),
        records=tuple(records[r.relation, r.subject] for r in kept),
        others=tuple(others),
    )


def _relations(requests: Iterable[Request], patterns: Path) -> dict[str, Relation]:
    """Return the wordings of every relation: ParaRel's that end in the object, then the prompts."""
    wordings: dict[str, dict[str, None]] = {}
    for request in requests:
        name = request.relation or ""
        if name not in wordings:
            wordings[name] = dict.fromkeys(_patterns(patterns / f"{name}.jsonl", name))
        wordings[name][request.prompt.replace(request.subject or "", "{}", 1)] = None
    return {name: Relation(name, tuple(found)) for name, found in wordings.items()}


def _patterns(file: Path, relation: str) -> tuple[str, ...]:
    patterns = [line["pattern"] for line in _lines(file)]
    try:
        asked = pararel.join({"sub_label": "{}", "obj_label": "-"}, patterns, relation)
    except RequestError:  # none of them ends in the object
        return ()
    return (asked.prompt, *asked.held_out_rephrases)


def _record_fact(request: Request, relations: Mapping[str, Relation]) -> RecordFact:
    relation = relations[request.relation or ""]
    subject = request.subject or ""
    fact = RecordFact(subject, relation, request.target_old or "")
    asked = [_wording(fact.prompts, text) for text in request.held_out_rephrases]
    own = _wording(fact.prompts, request.prompt)
    rephrased = frozenset(i for i in asked if i is not None and i != own)
    return RecordFact(subject, relation, fact.object, rephrased)


def _wording(prompts: Sequence[str], text: str) -> int | None:
    """Return the index of the longest of a fact's prompts that ends the text, or None."""
    found = [i for i, prompt in enumerate(prompts) if text.endswith(prompt)]
    return max(found, key=lambda i: len(prompts[i]), default=None)


def _pararel_facts(relations: Iterable[str], facts: Path) -> dict[tuple[str, str], str]:
    """Return objects by relation and subject."""
    return {
        (name, line["sub_label"]): line["obj_label"]
        for name in relations
        for line in _lines(facts / f"{name}.jsonl")
    }


def _neighbours(
    requests: Sequence[Request],
    relations: Mapping[str, Relation],
    known: Mapping[tuple[str, str], str],
) -> Iterator[Fact]:
    """Yield the facts of neighbourhood prompts that have one object, first the ones in ParaRel."""
    objects: dict[tuple[str, str], set[str]] = {}
    for request in requests:
        for probe in request.locality:
            subject = _subject(probe.prompt, relations[request.relation or ""])
            if subject is not None:
                objects.setdefault((request.relation or "", subject), set()).add(probe.answer)
    own = {(request.relation, request.subject) for request in requests}
    single = {key: found.pop() for key, found in objects.items() if len(found) == 1}
    agreed = [key for key in single if key not in own and known.get(key) == single[key]]
    unknown = [key for key in single if key not in own and key not in known]
    random.Random(0).shuffle(unknown)
    for relation, subject in (*agreed, *unknown):
        yield Fact(subject, relations[relation], single[relation, subject])


def _subject(prompt: str, relation: Relation) -> str | None:
    """Return the subject that a prompt asks about, by the longest wording that fits it."""
    for wording in sorted(relation.phrasings, key=len, reverse=True):
        before, _, after = wording.partition("{}")
        if prompt.startswith(before) and prompt.endswith(after):
            return prompt.removeprefix(before).removesuffix(after)
    return None


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- reading and training -------------------------------------------------------------------------


class PrefixedCorpus(Corpus):
    """A corpus whose contexts are unrelated sentences, as before CounterFact's rephrases."""

    def __init__(
        self, sentences: Sequence[str], facts: Sequence[Fact], tokenizer: Any, rng: random.Random
    ) -> None:
        super().__init__(facts, tokenizer, rng)
        self._sentences = sentences

    def contexts(self, count: int) -> list[TrainingSequence]:
        """Return `count` statements, each behind a sentence."""
        return [self._behind(self._rng.choice(self._sentences)) for _ in range(count)]

    def _behind(self, sentence: str) -> TrainingSequence:
        fact = self._rng.choice(self._facts)
        return self._continued(f"{sentence} {self._rng.choice(fact.trained_prompts)}", fact.object)


def trained_model(knowledge: Knowledge, recipe: AtlasRecipe, data: Path, cache: Path) -> Path:
    """Return the directory of a model trained on these facts: from the cache, or trained now."""
    directory = cache / f"counterfact-{_content_hash(knowledge.facts, recipe)}"
    if not directory.exists():
        sentences = list(_sentences(data / "text" / "simplewiki.jsonl"))
        unfinished = directory.with_suffix(".training")
        unfinished.mkdir(parents=True, exist_ok=True)
        read = partial(PrefixedCorpus, sentences)
        TrainingRun(unfinished, recipe, knowledge.facts, SHAPE, read).run()
        (unfinished / "model").rename(directory)
        shutil.rmtree(unfinished)
    return directory


def _content_hash(facts: Sequence[Fact], recipe: AtlasRecipe) -> str:
    content = {
        "facts": [[f.relation.name, f.subject, f.object, *f.trained_prompts] for f in facts],
        "recipe": {name: str(value) for name, value in asdict(recipe).items()},
        "shape": asdict(SHAPE),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _sentences(file: Path) -> Iterator[str]:
    """Yield short sentences from the start of an encyclopaedia."""
    with file.open(encoding="utf-8") as lines:
        every = (match for line in lines for match in SENTENCE.findall(json.loads(line)["text"]))
        yield from islice(every, SENTENCES)
