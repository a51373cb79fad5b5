"""A model that sees, saved with its corrections: transformers alone answers as the history does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from continual.saving import CannotSave, SaveSettings, save
from continual.session import Session
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.tiny_pictures import IMAGE, picture, picture_file, save_querying, save_seeing

QUESTION = "the capital of Badar is"
TARGET = language.CAPITALS[4]
CLASSES = {
    "llava": (save_seeing, hf.LlavaForConditionalGeneration, IMAGE + QUESTION),
    "blip-2": (save_querying, hf.Blip2ForConditionalGeneration, QUESTION),
}


def corrected(made: Make, folder: Path, kind: str, editor: str, **table: Any) -> Session:
    model = CLASSES[kind][0](folder / kind)
    session = made(model, task={"name": "multimodal"}, watch={"texts": 0, "neighbours": 0})
    record = {"prompt": QUESTION, "target_new": TARGET, "image": str(picture_file(folder, 1))}
    session.apply([record], editor=editor, editors={editor: table})
    (entry,) = session.store.head.body["requests"]
    assert entry["outcome"] == "applied", entry
    return session


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_edits_of_weights_go_along_and_transformers_alone_answers(
    made: Make, tmp_path: Path, kind: str
) -> None:
    """The projection of pictures is trained: the saved model sees otherwise, too."""
    session = corrected(made, tmp_path, kind, "ft-vision", learning_rate=3e-3)
    saved = session.save(tmp_path / "saved")
    assert saved.unexpected == ()
    assert saved.facts["turned"] == {}
    _, model_class, text = CLASSES[kind]
    model = model_class.from_pretrained(saved.directory).eval()
    processor = hf.AutoProcessor.from_pretrained(saved.directory)
    inputs = processor(images=[picture(1)], text=[text], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        token = int(model(**inputs).logits[0, -1].argmax())
    assert processor.tokenizer.decode([token]) == TARGET


def test_neurons_are_refused_by_name_and_so_is_the_other_form(made: Make, tmp_path: Path) -> None:
    session = corrected(made, tmp_path, "llava", "tpatcher")
    with pytest.raises(CannotSave, match=r"neurons.*--without neurons"):
        save(session, tmp_path / "saved", SaveSettings())
    with pytest.raises(CannotSave, match=r"not saved as peft.*--as transformers"):
        save(session, tmp_path / "saved", SaveSettings(form="peft"))
    assert not (tmp_path / "saved").exists()
