"""The gallery: its world, its streams of corrections, and the way from a training run to a demo."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

from cli.main import run as cedit
from continual import embedded, own_models
from continual.gallery import eye, measure
from continual.gallery import pack as packing
from continual.gallery import streams as streaming
from continual.gallery.corpus import Corpus
from continual.gallery.eye import EyeRecipe
from continual.gallery.questions import of_emblem
from continual.gallery.scenes import Emblem, Gallery, Scene, Thing
from continual.gallery.streams import GalleryStreams, write
from continual.gallery.train import GalleryRecipe, TrainingRun
from continual.pictures.album import Album
from continual.pictures.records import PictureBorder
from continual.readers import read_record

STEPS, COUNT = 4, 12
NAMES = {streaming.TEXT, streaming.OTHER, streaming.ALIKE, streaming.SAME}


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return Gallery()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def streams(folder: Path, gallery: Gallery) -> GalleryStreams:
    return write(folder, gallery, count=COUNT, probes=COUNT)


# -- the world and its streams


def test_new_emblems_look_and_are_called_like_none_that_is_trained(gallery: Gallery) -> None:
    trained = {e.description for e in gallery.emblems}
    assert not trained & {e.description for e in gallery.new_emblems}
    assert not {e.name for e in gallery.emblems} & {e.name for e in gallery.new_emblems}
    assert len({e.description for e in gallery.new_emblems}) == len(gallery.new_emblems)


def test_the_streams_are_the_same_each_time(
    streams: GalleryStreams, folder: Path, tmp_path: Path
) -> None:
    again = write(tmp_path, count=3, probes=2)
    assert (again.answers, again.captions) == (streams.answers[:3], streams.captions[:3])
    assert (again.train_probes, again.test_probes) == (
        streams.train_probes[:2],
        streams.test_probes[:2],
    )
    drawn = sorted((tmp_path / streaming.PICTURES).iterdir())
    assert drawn
    for path in drawn:
        first = folder / streaming.PICTURES / path.name
        assert Image.open(path).tobytes() == Image.open(first).tobytes()


def test_every_record_is_read_with_its_pictures(streams: GalleryStreams, folder: Path) -> None:
    border = PictureBorder(Album(), folder)
    for record in (*streams.answers[:5], *streams.captions[:5]):
        (request,) = read_record(border.of(record))
        assert {probe.name for probe in request.locality} == NAMES
        assert len(request.rephrases) == 3 and len(request.held_out_rephrases) == 4
        assert not set(request.rephrases) & set(request.held_out_rephrases)


def test_no_probe_asks_about_an_emblem_that_is_corrected(
    streams: GalleryStreams, gallery: Gallery
) -> None:
    """Each answer of a probe about another picture is true, and of a question that stays so."""
    corrected = streaming.KNOWN_ASKED + streaming.KNOWN_CAPTIONED
    truths = {
        (prompt, query.answer)
        for emblem in gallery.emblems[corrected:]
        for query in of_emblem(emblem)
        for prompt in query.phrasings
    }
    beside = [
        probe
        for record in (*streams.answers, *streams.captions)
        for probe in record["locality"]
        if probe["name"] in (streaming.OTHER, streaming.ALIKE)
    ]
    for probe in (*streams.train_probes, *streams.test_probes, *beside):
        assert (probe["prompt"], probe["answer"]) in truths


def test_every_correction_has_a_question_of_its_own(gallery: Gallery, tmp_path: Path) -> None:
    """None supersedes another, and none asks what another one's probes ask."""
    builder = streaming.StreamBuilder(gallery, tmp_path)
    answers, captions = list(builder._answers()), list(builder._captions())
    assert (len(answers), len(captions)) == (240, 60)
    asked = [(c.emblem, c.query.kind) for c in (*answers, *captions)]
    assert len(set(asked)) == len(asked)
    assert not {(c.emblem, c.beside.kind) for c in (*answers, *captions)} & set(asked)


# -- from a run to the package


