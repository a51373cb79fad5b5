"""A prompt in a user's turn, by the tokenizer's own chat template. Knows tokenizers alone."""

from __future__ import annotations

from typing import Any

SENTINEL = "\ue000\ue001"


def user_turn(tokenizer: Any) -> tuple[int, ...] | None:
    """The tokens before a user's words; None for a tokenizer without a usable chat template."""
    rendered = _rendered(tokenizer, SENTINEL, is_asked=False)
    if rendered is None or rendered.count(SENTINEL) != 1:
        return None
    return _ids(tokenizer, rendered[: rendered.index(SENTINEL)])


def in_user_turn(tokenizer: Any, prompt: str) -> tuple[int, ...] | None:
    """The tokens of a user's turn with this prompt, up to the answer; None without a template."""
    rendered = _rendered(tokenizer, prompt, is_asked=True)
    return None if rendered is None else _ids(tokenizer, rendered)


def _rendered(tokenizer: Any, content: str, *, is_asked: bool) -> str | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    turn = [{"role": "user", "content": content}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=is_asked)
    except Exception:  # a template is a program of the model's makers: it may fail in any way
        return None
    return str(text)


def _ids(tokenizer: Any, text: str) -> tuple[int, ...] | None:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) or None
