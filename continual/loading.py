"""Loads a model directory with transformers, and refuses a model that would be silently wrong.

Transformers makes up the tensors that a checkpoint lacks, leaves out its surplus ones, and asks on
standard input whether to run a directory's code. Here a model is loaded whole or not at all, and no
code of its directory is run. Leaves the look at the files themselves to `model_files`, and the
model's behaviour to `base` and the tasks.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from continual.errors import ModelError, first_line
from continual.model_files import (
    PACKERS,
    has_tokenizer,
    is_gguf,
    packing_of,
    read_json,
    require_loadable,
)
from continual.out_of_memory import is_out_of_memory
from continual.placement import Placement
from continual.storage import at_hand, inner_tensors

REPACKS = "support_avx512bf16_for_cpu"
"""The attribute of a layer of bitsandbytes that lets it pack its matrix anew."""
NAMED_MAX = 3  # tensors in a message
SAMPLE_SIDE = 32  # pixels of a picture that a processor is tried on
CAUSAL = "AutoModelForCausalLM"
SEEING = "AutoModelForImageTextToText"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""The files that say how pictures are made into inputs."""
HOLDING_DECODERS = ("AutoModelForMultimodalLM", "AutoModelForSeq2SeqLM")
"""Tables of transformers' with classes around a decoder that are not in the causal one: of images,
and of sound."""
Part = TypeVar("Part")

_OFFLINE = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, without gradients, on the CPU or as placed; and its tokenizer."""

    model: Any
    tokenizer: Any
    notes: tuple[str, ...]  # remarks for a person to read
    image_processor: Any = None  # makes pictures into inputs; None for a model of texts
    pictures_lead: bool = False  # a first picture stands before the tokens that begin a text


def load_pretrained(
    directory: Path,
    architecture: str,
    dtype: torch.dtype,
    placement: Placement | None = None,
) -> Loaded:
    """Load a model directory by a class of transformers'.

    Raises ModelError for a model with tensors that are missing, of another shape, or not finite,
    and for anything that transformers cannot load.
    """
    import transformers

    require_loadable(directory)
    config = _config(directory)
    tokenizer = _tokenizer(directory)
    auto = getattr(transformers, _usable_class(config, architecture))
    place, options = _place(directory)
    packing = packing_of(directory)
    if packing in PACKERS:
        _require_format(directory, config, dtype)
        logging.getLogger(packing).setLevel(logging.ERROR)  # it warns of casts in every pass
    if options:
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, report = _attempt(
        lambda: auto.from_pretrained(
            place,
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=not packing,  # they are refused below, by name
            output_loading_info=True,
            **(options or {"use_safetensors": True}),
            **(placement or Placement()).options(),
            **_OFFLINE,
        ),
        directory,
        "model",
    )
    model = _unchanging(model.eval().requires_grad_(False))
    _require_whole(directory, model, report)
    if options:
        model = _unpacked(model, dtype)
    if packing not in PACKERS:
        _require_plain_numbers(directory, model)
    _require_finite(directory, model)
    _require_rows(directory, model, tokenizer)
    notes = tuple(_notes(directory, model, tokenizer, report))
    image_processor = _image_processor(directory, architecture)
    pictures_lead = image_processor is not None and _pictures_lead(directory, tokenizer)
    return Loaded(model, tokenizer, notes, image_processor, pictures_lead)


def _unchanging(model: Any) -> Any:
    """Return the model, kept from packing its matrices anew at its first pass: bitsandbytes does so
    on some CPUs, rounds their scales, and has no gradients afterwards."""
    for module in model.modules():
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
    return model


def _require_format(directory: Path, config: Any, dtype: torch.dtype) -> None:
    """Raise ModelError for a packed checkpoint that would run in another number format than it was
    packed for: its layers and those between them would not fit each other."""
    packed_for = getattr(config, "dtype", None) or dtype
    if packed_for != dtype:
        name = str(packed_for).removeprefix("torch.")
        raise ModelError(
            f"The model in {directory} is packed for {name}, and cannot be loaded in "
            f"{str(dtype).removeprefix('torch.')}: give --dtype {name}."
        )


def _place(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a model's files, and for a GGUF file the options that name it."""
    return (
        (directory.parent, {"gguf_file": directory.name}) if is_gguf(directory) else (directory, {})
    )


