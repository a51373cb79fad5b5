"""A model that sees: its pictures stand among its tokens, and every pass sees them alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from continual.base import PretrainedBase, load_base
from continual.errors import ModelError, RequestError
from continual.model import EditedModel
from continual.picture_marks import FIRST_ID, digests_in, mark
from continual.pictures.content import read
from continual.site import Site
from continual.tasks import make_task, new_settings
from continual.tasks.multimodal import MultimodalTask
from tests import tiny_language as language
from tests.tiny_pictures import IMAGE, PLACES, picture, save_seeing

QUESTION = "the capital of Badar is"


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seeing(tmp_path_factory.mktemp("models") / "seeing")


@pytest.fixture(scope="module")
def base(seeing: Path) -> PretrainedBase:
    return load_base(seeing, MultimodalTask.architecture)


@pytest.fixture
def task(base: PretrainedBase) -> MultimodalTask:
    made = make_task(base, new_settings(base, {"name": "multimodal"}))
    assert isinstance(made, MultimodalTask)
    return made


def marked(task: MultimodalTask, number: int, text: str = QUESTION) -> str:
    return mark(task.album.add(read(_bytes(number)))) + text


def _bytes(number: int) -> bytes:
    import io

    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


@torch.no_grad()
def plain_logits(directory: Path, text: str, pictures: list[int]) -> torch.Tensor:
    """The logits of transformers' own model and processor."""
    model = hf.LlavaForConditionalGeneration.from_pretrained(directory).eval()
    processor = hf.AutoProcessor.from_pretrained(directory)
    images = [picture(number) for number in pictures]
    inputs = processor(images=images or None, text=[text], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    return model(**inputs).logits[0]


# -- tokens


def test_a_picture_takes_the_places_that_the_models_own_processor_gives_it(task, seeing):
    ids = task.question(marked(task, 1)).ids
    processor = hf.AutoProcessor.from_pretrained(seeing)
    own = processor(images=[picture(1)], text=[IMAGE + QUESTION])["input_ids"][0]
    assert [task.sight.token if token >= FIRST_ID else token for token in ids] == list(own)
    assert sum(token >= FIRST_ID for token in ids) == PLACES


def test_equal_ids_are_the_same_place_of_the_same_picture(task):
    first, same, other = (task.question(marked(task, n)).ids for n in (1, 1, 2))
    assert first == same
    assert not set(first[:PLACES]) & set(other[:PLACES])
    assert first[PLACES:] == other[PLACES:]


def test_a_prompt_says_which_pictures_it_lacks(task):
    with pytest.raises(RequestError, match=r"1 places for pictures .* shows 0"):
        task.question(f"{IMAGE} {QUESTION}")
    with pytest.raises(RequestError, match="is not in the store"):
        task.question(mark("ab" * 32) + QUESTION)


def test_the_tokens_of_a_prompt_read_back_to_the_same_tokens(task):
    ids = task.question(f"{marked(task, 1)} {marked(task, 2, '')} people").ids
    assert task.tokens(task.readable(ids)) == ids


# -- passes agree with transformers' own forward


@pytest.mark.parametrize("pictures", [[1], [1, 2], [3, 3]])
def test_a_pass_has_the_logits_of_the_models_own_forward(task, base, seeing, pictures):
    text = "".join(f"{marked(task, n, '')} people " for n in pictures) + QUESTION
    own_text = "".join(f"{IMAGE} people " for _ in pictures) + QUESTION
    encoding = task.encode(text, language.CAPITALS[3])
    with torch.no_grad():
        logits = base.model(**task.inputs([encoding])).logits[0]
    own = plain_logits(seeing, own_text, pictures)
    torch.testing.assert_close(logits[: len(own)], own, rtol=1e-4, atol=1e-5)


def test_rows_read_in_batches_and_from_the_last_block_agree_with_the_models_own(task, base, seeing):
    """Sequences of unlike lengths, with and without pictures, in one pass."""
    target = language.CAPITALS[3]
    prompts = [marked(task, 1), QUESTION, marked(task, 2, "people in Badar call their capital")]
    encodings = [task.encode(prompt, target) for prompt in prompts]
    edited = EditedModel(base)
    with edited, torch.no_grad():
        site = Site(edited, task)
        logits = site.logits(site.patched(site.rows_in_passes(encodings)))
    owns = [
        plain_logits(seeing, IMAGE + QUESTION, [1])[-1],
        plain_logits(seeing, QUESTION, [])[-1],
        plain_logits(seeing, IMAGE + "people in Badar call their capital", [2])[-1],
    ]
    torch.testing.assert_close(logits, torch.stack(owns), rtol=1e-4, atol=1e-4)


def test_generation_says_what_the_models_own_generate_says(task, base, seeing):
    answer = task.answer(base.model, task.question(marked(task, 4)), 6)
    model = hf.LlavaForConditionalGeneration.from_pretrained(seeing).eval()
    processor = hf.AutoProcessor.from_pretrained(seeing)
    inputs = processor(images=[picture(4)], text=[IMAGE + QUESTION], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    own = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert list(answer) == own[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_packed_ends_of_sequences_see_their_pictures(task, base):
    """The pass that MEMIT's searches run: the same last sums as whole sequences."""
    from continual.passes.suffix import Ends, PackedEnds, _alone, keeps_prefixes

    sequences = tuple(task.question(marked(task, n)).ids for n in (1, 2, 3))
    ends = Ends(sequences, tuple(len(ids) - 2 for ids in sequences))
    edited = EditedModel(base)
    with edited, torch.no_grad():
        assert keeps_prefixes(base.model, base.anatomy)
        run = PackedEnds(base.model, base.anatomy, ends, 0, padded_max=2.0)
        for number, ids in enumerate(sequences):
            places = torch.arange(2)
            found = run.last_sums(run.sums)[run.row(torch.full_like(places, number), places)]
            whole = _alone(base.model, base.anatomy, ids)[-2:]
            torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


# -- the prefix


def test_a_prefix_is_computed_once_until_something_before_it_changes(task, base, monkeypatch):
    digest = digests_in(marked(task, 5))[0]
    computed: list[str] = []
    states = task.sight._states
    monkeypatch.setattr(task.sight, "_states", lambda key: computed.append(key) or states(key))
    task.sight.prefix(digest)
    task.sight.prefix(digest)
    first = task.sight.prefix(digest)
    assert computed == [digest]
    path = task.sight.projection_paths[0]
    weight = base.model.get_parameter(path)
    before = weight.clone()
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        changed = task.sight.prefix(digest)
        assert computed == [digest, digest]
        assert not torch.equal(changed, first)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert torch.equal(task.sight.prefix(digest), first)


def test_the_projection_is_found_by_structure(task):
    assert set(task.sight.projection_paths) == {
        f"model.multi_modal_projector.linear_{n}.{kind}"
        for n in (1, 2)
        for kind in ("weight", "bias")
    }


# -- models that do not see


def test_a_model_of_texts_is_refused_with_a_clear_error(random_model: Path):
    with pytest.raises(ModelError, match=r"pictures|multimodal|image"):
        base = load_base(random_model, MultimodalTask.architecture)
        make_task(base, {"name": "multimodal"})


def test_a_directory_without_a_processor_is_refused(seeing: Path, tmp_path: Path):
    import shutil

    copy = shutil.copytree(seeing, tmp_path / "copy")
    for name in ("processor_config.json", "preprocessor_config.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        make_task(load_base(copy, MultimodalTask.architecture), {"name": "multimodal"})
