"""A model's view of pictures: each is a run of states in the place of token embeddings.

The states of a picture, its *prefix*, are computed once, from this picture alone, and kept until a
parameter in front of them changes. Ids of pictures among a model's tokens then stand for these
states, so that every pass over tokens, whole or partial, sees the pictures as well. Finds the parts
by structure: `get_image_features`, and the token that holds a picture's place. Leaves prompts to
the tasks, and the pictures to the album.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from continual import hooks
from continual.anatomy import sample_inputs
from continual.anatomy.text_side import run_on_tokens
from continual.errors import ModelError
from continual.out_of_memory import is_out_of_memory
from continual.picture_marks import (
    FIRST_ID,
    PLACES_MAX,
    digests_in,
    key_of,
    picture_ids,
    place_of,
    replaced,
)
from continual.pictures import Album
from continual.pictures.content import as_image
from continual.storage import input_device

if TYPE_CHECKING:
    from continual.base import PretrainedBase

PREFIX_BYTES_MAX = 512 << 20  # of all prefixes that are kept
SAMPLE_SIDE, SAMPLE_TOKENS = 40, 5  # of the picture and the text that a model is checked on
TOLERANCE_ROUNDINGS = 64  # of the number format, between a prefix alone and in a pass

_SAMPLE = "0" * 64
_BLOCK = re.compile(r"(.*?\.\d+)\.")
_UNABLE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
_KNOWN = (
    "LLaVA's and BLIP-2's class are known to (one picture, one run of states behind a projection, "
    "whatever the text)"
)


class Sight:
    """The pictures of an album as a base model sees them."""

    def __init__(self, base: PretrainedBase, album: Album) -> None:
        """Raises ModelError for a model or a directory without the parts that see."""
        self.base, self.album = base, album
        self.processor = _required_processor(base)
        self.token = _placeholder(base)
        self._prefixes: OrderedDict[str, Tensor] = OrderedDict()
        self._state: tuple[tuple[int, int], ...] = ()
        self._stack = ExitStack()
        self._is_attached = False
        self._sample: dict[str, Tensor] = {}  # the prefix that the model is checked with

    @property
    def placeholder(self) -> str:
        """The text of the token that holds a picture's place."""
        return str(self.base.tokenizer.convert_ids_to_tokens(self.token))

    # -- pictures as states

    def ids(self, digest: str) -> tuple[int, ...]:
        """Return the ids of a picture, one for each place that it takes. Raises PictureError for
        one that is not in the album, ModelError for one that takes too many places."""
        digest = self.album.digest(digest)
        count = len(self.prefix(digest))
        if count > PLACES_MAX:
            raise ModelError(
                f"A picture takes {count} places in {type(self.base.model).__name__}, more than "
                f"the {PLACES_MAX} that are supported."
            )
        return picture_ids(digest, count)

    def prefix(self, key: str) -> Tensor:
        """Return the states [places, d] of a picture, by its digest or key."""
        self.attach()
        if key in self._sample:
            return self._sample[key]
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._front):
            return self._states(key)
        state = tuple((p.data_ptr(), p._version) for p in self._front)
        if state != self._state:
            self._prefixes.clear()
            self._state = state
        digest = self.album.digest(key)
        if digest not in self._prefixes:
            with torch.inference_mode(False), torch.no_grad():
                self._prefixes[digest] = self._states(digest)
        self._prefixes.move_to_end(digest)
        self._make_room()
        return self._prefixes[digest]

    def _make_room(self) -> None:
        sizes = [p.numel() * p.element_size() for p in self._prefixes.values()]
        while sum(sizes) > PREFIX_BYTES_MAX and len(sizes) > 1:
            self._prefixes.popitem(last=False)
            sizes.pop(0)

    def _states(self, key: str) -> Tensor:
        """Compute a picture's states [places, d], in a pass over this picture alone."""
        return self.seen(self.album.pixels(key))

    def seen(self, pixels: Tensor) -> Tensor:
        """Compute the states [places, d] of pixels [height, width, 3] uint8."""
        model = self.base.model
        found = model.get_image_features(**self.model_inputs(pixels), return_dict=True)
        states = getattr(found, "pooler_output", found)
        if isinstance(states, list | tuple):
            (states,) = states
        assert isinstance(states, Tensor)
        weight = model.get_input_embeddings().weight
        return states.reshape(-1, states.shape[-1]).to(weight.device, weight.dtype)

    def model_inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the inputs that the directory's own processor makes of a picture."""
        device = input_device(self.base.model)
        dtype = self.base.model.get_input_embeddings().weight.dtype
        made: Mapping[str, Tensor] = self.processor(images=[as_image(pixels)], return_tensors="pt")
        return {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in made.items()
        }

    @cached_property
    def _front(self) -> Sequence[torch.nn.Parameter]:
        """The parameters that a picture's states depend on: of all modules that make them."""
        return [self.base.model.get_parameter(path) for path in self.front_paths]

    @cached_property
    def front_paths(self) -> tuple[str, ...]:
        """The paths of the parameters that a picture's states depend on, in the order in which
        their modules end."""
        paths = [path for module in self._ended for path in self._own_parameters(module)]
        around = {module.rpartition(".")[0] for module in self._ended} - set(self._ended)
        while parents := {m.rpartition(".")[0] for m in around} - around - set(self._ended):
            around |= parents
        paths += filter(self._moves, (p for m in sorted(around) for p in self._own_parameters(m)))
        return tuple(dict.fromkeys(paths))

    def _own_parameters(self, path: str) -> list[str]:
        """Return the paths of a module's parameters, without those of modules inside."""
        own = self.base.model.get_submodule(path).named_parameters(recurse=False)
        return [f"{path}.{name}" if path else name for name, _ in own]

    @cached_property
    def _ended(self) -> tuple[str, ...]:
        """The paths of the modules that run for a picture, in the order in which they end."""
        ended: list[str] = []
        modules = dict(self.base.model.named_modules())
        with torch.no_grad(), hooks.watched(modules, lambda path, _: ended.append(path)):
            self.seen(sample_pixels())
        return tuple(dict.fromkeys(ended))

    @cached_property
    def projection_paths(self) -> tuple[str, ...]:
        """The paths of the parameters between the vision side and the text side: those of the last
        module of the model's body that ran whole for a picture."""
        depths = {path: path.count(".") for path in self._ended if path}
        shallow = min(depths.values())
        last = next(path for path in reversed(self._ended) if depths.get(path) == shallow)
        return tuple(path for path in self.front_paths if path.startswith(f"{last}."))

    @cached_property
    def last_block_paths(self) -> tuple[str, ...]:
        """The paths of the parameters of the last block on the vision side that pictures' states
        depend on: features are often taken before the last one. Raises ModelError without any."""
        paths = [path for path in self.front_paths if path not in self.projection_paths]
        blocks: dict[str, list[str]] = {}
        for path in paths:
            if (match := _BLOCK.match(path)) is not None:
                blocks.setdefault(match[1], []).append(path)
        for block in reversed(blocks.values()):
            if any(self._moves(path) for path in block):
                return tuple(block)
        raise ModelError(
            f"{type(self.base.model).__name__} has no list of blocks on its vision side: choose "
            "part = projection under [editor.ft-vision]."
        )

    def _moves(self, path: str) -> bool:
        """Tell whether a picture's states depend on a parameter."""
        parameter = self.base.model.get_parameter(path)
        parameter.requires_grad_(True)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                states = self.seen(sample_pixels())
                if not states.requires_grad:
                    return False
                total = states.square().sum()
            (gradient,) = torch.autograd.grad(total, parameter, allow_unused=True)
            return gradient is not None and bool(gradient.any())
        finally:
            parameter.requires_grad_(False)

    # -- pictures among tokens

    def attach(self) -> None:
        """Let ids of pictures stand for their states wherever the model embeds tokens."""
        if self._is_attached:
            return
        self._is_attached = True
        embedding = self.base.model.get_input_embeddings()
        inner = embedding.forward

        def embedded(ids: Tensor) -> Tensor:
            return self._embedded(inner, ids)

        self._stack.enter_context(hooks.standing_in(embedding, "forward", embedded))

    def _embedded(self, inner: Any, ids: Tensor) -> Tensor:
        """Embed tokens [.., T] among which pictures may stand: [.., T, d]."""
        is_seen = ids >= FIRST_ID
        if not bool(is_seen.any()):
            embeddings: Tensor = inner(ids)
            return embeddings
        places = ids[is_seen].tolist()
        prefixes = {key: self.prefix(key) for key in dict.fromkeys(map(key_of, places))}
        states = torch.stack([prefixes[key_of(place)][place_of(place)] for place in places])
        embeddings = inner(ids.masked_fill(is_seen, self.token)).clone()
        embeddings[is_seen] = states.to(embeddings.dtype)
        return embeddings

    def place_among(self, text: str, place: int, *, is_whole: bool) -> int:
        """Return the place of a token among the ids of a text that shows pictures, from its place
        where each picture has one token."""
        runs = [len(self.ids(digest)) for digest in digests_in(text)]
        plain = replaced(text, self.placeholder)
        ids = self.base.tokenizer(plain, add_special_tokens=not is_whole)["input_ids"]
        before = list(ids[:place]).count(self.token)
        return place + sum(run - 1 for run in runs[:before])

    # -- the check

    @torch.no_grad()
    def require_agreement(self) -> None:
        """Raise ModelError for a model whose own forward, given a picture, has other logits than a
        pass over the picture's states."""
        model, name = self.base.model, type(self.base.model).__name__
        self.attach()
        try:
            states = self.seen(sample_pixels())
            own = self._own_logits(len(states))
            ids = picture_ids(_SAMPLE, len(states))
            self._sample = {key_of(ids[0]): states}
            through_states = model(
                **self._tokens([*ids, *self._sample_text()]), use_cache=False
            ).logits[0]
        except _UNABLE as error:
            if is_out_of_memory(error) or isinstance(error, ModelError):
                raise
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{name} does not take pictures as {_KNOWN} ({cause}): models of this kind cannot "
                "be corrected with pictures. Without pictures: --task causal."
            ) from error
        finally:
            self._sample = {}
        eps = torch.finfo(own.dtype).eps
        difference = float((own.float() - through_states.float()).abs().max())
        if difference > TOLERANCE_ROUNDINGS * eps * float(own.float().abs().max()):
            raise ModelError(
                f"{name} does not take pictures as {_KNOWN}: its own logits behind a picture "
                f"differ by {difference:.2g} from those behind the picture's states. Models of "
                "this kind cannot be corrected with pictures. Without pictures: --task causal."
            )

    def _own_logits(self, places: int) -> Tensor:
        """Return [T, vocab] the logits of the model's own forward on a picture and a text."""
        inputs = self._tokens([self.token] * places + self._sample_text())
        seen = self.model_inputs(sample_pixels())
        logits: Tensor = self.base.model(**inputs, **seen, use_cache=False).logits[0]
        return logits

    def _sample_text(self) -> list[int]:
        ids: list[int] = sample_inputs(self.base.model, SAMPLE_TOKENS)["input_ids"][0].tolist()
        return [0 if token == self.token else token for token in ids]

    def _tokens(self, ids: Sequence[int]) -> dict[str, Tensor]:
        device = input_device(self.base.model)
        tokens = torch.tensor([list(ids)], device=device)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def lend_sight(task: object, model: Any) -> None:
    """Let another model of the same class see a task's pictures, each by the model's own parts, as
    long as it lives. Does nothing for a task of texts."""
    sight = getattr(task, "sight", None)
    if isinstance(sight, Sight):
        run_on_tokens(model)
        Sight(replace(sight.base, model=model), sight.album).attach()


