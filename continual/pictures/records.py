"""Puts the pictures of a record into the album, and their marks into its prompts.

A record names pictures under `image` or `images` (a path, a data URI, a digest), in the parts of a
message (`image_url`, as OpenAI's clients send it), and under the keys of MMEdit. A prompt shows
them where it says `<image>`, or else in front. Leaves foreign keys, whose values become marks, to
the readers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual.errors import RequestError
from continual.picture_marks import PLACEHOLDER, digests_in, mark
from continual.pictures.album import Album

PICTURES_MAX = 16  # of one prompt
OWN_KEYS = ("image", "images")
FOREIGN_KEYS = ("image_rephrase", "rephrase_image", "m_loc")
"""Keys of MMEdit's and EasyEdit's records that name a picture beside `image`."""
PROMPTS = ("prompt", "messages")
WORDINGS = ("rephrases", "held_out_rephrases")
PROBES = ("locality", "portability")
_WANTED = 'a picture is a path, a data URI, or {"url": …}'
_PARTS_MAX = 64


@dataclass(frozen=True)
class PictureBorder:
    """Takes the pictures of records into an album; relative paths are in `folder`."""

    album: Album
    folder: Path | None = None
    reads_files: bool = True  # else a picture comes with the record: a data URI, or a digest here
    keeps: bool = True  # pictures that come in are written to the store, if that can be written

    def of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record with marks in the place of its pictures. Raises RequestError, which
        names the key at fault."""
        out = {key: self._value(key, value) for key, value in record.items()}
        if not any(key in out for key in PROMPTS) or not any(key in out for key in OWN_KEYS):
            return out
        marks = [m for key in OWN_KEYS for m in _listed(out.pop(key, None))]
        for key in PROMPTS:
            if key in out:
                out[key] = shown_in(out[key], marks)
        for key in WORDINGS:
            if key in out:
                wordings = out[key] if isinstance(out[key], list) else [out[key]]
                out[key] = [shown_in(wording, marks) for wording in wordings]
        if isinstance(wording := out.get("rephrase_prompt"), str):
            out["rephrase_prompt"] = shown_in(wording, marks)
        return out if marks else {**out, **{key: record[key] for key in OWN_KEYS if key in record}}

    def prompt(self, prompt: Any, pictures: Sequence[object]) -> Any:
        """Return a prompt, a text or messages in JSON, that shows these pictures. Raises
        RequestError."""
        marks = [self._taken("images", picture) for picture in pictures]
        return shown_in(self._value("messages", prompt), marks)

    def _value(self, key: str, value: Any) -> Any:
        if key in OWN_KEYS:
            pictures = value if isinstance(value, list) else [] if value is None else [value]
            if len(pictures) > PICTURES_MAX:
                raise RequestError(f"'{key}' has {len(pictures)} pictures, over {PICTURES_MAX}")
            marks = [self._taken(key, picture) for picture in pictures]
            return marks if key == "images" or len(marks) != 1 else marks[0]
        if key in FOREIGN_KEYS and isinstance(value, str) and value.strip():
            return self._taken(key, value)
        if key in WORDINGS and isinstance(value, list):
            return [self._wording(item) for item in value]
        if key in PROBES and isinstance(value, Mapping):
            return {name: self._group(group) for name, group in value.items()}
        if key in PROBES and isinstance(value, list):
            return [self.of(item) if isinstance(item, Mapping) else item for item in value]
        if key == "messages" and isinstance(value, list):
            return [self._message(turn) for turn in value]
        return value

    def _group(self, group: Any) -> Any:
        """Return a group of EasyEdit's probes: an object with a picture, or a list of such."""
        if isinstance(group, list):
            return [self._group(entry) for entry in group]
        return self.of(group) if isinstance(group, Mapping) else group

    def _wording(self, item: Any) -> Any:
        """Return a wording; one that is an object with pictures of its own becomes its prompt."""
        if isinstance(item, Mapping) and "prompt" in item:
            return self.of(item)["prompt"]
        return item

    def _message(self, turn: Any) -> Any:
        """Return a message with its content as one text."""
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(content, list):
            return turn
        if len(content) > _PARTS_MAX:
            raise RequestError(f"'messages' has a content of {len(content)} parts")
        return {**turn, "content": "".join(map(self._part, content))}

    def _part(self, part: Any) -> str:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if kind == "image_url":
            return self._taken("messages", part.get("image_url"))
        if kind == "image":
            named = (part[key] for key in ("image", "url", "path") if key in part)
            return self._taken("messages", next(named, None))
        raise RequestError(
            "'messages' has a content part of another kind than text, image_url and image"
        )

    def _taken(self, key: str, picture: object) -> str:
        """Take a picture in, and return its mark."""
        source = picture.get("url") if isinstance(picture, Mapping) else picture
        if isinstance(source, os.PathLike):
            source = os.fspath(source)
        if isinstance(source, str) and (digests := digests_in(source)):
            self.album.require(digests)
            return source
        if not isinstance(source, str | bytes):
            raise RequestError(f"'{key}' has something else than pictures: {_WANTED}")
        if not self.reads_files and isinstance(source, str) and not _comes_along(source):
            raise RequestError(
                f"'{key}' names a file, and files of this machine are not read for others: send "
                "the picture as a data URI"
            )
        try:
            return mark(self.album.take(source, self.folder, keeps=self.keeps))
        except RequestError as error:
            raise RequestError(f"'{key}': {error.reason}") from None


def shown_in(prompt: Any, marks: Sequence[str]) -> Any:
    """Return a prompt in JSON with marks where it says `<image>`, else in front. In a chat the last
    message shows them. A prompt that shows pictures already stays as it is. Raises RequestError if
    it has places for another number of pictures."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        if any(_shows(turn) for turn in prompt):
            return prompt
        content = shown_in(prompt[-1].get("content"), marks)
        return [*prompt[:-1], {**prompt[-1], "content": content}]
    if not isinstance(prompt, str) or not marks or digests_in(prompt):
        return prompt
    count = prompt.count(PLACEHOLDER)
    if count == 0:
        return "".join(marks) + prompt
    if count != len(marks):
        raise RequestError(
            f"the prompt says {PLACEHOLDER} {count} times, and there are {len(marks)} pictures: "
            "give one for each"
        )
    first, *rest = prompt.split(PLACEHOLDER)
    return first + "".join(m + text for m, text in zip(marks, rest, strict=True))


def _shows(turn: Any) -> bool:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    return isinstance(content, str) and bool(digests_in(content))


def _listed(value: Any) -> list[str]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _comes_along(source: str) -> bool:
    return source[:5].lower() == "data:" or bool(digests_in(source))
