"""Finds the token of a prompt at which the request's subject ends.

The subject is searched for as it is written, case and all; if the prompt contains it more than
once, the first place counts (Meng et al. 2022, section 3.1: the subject's last token). Leaves the
use of that token to others.
"""

from __future__ import annotations

from typing import Any

from continual.errors import EditError


class SubjectMissing(EditError):
    """A request without a subject, or with one that its prompt does not contain."""

    def __init__(self, prompt: str, subject: str | None) -> None:
        cause = (
            "comes without a subject"
            if not subject
            else f"does not contain its subject {subject!r}"
        )
        super().__init__(
            f"The prompt {prompt!r} {cause}: give the request a subject as it is written there."
        )
        self.prompt, self.subject = prompt, subject


def subject_position(
    tokenizer: Any,
    prompt: str,
    subject: str | None,
    before: str = "",
    *,
    is_whole: bool = False,
) -> int:
    """Return the position of the subject's last token among the tokens of `before` + `prompt`.

    A subject in `before` does not count. A text that `is_whole` contains its special tokens, so the
    tokenizer adds none. Raises SubjectMissing.
    """
    if not subject or subject not in prompt:
        raise SubjectMissing(prompt, subject)
    start = len(before) + prompt.index(subject)
    end = start + len(subject)
    if getattr(tokenizer, "is_fast", False):
        return _by_offsets(tokenizer, before + prompt, (start, end), is_whole)
    return _by_beginning(tokenizer, before + prompt, end, is_whole)


def _by_offsets(tokenizer: Any, text: str, span: tuple[int, int], is_whole: bool) -> int:
    start, end = span
    adds_special = not is_whole
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=adds_special)
    offsets = encoding["offset_mapping"]
    return max(i for i, (a, b) in enumerate(offsets) if b > start and a < end)


def _by_beginning(tokenizer: Any, text: str, end: int, is_whole: bool) -> int:
    """Find the position by encoding the text up to the subject's end, for tokenizers without
    offsets.

    If the encoding differs from the whole text's at its end, a token reaches over the end of the
    subject: the first token that differs.
    """
    text_ids = list(tokenizer(text, add_special_tokens=not is_whole)["input_ids"])
    start_ids = list(tokenizer(text[:end], add_special_tokens=not is_whole)["input_ids"])
    while start_ids and start_ids[-1] in tokenizer.all_special_ids:
        start_ids.pop()
    length = 0
    while length < min(len(start_ids), len(text_ids)) and start_ids[length] == text_ids[length]:
        length += 1
    return length - 1 if length == len(start_ids) else length