def sample_pixels() -> Tensor:
    """Return a picture of slopes and stripes, [side, side, 3] uint8, without any meaning."""
    side = torch.arange(SAMPLE_SIDE)
    down, across = side[:, None].expand(-1, len(side)), side[None].expand(len(side), -1)
    stripes = (down + 2 * across) % 7 * 40
    return torch.stack([down * 6, across * 6, stripes], -1).to(torch.uint8)


def _required_processor(base: PretrainedBase) -> Any:
    if not callable(getattr(base.model, "get_image_features", None)):
        raise ModelError(
            f"{type(base.model).__name__} has no part that sees pictures: --task multimodal is for "
            "models of LLaVA's or BLIP-2's class. For a text model: --task causal."
        )
    if base.image_processor is None:
        raise ModelError(
            f"The directory of this {type(base.model).__name__} does not say how pictures are made "
            "into its inputs: put its processor_config.json or preprocessor_config.json there, "
            "with the processor's save_pretrained."
        )
    return base.image_processor


def _placeholder(base: PretrainedBase) -> int:
    """Return the token that holds a picture's place. Raises ModelError if none is named."""
    config = base.model.config
    for name in ("image_token_id", "image_token_index"):
        token = getattr(config, name, None)
        if isinstance(token, int) and base.unknown_token([token]) is None:
            return token
    raise ModelError(
        f"The config.json of this {type(base.model).__name__} names no token for pictures that the "
        "model has an embedding for (image_token_id): copy the one that belongs to the weights."
    )
