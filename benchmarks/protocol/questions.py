"""Questions with short answers: zsRE's, and questions about ParaRel's facts.

zsRE's questions come with their own rephrase. `questions.toml` has the questions that ask for a
fact of ParaRel, by relation: one of them, by chance, is the prompt, the others are its rephrases.
Facts are left out if their subject has several of the relation.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.protocol.splits import AnsweredInput, distinct

ZSRE_FILES = ("zsre_mend_train_1k.json", "zsre_eval_portability.json", "knowedit_zsre.json")
TEMPLATES = Path(__file__).with_name("questions.toml")
WORDS_MAX = 5  # of an answer


def load(data: Path, facts_max: int, seed: int) -> list[AnsweredInput]:
    """Return all of zsRE's questions, and questions about `facts_max` facts of ParaRel, by seed."""
    draw = random.Random(seed)
    facts = list(of_pararel(data / "pararel" / "trex_lms_vocab", draw))
    draw.shuffle(facts)
    return distinct([*of_zsre(data / "zsre"), *facts[:facts_max]])


def of_zsre(folder: Path) -> Iterator[AnsweredInput]:
    """Yield the questions with their true answers, from either format of zsRE."""
    for name in ZSRE_FILES:
        for record in json.loads((folder / name).read_bytes()):
            prompt = record.get("src") or record["prompt"]
            rephrase = record.get("rephrase") or record.get("rephrase_prompt")
            answers = record.get("answers") or record["ground_truth"]
            answer = answers if isinstance(answers, str) else answers[0]
            others = (rephrase,) if rephrase and rephrase != prompt else ()
            if answer and len(answer.split()) <= WORDS_MAX:
                yield AnsweredInput(prompt, answer, others)


def of_pararel(folder: Path, draw: random.Random) -> Iterator[AnsweredInput]:
    """Yield a question for each fact that is its subject's only one in its relation."""
    for relation, templates in tomllib.loads(TEMPLATES.read_text(encoding="utf-8")).items():
        objects: dict[str, set[str]] = {}
        for fact in _facts(folder / f"{relation}.jsonl"):
            objects.setdefault(fact["sub_label"], set()).add(fact["obj_label"])
        for subject, found in objects.items():
            if len(found) == 1:
                yield _asked(subject, min(found), templates, draw)


def _asked(subject: str, answer: str, templates: list[str], draw: random.Random) -> AnsweredInput:
    first = draw.randrange(len(templates))
    order = [*templates[first:], *templates[:first]]
    prompt, *others = (template.replace("{}", subject) for template in order)
    return AnsweredInput(prompt, answer, tuple(others))


def _facts(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]