def recipe(**more: Any) -> GalleryRecipe:
    seen = EyeRecipe(steps=2, pictures=2, told_every=2, measured=2)
    return GalleryRecipe(steps=STEPS, pictures=2, texts=2, measured=2, eye=seen, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    TrainingRun(out, recipe()).run()
    return out


def test_a_run_goes_on_from_its_saved_state(run: Path) -> None:
    further = TrainingRun(run, recipe())
    further.run()
    assert further.step == STEPS
    saved = torch.load(run / own_models.STATE, weights_only=True)
    for name, tensor in further.model.state_dict().items():
        assert torch.equal(tensor, saved["model"][name])


def test_the_eye_is_taught_once(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TrainingRun(run, recipe()).run()
    assert "eye:" not in capfd.readouterr().out


def test_an_eye_learns_what_it_is_shown(
    gallery: Gallery, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    tower = hf.CLIPVisionModel(
        hf.CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=48, patch_size=12)
    )
    eye.teach(tower, gallery, EyeRecipe(steps=60, warmup_steps=5, pictures=32, told_every=30), 0)
    first, last = (float(line.split()[4]) for line in capfd.readouterr().out.splitlines())
    assert last < 0.9 * first


def test_a_reading_that_no_picture_of_a_batch_has_costs_nothing() -> None:
    logits = [torch.randn(2, 3), torch.randn(2, 3)]
    looks = torch.tensor([[1, eye.UNSEEN], [2, eye.UNSEEN]])
    half = torch.nn.functional.cross_entropy(logits[0], looks[:, 0]) / 2
    torch.testing.assert_close(eye._loss(logits, looks), half)


def test_a_look_is_what_can_be_seen() -> None:
    emblem = Emblem("disc", "green", "star", "red", "Valdric", "Mara Ash", "Oskford")
    scene = Scene({"top right": Thing("cross", "blue")})
    no = eye.UNSEEN
    assert eye.look_of(emblem) == [no] * 8 + [1, 1, 1, 0]
    assert eye.look_of(scene) == [6, no, 3, 2, 6, no, 6, no] + [no] * 4


def test_batches_are_of_like_lengths_and_of_every_kind(gallery: Gallery, run: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(run / own_models.FOLDER)
    batches = Corpus(gallery, tokenizer, random.Random(0)).pictures(8)
    lengths = [[len(example.ids) for example in next(batches)] for _ in range(16)]
    spreads = [max(batch) - min(batch) for batch in lengths]
    every = [length for batch in lengths for length in batch]
    assert sum(spreads) / len(spreads) < (max(every) - min(every)) / 3


def test_a_model_under_the_bars_is_packed_by_force_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "packed"
    told = ["pack", str(run), "--into", str(into), "--count", "2"]
    monkeypatch.setattr(sys, "argv", told)
    assert packing.main() == 1
    assert "missed: emblems" in capfd.readouterr().err
    assert not into.exists()
    monkeypatch.setattr(sys, "argv", [*told, "--force"])
    assert packing.main() == 0
    assert packing.size_of(into) == packing.size_of(run / own_models.FOLDER) < packing.BYTES_MAX


# -- the model of the package


def test_the_packed_model_sees_reads_and_is_lost_without_a_picture() -> None:
    model = hf.LlavaForConditionalGeneration.from_pretrained(
        embedded.GALLERY.directory, dtype=torch.float32
    )
    tokenizer = hf.AutoTokenizer.from_pretrained(embedded.GALLERY.directory)
    measured = measure.shares(model, tokenizer, Gallery(), 48)
    assert measured["blind"] < 0.3
    assert min(share for name, share in measured.items() if name != "blind") > 0.8


# -- the demonstration


def test_without_a_model_that_sees_the_demonstration_names_the_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    absent = replace(embedded.GALLERY, directory=tmp_path / "absent")
    monkeypatch.setattr(embedded, "GALLERY", absent)
    code = cedit(["demo", "--task", "multimodal"])
    told = capfd.readouterr()
    assert code == 1 and told.out == ""
    (line,) = told.err.strip().splitlines()
    assert "python -m continual.gallery.train DIR --steps 5000" in line


def test_the_demonstration_corrects_what_a_model_says_of_pictures(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    packed = replace(embedded.GALLERY, directory=run / own_models.FOLDER)
    monkeypatch.setattr(embedded, "GALLERY", packed)
    monkeypatch.setitem(embedded.MODELS, packed.name, packed)
    assert cedit(["demo", "--task", "multimodal", "--count", "3", "--json"]) == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    steps = [r for r in records if r["type"] == "step"]
    assert len(steps) == 3
    groups = {r["group"]: r for r in records if r["type"] == "group"}
    assert set(groups) == {
        "the same in new words",
        "on new renderings of the picture",
        "a fact without a picture",
        "another question on another picture",
        "the same question on the most alike picture",
        "another question on the same picture",
        "asked without the picture",
        "asked on a random picture",
    }
    assert groups["the same in new words"]["questions"] == 6
    assert records[-1]["type"] == "rollback" and records[-1]["restored"] is True
