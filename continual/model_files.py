"""The files of a model directory: fingerprints them, and refuses files that cannot be loaded.

Knows names and bytes, and no tensors. A directory's code is never run, and its pickles, which could
run some, are never opened: `require_loadable` refuses a model that needs either, before
transformers sees the directory. Leaves the loading itself to `loading`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from continual.embedded import MODELS, embedded
from continual.errors import ModelError

_IDENTITY = ("*.safetensors", "config.json", "tokenizer*.json", "vocab*", "merges.txt", "*.model")
_COMPANIONS = (
    "generation_config.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*.safetensors.index.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*vocab*.json",
    "*.spm",
    "*.bpe",
    "*.codes",
    "*.tiktoken",
    "*.tokenizer",
    "dict.txt",
)
_WEIGHTS = ("*.safetensors", "config.json", "*.safetensors.index.json")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_TOKENIZERS = (*_IDENTITY[2:], *_COMPANIONS[6:])
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_FOREIGN = {
    ".bin": "a pickle",
    ".pt": "a pickle",
    ".pth": "a pickle",
    ".ckpt": "a pickle",
    ".gguf": "a GGUF file",
    ".h5": "a TensorFlow file",
    ".msgpack": "a Flax file",
    ".onnx": "an ONNX file",
}
_GGUF_MAGIC = b"GGUF"
PACKERS: Mapping[str, str] = {"torchao": "torchao", "bitsandbytes": "bitsandbytes"}
"""The packages that read packed checkpoints, by the method that config.json names; each is an extra
of the same name."""
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")


def model_directory(name: str | Path) -> Path:
    """Return the directory that a model's name stands for, or the GGUF file. Raises ModelError if
    there is none."""
    if (embedded_model := embedded(name)) is not None:
        return embedded_model.directory
    path = Path(name).expanduser().absolute()
    if (path / "config.json").is_file() or is_gguf(path):
        return path
    _require_no_adapter(path)
    names = ", ".join(map(repr, MODELS))
    absent = "it has no config.json" if path.exists() else "there is nothing there"
    raise ModelError(
        f"{path} is not a model directory ({absent}): give a directory that transformers' "
        f"save_pretrained wrote, or {names}, the embedded model. A model of a hub is downloaded "
        f"first, with `hf download NAME --local-dir DIR`."
    )


def is_gguf(path: Path) -> bool:
    """Tell whether a path is a GGUF file: weights, config and tokenizer in one."""
    return path.suffix == ".gguf" and path.is_file()


def directory_fingerprint(directory: Path) -> str:
    """Return the SHA-256 over the names and bytes of a model directory's weights, config and
    tokenizer."""
    digest = hashlib.sha256()
    for file in [directory] if is_gguf(directory) else _matching(directory, _IDENTITY):
        digest.update(f"{file.name}\n".encode())
        digest.update(bytes.fromhex(_digest(file)))
    return digest.hexdigest()


def companion_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256, by name, of the files that shape a model's answers outside its
    fingerprint: ends of answers, chat templates, the places of tensors in shards, added tokens."""
    identity = set(_matching(directory, _IDENTITY))
    files = [file for file in _matching(directory, _COMPANIONS) if file not in identity]
    return {file.relative_to(directory).as_posix(): _digest(file) for file in files}


def files_beside_weights(directory: Path) -> list[Path]:
    """Return the files that go along with another model made of a directory's: its tokenizer, chat
    templates, generation config, picture processor, and licence."""
    weights = _matching(directory, _WEIGHTS)
    files = _matching(directory, (*_IDENTITY, *_COMPANIONS, *_PROCESSORS, *_TERMS))
    return [file for file in files if file not in weights]


def weights_format(directory: Path) -> str | None:
    """Return the number format of a directory's largest tensor, as torch names it; None for one
    that torch does not compute in."""
    sizes: dict[str, int] = {}
    for file in _matching(directory, ("*.safetensors",)):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118  no mapping
                tensor = opened.get_slice(key)
                count = math.prod(tensor.get_shape())
                sizes[tensor.get_dtype()] = max(sizes.get(tensor.get_dtype(), 0), count)
    return _FORMATS.get(max(sizes, key=sizes.__getitem__)) if sizes else None


def shard_bytes(directory: Path) -> int | None:
    """Return the bytes of the largest shard of a directory's weights; None if they are one file."""
    files = _matching(directory, ("*.safetensors",))
    is_sharded = bool(_matching(directory, ("*.safetensors.index.json",)))
    return max(file.stat().st_size for file in files) if is_sharded and files else None


def has_tokenizer(directory: Path) -> bool:
    """Tell whether a directory has any file of a tokenizer, or is a GGUF file, which has one."""
    return is_gguf(directory) or bool(_matching(directory, _TOKENIZERS))


def read_json(directory: Path, name: str) -> Mapping[str, Any]:
    """Read a JSON file of a model directory; empty if there is none. Raises ModelError for anything
    but a JSON object."""
    path = directory / name
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): copy the model anew.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no JSON object: copy the model anew.")
    return content


