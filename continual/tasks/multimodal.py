"""The multimodal task: a decoder continues a prompt that may show pictures.

It is the causal task with pictures among the tokens: the mark of a picture in a prompt becomes the
run of its ids, at the place where the model's own processor would put it, and the model embeds them
as the picture's states; see `sight`. Everything else, from whole passes to the ends of sequences,
works on tokens as for text. Leaves the pictures to the album.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from continual.base import WrongBaseModel
from continual.errors import RequestError
from continual.picture_marks import (
    FIRST_ID,
    digests_in,
    mark,
    marked,
    replaced,
    text_ids,
    without_marks,
)
from continual.pictures import Album
from continual.prompts import Message
from continual.requests import Limits
from continual.tasks.causal import CausalTask
from continual.tasks.chat import ChatTemplate
from continual.tasks.joining import AUTO, is_in_place
from continual.tasks.sight import Sight
from continual.tasks.tokens import PromptReader

if TYPE_CHECKING:
    from continual.base import PretrainedBase

_DIGEST_DIGITS = 16
_NAMES = ("image_processor_type", "processor_class", "backend", "data_format")


@dataclass(frozen=True)
class PictureReader(PromptReader):
    """A tokenizer with the pictures that prompts may show."""

    sight: Sight | None = None  # never None: a dataclass's fields with defaults come first

    @property
    def seen(self) -> Sight:
        """The model's view of pictures."""
        assert self.sight is not None
        return self.sight

    def ids(self, text: str, *, is_whole: bool = False, ends: bool = True) -> tuple[int, ...]:
        """Return the tokens of a text, with a run of ids for each picture. Raises RequestError for
        a picture that is not here, and for a place without a picture."""
        digests = digests_in(text)
        text = replaced(text, self.seen.placeholder) if digests else text
        ids = super().ids(text, is_whole=is_whole, ends=ends)
        places = ids.count(self.seen.token)
        if places != len(digests):
            raise RequestError(
                f"The prompt has {places} places for pictures ({self.seen.placeholder}), and shows "
                f"{len(digests)}: give one picture for each, under 'images'."
            )
        pictures = iter(digests)
        runs = (
            self.seen.ids(next(pictures)) if token == self.seen.token else (token,) for token in ids
        )
        ids = tuple(token for run in runs for token in run) if digests else ids
        return ids if is_whole else self._with_pictures_in_front(ids)

    def letters(self, ids: Sequence[int]) -> str:
        """See `PromptReader.letters`."""
        begin, count = self._around[0], _pictures_at(ids, 0)
        if self.base.pictures_lead and count and tuple(ids[count : count + len(begin)]) == begin:
            ids = [*begin, *ids[:count], *ids[count + len(begin) :]]
        return super().letters(ids)

    def _with_pictures_in_front(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Put the pictures that a text begins with before the tokens that begin every text, if the
        model's own processor does."""
        begin = self._around[0]
        if not self.base.pictures_lead or not begin or ids[: len(begin)] != begin:
            return ids
        end = len(begin) + _pictures_at(ids, len(begin))
        return (*ids[len(begin) : end], *begin, *ids[end:])

    def _spelled(self, ids: Sequence[int], **options: Any) -> str:
        return marked(self.tokenizer, ids, clean_up_tokenization_spaces=False, **options)


def _pictures_at(ids: Sequence[int], start: int) -> int:
    """Return the number of ids of pictures from a place on."""
    end = start
    while end < len(ids) and ids[end] >= FIRST_ID:
        end += 1
    return end - start


class PictureChatTemplate(ChatTemplate):
    """A chat template whose messages may show pictures.

    Templates of models that see take a message's content as parts, and put the place of a picture
    for each; others take a text.
    """

    def __init__(self, tokenizer: Any, placeholder: str) -> None:
        super().__init__(tokenizer)
        self._placeholder = placeholder

    def _rendered(self, messages: Sequence[Message], *, opens_turn: bool) -> str:
        if self.text is None or "content" not in self.text:
            return super()._rendered(messages, opens_turn=opens_turn)
        plain = [{"role": m.role, "content": m.content} for m in messages]
        text = self._applied(plain, opens_turn=opens_turn)
        if all(message.content.strip() in text for message in messages):
            return text
        parts = [{"role": m.role, "content": _parts(m.content)} for m in messages]
        text = self._applied(parts, opens_turn=opens_turn)
        digests = [digest for m in messages for digest in digests_in(m.content)]
        if text.count(self._placeholder) != len(digests):
            raise RequestError(
                f"the model's chat template has {text.count(self._placeholder)} places for the "
                f"{len(digests)} pictures of the messages: give the prompt as a text"
            )
        first, *rest = text.split(self._placeholder)
        marks = [mark(digest) for digest in digests]
        return first + "".join(m + t for m, t in zip(marks, rest, strict=True))


def _parts(content: str) -> list[dict[str, str]]:
    """Return a message's content as parts: its pictures, then its text."""
    pictures = [{"type": "image"} for _ in digests_in(content)]
    return [*pictures, {"type": "text", "text": without_marks(content)}]


class MultimodalTask(CausalTask):
    """The task of a decoder that sees pictures: LLaVA's and BLIP-2's class."""

    name: ClassVar[str] = "multimodal"
    architecture: ClassVar[str] = "AutoModelForImageTextToText"

    def __init__(self, reader: PromptReader, terminator: str = "", blank: str = AUTO) -> None:
        assert isinstance(reader, PictureReader)
        super().__init__(reader, terminator, blank)
        self.sight = reader.seen
        self.album: Album = self.sight.album
        self._template = PictureChatTemplate(reader.tokenizer, self.sight.placeholder)

    @classmethod
    def of(cls, base: PretrainedBase, settings: Mapping[str, Any], limits: Limits) -> CausalTask:
        """See `Task.of`; `processor` is the digest of the part that makes pictures into inputs.
        Raises WrongBaseModel if the directory has another one, ModelError for a model that does not
        see."""
        task = super().of(base, settings, limits)
        digest = settings.get("processor")
        if digest not in (None, _digest_of(base.image_processor)):
            raise WrongBaseModel(
                "The model's directory makes pictures into other inputs than when this store was "
                f"made ([task] processor = {digest}): put its processor_config.json or "
                "preprocessor_config.json back, or make a new store."
            )
        return task

    @classmethod
    def _reader_of(
        cls, base: PretrainedBase, settings: Mapping[str, Any], limits: Limits
    ) -> PromptReader:
        sight = Sight(base, Album())
        return PictureReader(base, limits, base.pad, is_in_place(settings), sight)

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`: the digests of the chat template and of the picture processor."""
        return {**super().settings(), "processor": _digest_of(self.sight.processor)}

    def text(self, answer: Sequence[int]) -> str:
        """Return the words up to the terminator, or up to the end of the turn."""
        return super().text(text_ids(answer))


def _digest_of(processor: Any) -> str:
    """Return a name for a picture processor by its settings, whichever library works by them."""
    settings = {k: v for k, v in processor.to_dict().items() if k not in _NAMES and k[0] != "_"}
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]
