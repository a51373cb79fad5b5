"""A table of cedit.toml becomes settings, or an error that names the table and the key."""

from __future__ import annotations

import pytest

from continual.choices import EDITORS
from continual.editors.chains import make_chain, make_editor
from continual.errors import CeditError
from continual.memory.recall import MemoryConfig
from continual.settings import StoreSettings


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


STORE = {"model": {"path": "atlas", "fingerprint": "f0"}, "task": {"name": "causal"}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"fingerprint": "f0"}}, r"\[model\] path is missing"),
        ({"model": {"path": 7}}, r"\[model\] path = 7: input should be a valid string"),
        ({"model": {"path": "x", "dtype": "int8"}}, r"\[model\] dtype = 'int8': .*bfloat16"),
        ({"model": {"path": "x", "devise": "cpu"}}, r"\[model\] has no setting devise: .*device"),
        ({"model": "atlas"}, r"model = 'atlas' is no table: write \[model\]"),
        ({"run": {"seed": "x"}}, r"\[run\] seed = 'x': input should be a valid integer"),
        ({"run": {"seed": 1.5}}, r"\[run\] seed = 1.5"),
        ({"task": 3}, r"task = 3 is no table"),
        ({"editor": {"memit": 3}}, r"editor.memit = 3 is no table: write \[editor.memit\]"),
        ({"editors": {}, "modell": {}}, "says editors, modell, which nothing reads: .* editor, "),
    ],
)
def test_a_stores_settings_are_read_as_input(change, said):
    with pytest.raises(CeditError, match=said):
        StoreSettings.of({**STORE, **change})


def test_what_a_store_leaves_out_has_its_default():
    settings = StoreSettings.of(STORE)
    assert (settings.model.device, settings.model.dtype, settings.run.seed) == ("cpu", "float32", 0)
    assert (settings.task_name, dict(settings.editors)) == ("causal", {})
    assert StoreSettings.of({"model": STORE["model"]}).task_name == "causal"


def test_a_table_for_no_editor_is_named():
    with pytest.raises(
        CeditError,
        match=r"\[editor\.mimit\] in cedit\.toml is for no editor: there are tpatcher, memit",
    ):
        make_chain(("tpatcher",), {"mimit": {}}, "causal")