def require_loadable(directory: Path) -> None:
    """Raise ModelError for a directory with an adapter, without safetensors weights, with weights
    that are cut off, or with a model that needs code of its own."""
    if is_gguf(directory):
        _require_gguf(directory)
        return
    _require_no_adapter(directory)
    config = read_json(directory, "config.json")
    for name in ("generation_config.json", "tokenizer_config.json"):
        read_json(directory, name)
    _require_own_code(directory, config)
    _require_packer(directory)
    if packing_of(directory) == "bitsandbytes":
        _require_rows_apart(directory)
    _require_safetensors(directory)
    _require_whole(directory)


def _require_gguf(file: Path) -> None:
    """Raise ModelError for a file that does not begin as GGUF does, and without the packages that
    read one."""
    with file.open("rb") as opened:
        if opened.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            raise ModelError(f"{file} is no GGUF file: it does not begin as one. Copy it anew.")
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{file} is a GGUF file, and {' and '.join(missing)} to read it with is not installed: "
            "pip install 'cedit[gguf]'."
        )


def packing_of(directory: Path) -> str:
    """Return the method by which a checkpoint is packed in few bits; empty for plain numbers."""
    if is_gguf(directory):
        return ""
    packing = read_json(directory, "config.json").get("quantization_config")
    return str(packing.get("quant_method", "unnamed method")) if isinstance(packing, dict) else ""


def _require_rows_apart(directory: Path) -> None:
    """Raise ModelError for 8 bits of bitsandbytes with columns of outliers: these are chosen over
    all tokens of a pass, so that a token's answer depends on the tokens behind it."""
    packing = read_json(directory, "config.json").get("quantization_config", {})
    if packing.get("load_in_8bit") and packing.get("llm_int8_threshold", 6.0):
        raise ModelError(
            f"The model in {directory} is packed in 8 bits by bitsandbytes with "
            "llm_int8_threshold above 0: a token's answer then depends on later tokens. Set "
            "llm_int8_threshold to 0.0 in its config.json (its weights stay as they are), or give "
            "another packing."
        )


def _require_packer(directory: Path) -> None:
    """Raise ModelError for a packed checkpoint without the package that reads it."""
    package = PACKERS.get(packing_of(directory))
    if package is not None and find_spec(package) is None:
        raise ModelError(
            f"The model in {directory} is quantised ({package}) and cannot be loaded: {package} is "
            f"not installed: pip install 'cedit[{package}]'. Or give the checkpoint that it was "
            "made of, in float32, bfloat16 or float16."
        )


def _require_no_adapter(directory: Path) -> None:
    adapter = next((name for name in _ADAPTERS if (directory / name).exists()), None)
    if adapter is not None:
        raise ModelError(
            f"{directory} has an adapter ({adapter}), which transformers uses where peft is "
            "installed, and leaves out in silence where it is not. Merge it first, in Python: "
            "model = peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload(); "
            "model.save_pretrained(NEW); then save the tokenizer beside it. Or take the adapter's "
            "files out of the directory, to correct the model without it."
        )


def _require_own_code(directory: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError for a model type that transformers does not have: its own code is not
    run."""
    has_class = config.get("model_type") in CONFIG_MAPPING
    if "auto_map" in config and not has_class:
        raise ModelError(
            f"{directory} needs its own code to be loaded (auto_map in config.json, for model_type "
            f"{config.get('model_type')!r}), and code out of a model's directory is never run. "
            "Give a checkpoint in a format that transformers has a class for, such as one that "
            "was converted, or install a version of transformers that has the class."
        )


def _require_safetensors(directory: Path) -> None:
    if any(directory.glob("*.safetensors")):
        return
    foreign = [file for file in sorted(directory.iterdir()) if _is_foreign(file)]
    if not foreign:
        raise ModelError(
            f"{directory} has no weights: save the model there again, with save_pretrained."
        )
    kind = _FOREIGN[foreign[0].suffix]
    why = ", which may run code when it is opened" if kind == "a pickle" else ""
    if is_gguf(foreign[0]):
        raise ModelError(
            f"{directory} has no safetensors weights: {foreign[0].name} is {kind}. Convert it, or "
            f"name the file itself as the model: {foreign[0]}."
        )
    raise ModelError(
        f"{directory} has no safetensors weights: {foreign[0].name} is {kind}{why}. Convert it, "
        'where you trust its source: python -c "import transformers as t; m = '
        f"t.AutoModel.from_pretrained('{directory}', dtype='auto'); m.save_pretrained('NEW')\", "
        "with the class of your task (AutoModelForCausalLM, …) in the place of AutoModel; then "
        "copy the tokenizer's files to NEW."
    )


def _is_foreign(file: Path) -> bool:
    return file.suffix in _FOREIGN and file.name not in _NOT_WEIGHTS


def _require_whole(directory: Path) -> None:
    """Raise ModelError for weights that a copy or a download cut off, and for missing shards."""
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} is damaged or cut off ({_line(error)}): copy or download it anew."
            ) from error
    for index in sorted(directory.glob("*.safetensors.index.json")):
        places = read_json(directory, index.name).get("weight_map", {})
        gone = sorted({name for name in places.values() if not (directory / name).is_file()})
        if gone:
            raise ModelError(
                f"{directory} lacks {gone[0]}, which {index.name} names: copy or download it anew."
            )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _matching(directory: Path, patterns: Sequence[str]) -> list[Path]:
    files = {file for pattern in patterns for file in directory.glob(pattern)}
    return sorted(file for file in files if file.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
