"""The bodies of requests to the OpenAI-compatible endpoints.

Fields that mean nothing here are passed over; fields whose meaning would be lost are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

TOKEN_COUNT_MAX = 1_000_000
SEED_MAX = 2**63 - 1
PARTS_MAX = 64  # of a message
Temperature = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=TOKEN_COUNT_MAX)]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class Sampled(BaseModel):
    """The fields that both kinds of requests share."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    seed: Annotated[int, Field(ge=-SEED_MAX, le=SEED_MAX)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    explain: bool = False
    """Say which edit spoke at which token."""

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of `Sampling` that are asked for."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        penalties = ("presence_penalty", "frequency_penalty", "logit_bias")
        settings = {name: getattr(self, name) for name in (*names, *penalties)}
        if self.seed is not None and self.seed < 0:
            settings["seed"] = SEED_MAX + self.seed
        return settings

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (
            ()
            if self.stop is None
            else (self.stop,)
            if isinstance(self.stop, str)
            else (*self.stop,)
        )


class TextPart(BaseModel):
    """A part of a message that is a text."""

    type: Literal["text"]
    text: str


class PictureAddress(BaseModel):
    """A picture as OpenAI's clients send it: a data URI, as nothing is fetched."""

    model_config = ConfigDict(extra="ignore")

    url: str


class PicturePart(BaseModel):
    """A part of a message that is a picture."""

    type: Literal["image_url"]
    image_url: PictureAddress


class ChatMessage(BaseModel):
    """A turn of a chat."""

    model_config = ConfigDict(extra="ignore")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: (
        str
        | Annotated[
            list[Annotated[TextPart | PicturePart, Field(discriminator="type")]],
            Field(max_length=PARTS_MAX),
        ]
    )

    @property
    def shows(self) -> bool:
        """True if a picture is among the parts."""
        return any(isinstance(part, PicturePart) for part in self.content)

    def to_json(self) -> dict[str, Any]:
        """Return the turn, with parts only where these show pictures."""
        content: Any = self.content
        if self.shows:
            content = [part.model_dump() for part in self.content if not isinstance(part, str)]
        elif not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content}


class ChatRequest(Sampled):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, body: object) -> object:
        _refuse(body, ("tools", "functions"), "cedit serves no tools: leave {} out")
        form = body.get("response_format") if isinstance(body, dict) else None
        if isinstance(form, dict) and form.get("type") not in (None, "text"):
            raise ValueError("response_format: only texts are answered")
        return body


class CompletionRequest(Sampled):
    """The body of `/v1/completions`."""

    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, body: object) -> object:
        _refuse(body, ("suffix", "echo"), "{} is not served: leave it out")
        if isinstance(body, dict) and body.get("best_of") not in (None, 1, body.get("n")):
            raise ValueError("best_of is not served: leave it out")
        return body

    @field_validator("prompt")
    @classmethod
    def _filled(cls, prompt: str | list[str]) -> str | list[str]:
        if not prompt:
            raise ValueError("is empty")
        return prompt

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def _refuse(body: object, names: tuple[str, ...], message: str) -> None:
    for name in names:
        if isinstance(body, dict) and body.get(name):
            raise ValueError(message.format(name))
