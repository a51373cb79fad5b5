"""Questions about facts: their templates, and what is drawn of them."""

from __future__ import annotations

import json
import random
import tomllib
from collections import Counter
from pathlib import Path

from benchmarks.protocol import questions


def write_facts(folder: Path, relation: str, facts: dict[str, str]) -> None:
    lines = [json.dumps({"sub_label": s, "obj_label": o}) for s, o in facts.items()]
    (folder / f"{relation}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_no_question_asks_for_two_relations() -> None:
    relations = tomllib.loads(questions.TEMPLATES.read_text(encoding="utf-8"))
    count = Counter(template for templates in relations.values() for template in templates)
    assert [template for template, times in count.items() if times > 1] == []
    assert all(template.count("{}") == 1 for template in count)
    assert all(len(templates) >= 5 for templates in relations.values())


def test_a_fact_is_asked_in_all_ways_of_its_relation(tmp_path: Path) -> None:
    for relation in tomllib.loads(questions.TEMPLATES.read_text(encoding="utf-8")):
        write_facts(tmp_path, relation, {})
    write_facts(tmp_path, "P36", {"Oz": "Emerald City"})
    (asked,) = questions.of_pararel(tmp_path, random.Random(0))
    assert asked.answer == "Emerald City"
    assert "What is the capital of Oz?" in asked.wordings
    assert len(set(asked.wordings)) == 6


def test_facts_with_two_objects_are_left_out(tmp_path: Path) -> None:
    for relation in tomllib.loads(questions.TEMPLATES.read_text(encoding="utf-8")):
        write_facts(tmp_path, relation, {})
    lines = [{"sub_label": "Oz", "obj_label": city} for city in ("A", "B")]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "P36.jsonl").write_text(text, encoding="utf-8")
    assert list(questions.of_pararel(tmp_path, random.Random(0))) == []


def test_the_questions_are_those_of_the_seed_and_each_is_asked_once(data: Path) -> None:
    found = questions.load(data, 500, seed=1)
    assert found == questions.load(data, 500, seed=1)
    assert found != questions.load(data, 500, seed=2)
    assert len({example.prompt for example in found}) == len(found)
    assert all(example.answer and example.prompt not in example.rephrases for example in found)