def _unpacked(model: Any, dtype: torch.dtype) -> Any:
    """Return a plain model with the numbers of one that was read from a GGUF file: the latter can
    be neither saved nor copied."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = assembled(type(model), config, model.state_dict(), dtype)
    if plain.can_generate():
        plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def assembled(
    model_class: Any, config: Any, state: Mapping[str, Tensor], dtype: torch.dtype
) -> Any:
    """Make a model of a config and of tensors by their names in it, as transformers loads them: in
    eval mode, without gradients. It may share memory with the tensors.

    Raises ModelError if the tensors are not exactly those that the config asks for.
    """
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=dict(state), dtype=dtype, output_loading_info=True
    )
    odd = [f"{key} ({kind})" for kind, keys in report.items() for key in keys]
    if odd:
        raise ModelError(
            f"{len(odd)} tensors do not fit a {model_class.__name__} of this config: "
            f"{_named(sorted(odd))}. Save in another form (`cedit save --forms` lists them)."
        )
    return model.eval().requires_grad_(False)


def _usable_class(config: Any, architecture: str) -> str:
    """Return the class of transformers' to load a model by. A class of texts with images or sound
    takes texts alone, too: its text decoder is a causal model."""
    import transformers

    if architecture != CAUSAL or getattr(config, "is_encoder_decoder", False):
        return architecture
    for name in (architecture, *HOLDING_DECODERS):
        table = getattr(transformers, name, None)
        if table is not None and type(config) in table._model_mapping:
            return name
    return architecture


def _config(directory: Path) -> Any:
    import transformers

    place, options = _place(directory)
    return _attempt(
        lambda: transformers.AutoConfig.from_pretrained(place, **options, **_OFFLINE),
        directory,
        "config",
    )


def _image_processor(directory: Path, architecture: str) -> Any:
    """Load the part that makes pictures into inputs; None without one, or for another class."""
    if architecture != SEEING or not any((directory / name).is_file() for name in PROCESSORS):
        return None
    import transformers

    return _attempt(
        lambda: transformers.AutoImageProcessor.from_pretrained(directory, **_OFFLINE),
        directory,
        "image processor",
    )


def _pictures_lead(directory: Path, tokenizer: Any) -> bool:
    """Tell whether the directory's own processor puts a picture before the tokens that begin a
    text. False for a tokenizer without such tokens, and for a directory without a processor of
    texts."""
    import transformers

    text = "a"
    ids = list(tokenizer(text)["input_ids"])
    if ids == list(tokenizer(text, add_special_tokens=False)["input_ids"]):
        return False
    try:
        processor = transformers.AutoProcessor.from_pretrained(directory, **_OFFLINE)
        picture = torch.zeros(SAMPLE_SIDE, SAMPLE_SIDE, 3, dtype=torch.uint8).numpy()
        whole = list(processor(images=[picture], text=[text])["input_ids"][0])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False
    return len(whole) > len(ids) and whole[-len(ids) :] == ids


def _tokenizer(directory: Path) -> Any:
    """Load the tokenizer of a directory. Raises ModelError if it has none of its own: transformers
    makes one up for some models."""
    import transformers

    absent = ModelError(
        f"The model in {directory} has no tokenizer: put its own there, with the tokenizer's "
        "save_pretrained."
    )
    if not has_tokenizer(directory):
        raise absent
    place, options = _place(directory)
    tokenizer = _attempt(
        lambda: transformers.AutoTokenizer.from_pretrained(place, **options, **_OFFLINE),
        directory,
        "tokenizer",
    )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise absent
    return tokenizer


# --- errors of transformers -----------------------------------------------------------------------


def _attempt(load: Callable[[], Part], directory: Path, part: str) -> Part:
    """Return the part that `load` gives. Raises ModelError for any error of it: the directory is
    input. Lets a shortage of memory pass."""
    try:
        return load()
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, ModelError):
            raise
        raise _cannot_load(directory, part, error) from error


def _cannot_load(directory: Path, part: str, error: Exception) -> ModelError:
    quantised = packing_of(directory)
    if part == "model" and quantised:
        return ModelError(
            f"The model in {directory} is quantised ({quantised}) and cannot be loaded: "
            f"{first_line(error)}. Give the checkpoint that it was made of, in float32, bfloat16 "
            "or float16: edits are added to plain numbers."
        )
    what = {"config": "config.json", "model": "model"}.get(part, part)
    return ModelError(
        f"The {what} in {directory} cannot be loaded: {first_line(error)}."
        + _advice(directory, part, error)
    )


def _advice(directory: Path, part: str, error: Exception) -> str:
    """Return a remedy, as a further sentence."""
    text = str(error)
    if is_gguf(directory) and not isinstance(error, ImportError):
        return " Give the directory of the checkpoint that it was made of, or another conversion."
    if "custom code" in text or "trust_remote_code" in text:
        return (
            " Code out of a model's directory is never run: give it a "
            f"{part} in a format that transformers has a class for."
        )
    if isinstance(error, ImportError):
        return " Install what it names, then try again."
    if "Unrecognized configuration class" in text:
        return _other_task(directory)
    if part == "tokenizer":
        return (
            " Put the model's own tokenizer there, with the save_pretrained of a fast tokenizer "
            "(tokenizer.json)."
        )
    if not read_json(directory, "config.json").get("model_type"):
        return " Its config.json names no model_type: copy the one that belongs to the weights."
    return " Copy the model anew, or try another version of transformers."


def _other_task(directory: Path) -> str:
    named = read_json(directory, "config.json").get("architectures") or ["none"]
    return (
        f" Its config.json names the class {named[0]}. A text model is loaded with --task causal, "
        "seq2seq or classification; of a model for images or sound, save its text model alone "
        "(language_model.save_pretrained) with its tokenizer."
    )


# --- checks of the loaded model -------------------------------------------------------------------


def _require_whole(directory: Path, model: Any, report: Mapping[str, Any]) -> None:
    """Raise ModelError for tensors that are made up, of another shape, or not converted."""
    name = type(model).__name__
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"The checkpoint in {directory} lacks {_named(missing)} of {name}: they would be made "
            f"up at random, others each time. {_whose(directory, name)}"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        key, file_shape, model_shape = mismatched[0]
        raise ModelError(
            f"{key} in {directory} has the shape {list(file_shape)}, and {name} takes "
            f"{list(model_shape)} ({_named([key for key, *_ in mismatched])} in all): the weights "
            "and config.json are of two models. Put both of one there."
        )
    if problems := [*report.get("error_msgs", ()), *report.get("conversion_errors", ())]:
        raise ModelError(
            f"The model in {directory} cannot be loaded whole: {str(problems[0]).splitlines()[0]} "
            "Copy or download it anew."
        )


def _whose(directory: Path, name: str) -> str:
    owner = (read_json(directory, "config.json").get("architectures") or [None])[0]
    if owner in (None, name):
        return "Copy or download it anew; if it was saved in parts, put all of them there."
    return (
        f"It is a checkpoint of {owner}: give one that was trained as {name}, or another --task "
        "(causal, seq2seq, classification)."
    )


def _require_plain_numbers(directory: Path, model: Any) -> None:
    """Raise ModelError for quantised parameters, which are no floating-point numbers."""
    odd = [(n, p.dtype) for n, p in model.named_parameters() if not p.is_floating_point()]
    if odd:
        raise ModelError(
            f"{odd[0][0]} in {directory} is quantised ({str(odd[0][1]).removeprefix('torch.')}): "
            "edits are added to plain numbers. Give the checkpoint that it was made of, in "
            "float32, bfloat16 or float16."
        )


@torch.no_grad()
def _require_finite(directory: Path, model: Any) -> None:
    """Raise ModelError for a parameter with NaN or infinity; buffers may mask with -inf."""
    broken: list[str] = []
    for path, module in model.named_modules():
        with at_hand(module):
            parameters = module.named_parameters(recurse=False)
            names = [name for name, tensor in parameters if not _is_finite(tensor)]
        broken += [f"{path}.{name}".removeprefix(".") for name in names]
    if broken:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise ModelError(
            f"{_named(broken)} in {directory} holds NaN or infinite numbers in {dtype}: copy or "
            "download the model anew, or load it with --dtype float32 if its numbers are too "
            "large for this format."
        )


def _is_finite(tensor: Tensor) -> bool:
    return all(map(_is_plain_finite, inner_tensors(tensor)))


def _is_plain_finite(tensor: Tensor) -> bool:
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    least, most = tensor.aminmax()
    return bool(torch.isfinite(least) & torch.isfinite(most))


def _require_rows(directory: Path, model: Any, tokenizer: Any) -> None:
    """Raise ModelError for a tokenizer that has more tokens, without the added ones, than the model
    has embeddings."""
    rows = embedding_rows(model)
    if rows is not None and tokenizer.vocab_size > rows:
        raise ModelError(
            f"The tokenizer in {directory} has {tokenizer.vocab_size} tokens, and the model "
            f"embeddings for {rows}: they are of two models. Put the model's own tokenizer there."
        )


def embedding_rows(model: Any) -> int | None:
    """Return the number of tokens that a model has embeddings for; None if it has no such table."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError, IndexError):
        return None


def _notes(directory: Path, model: Any, tokenizer: Any, report: Mapping[str, Any]) -> Iterator[str]:
    if unexpected := sorted(report["unexpected_keys"]):
        yield (
            f"The checkpoint in {directory} has {_named(unexpected)}, which {type(model).__name__} "
            "does not use: they were left out. If the model should have them, its class is "
            "another one: see --task."
        )
    rows = embedding_rows(model)
    if rows is not None and len(tokenizer) > rows:
        yield (
            f"The tokenizer in {directory} names {len(tokenizer)} tokens, and the model has "
            f"embeddings for {rows}: texts with the others are refused. Resize the embeddings "
            "(resize_token_embeddings) and save the model again, to use them."
        )


def _named(names: Collection[str]) -> str:
    """Return the first names, with the number of further ones."""
    beginning = ", ".join(list(names)[:NAMED_MAX])
    more = len(names) - NAMED_MAX
    return f"{beginning} and {more} more tensors" if more > 0 else beginning
