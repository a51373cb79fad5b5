"""A table of cedit.toml becomes settings, or an error that names the table and the key."""

from __future__ import annotations

import pytest

from continual.editors.registry import EDITORS, make_editor
from continual.errors import CeditError
from continual.memory.recall import MemoryConfig


@pytest.mark.parametrize("name", EDITORS)
def test_an_unknown_key_is_named_with_its_table(name):
    with pytest.raises(CeditError, match=rf"\[editor\.{name}\] has no setting marjin"):
        make_editor(name, {"marjin": 1})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("tpatcher", "margin", "wide"),
        ("tpatcher", "neurons_max", [1]),
        ("tpatcher", "norm_max", float("nan")),
        ("memit", "blocks", "all"),
        ("memit", "steps_max", None),
        ("alphaedit", "ridge", {}),
        ("ike", "count", "many"),
        ("ike", "form", 3),
        ("serac", "form", []),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(name, key, value):
    with pytest.raises(CeditError, match=rf"\[editor\.{name}\] {key}"):
        make_editor(name, {key: value})


def test_values_are_taken_as_toml_gives_them():
    config = make_editor("memit", {"blocks": [0, 1], "step": 1}).config
    assert config.blocks == (0, 1)
    assert config.step == 1.0
    assert MemoryConfig.of({"threshold": 0.5}).threshold == 0.5


def test_rules_of_a_method_are_told_with_its_table():
    with pytest.raises(CeditError, match=r"\[editor\.tpatcher\] margin = 1\.5 is not in"):
        make_editor("tpatcher", {"margin": 1.5})
    with pytest.raises(CeditError, match=r"\[editor\.memit\] blocks are one or more"):
        make_editor("memit", {"blocks": [1, 0]})
