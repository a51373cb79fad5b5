"""MMEdit (Cheng et al. 2023): edits to models that see, questions (E-VQA) and captions (E-IC).

With pictures a request is asked as MMEdit's code asks it: a question as "Question: … Short answer:"
behind its picture, a caption as it is. Its rephrase, and its own prompt behind the rephrased
picture, are held out; text locality and picture locality are probes of these names. Without
pictures, for a model of texts, the textual side alone is read: captions then share one prompt and
compete with each other. ``case`` keeps the picture's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from continual.picture_marks import digests_in
from continual.readers import fields
from continual.readers.zsre_mend import natural_question
from continual.requests import Probe, Request

NAME = "mmedit"
LEFT_OUT = frozenset({"image_rephrase", "m_loc", "m_loc_q", "m_loc_a"})
QUESTION = "Question: {} Short answer:"
CAPTIONED = "a photo of"  # the source of every caption
PICTURE = "picture"
"""The name of the probe of picture locality."""


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record has MEND's keys and a picture."""
    return {"src", "alt", "image"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the edit: with its pictures where these are marks, else its textual part."""
    picture = fields.text(record, "image")
    if digests_in(picture):
        return [_pictured(record, picture)]
    request = Request(
        prompt=fields.text(record, "src"),
        target_new=fields.text(record, "alt"),
        target_old=fields.optional_text(record, "pred"),
        held_out_rephrases=fields.one_or_more_texts(record, "rephrase"),
        locality=natural_question(record),
        case=fields.identifier(record, "image"),
    )
    return [request]


def _pictured(record: Mapping[str, object], picture: str) -> Request:
    """Read an edit whose pictures are marks."""
    source = fields.text(record, "src")
    is_caption = source.strip().lower() == CAPTIONED
    prompt = source if is_caption else QUESTION.format(source)
    wordings = fields.one_or_more_texts(record, "rephrase")
    rephrases = [w if is_caption else QUESTION.format(w) for w in wordings]
    held_out = [f"{picture}{wording}" for wording in rephrases]
    if other := _mark(record, "image_rephrase"):
        held_out.append(f"{other}{prompt}")
    return Request(
        prompt=f"{picture}{prompt}",
        target_new=fields.text(record, "alt"),
        target_old=fields.optional_text(record, "pred"),
        held_out_rephrases=tuple(held_out),
        locality=(*natural_question(record), *_picture_locality(record)),
    )


def _picture_locality(record: Mapping[str, object]) -> Iterator[Probe]:
    picture = _mark(record, "m_loc")
    question = fields.optional_text(record, "m_loc_q")
    answer = fields.first_answer(record, "m_loc_a")
    if picture and question is not None and answer is not None:
        prompt = f"{picture}{QUESTION.format(question)}"
        yield Probe(prompt=prompt, answer=answer, name=PICTURE)


def _mark(record: Mapping[str, object], key: str) -> str | None:
    """Return the mark under a key; None where there is no picture."""
    text = fields.optional_text(record, key)
    return text if text is not None and digests_in(text) else None
