"""A masked language model that knows facts of ParaRel: the facts, their prompts, its training.

MiniLM, the text encoder that the project uses, is a pretrained BERT without a masked head. It gets
one, whose matrix is tied to the word embeddings and whose transform is new, and all of it is
fine-tuned on statements of ParaRel with the object behind the mask. One wording of each fact is
never trained: the epoch with the highest share of right answers there is the one that is kept.
Leaves attribution and the tables to its neighbours.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import tables

RELATIONS = (
    *("P19", "P20", "P27", "P36", "P37", "P101", "P103", "P106", "P108", "P136"),
    *("P140", "P176", "P178", "P264", "P364", "P407", "P449", "P495", "P937", "P1412"),
)
"""Relations of ParaRel with one object a subject, the four of the published table among them."""
SUBJECT, OBJECT = "[X]", "[Y]"
PROMPTS_MIN = 3  # of a fact, as published
PROMPTS_MAX = 8


@dataclass(frozen=True)
class ClozeFact:
    """A fact with its prompts; each has the mask in the place of the object."""

    relation: str
    subject: str
    object: str
    prompts: tuple[str, ...]

    def held_out(self) -> int:
        """Return the number of the prompt that is never trained."""
        digest = hashlib.sha256(f"{self.relation}|{self.subject}".encode()).digest()
        return digest[0] % len(self.prompts)


@dataclass(frozen=True)
class MaskedRecipe:
    """The settings of the training."""

    facts: int = 30  # of each relation
    epochs: int = 4
    batch: int = 64
    learning_rate: float = 5e-4
    warmup_steps: int = 30
    weight_decay: float = 0.01
    seed: int = 0


def load_facts(data: Path, tokenizer: Any, count: int) -> list[ClozeFact]:
    """Return `count` facts of each relation, drawn by a hash; their objects are single tokens."""
    facts: list[ClozeFact] = []
    for relation in RELATIONS:
        patterns = _patterns(data / "pararel" / "graphs_json" / f"{relation}.jsonl")
        if len(patterns) < PROMPTS_MIN:
            continue
        file = data / "pararel" / "trex_lms_vocab" / f"{relation}.jsonl"
        found: dict[str, ClozeFact] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            fact = _fact(json.loads(line), relation, patterns, tokenizer)
            if fact is not None:
                found.setdefault(fact.subject, fact)
        facts += sorted(found.values(), key=_draw)[:count]
    return facts


def _patterns(file: Path) -> list[str]:
    """Return the wordings of a relation that name subject and object once each."""
    lines = file.read_text(encoding="utf-8").splitlines()
    patterns = dict.fromkeys(str(json.loads(line)["pattern"]) for line in lines)
    named = [p for p in patterns if p.count(SUBJECT) == 1 and p.count(OBJECT) == 1]
    return named[:PROMPTS_MAX]


def _fact(
    record: dict[str, Any], relation: str, patterns: Sequence[str], tokenizer: Any
) -> ClozeFact | None:
    """Return the fact of a record; None if its object is not one token of the vocabulary."""
    subject, answer = str(record["sub_label"]), str(record["obj_label"])
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        return None
    mask = tokenizer.mask_token
    prompts = tuple(p.replace(SUBJECT, subject).replace(OBJECT, mask) for p in patterns)
    return ClozeFact(relation, subject, answer, prompts)


def _draw(fact: ClozeFact) -> bytes:
    return hashlib.sha256(f"{fact.relation}|{fact.subject}".encode()).digest()


def masked_model(data: Path, cache: Path, recipe: MaskedRecipe) -> tuple[Path, list[ClozeFact]]:
    """Return the directory of the trained model, from the cache or trained now, and its facts."""
    tokenizer = _encoder()[0]
    facts = load_facts(data, tokenizer, recipe.facts)
    content = json.dumps([asdict(recipe), [asdict(fact) for fact in facts]])
    directory = cache / f"masked-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if not directory.exists():
        unfinished = directory.with_suffix(".training")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        training = MaskedTraining(facts, recipe)
        record = training.run()
        training.model.save_pretrained(unfinished)
        training.tokenizer.save_pretrained(unfinished)
        (unfinished / "training.json").write_text(json.dumps(record), encoding="utf-8")
        unfinished.rename(directory)
    return directory, facts


def _encoder() -> tuple[Any, Any]:
    """Load the pretrained encoder with its tokenizer."""
    import transformers

    from continual.memory.encoder import SentenceEncoder

    folder = SentenceEncoder().folder
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), model


class MaskedTraining:
    """One training run."""

    def __init__(self, facts: Sequence[ClozeFact], recipe: MaskedRecipe) -> None:
        import transformers

        self.facts, self.recipe = facts, recipe
        self.rng = random.Random(recipe.seed)
        torch.manual_seed(recipe.seed)
        self.tokenizer, encoder = _encoder()
        self.model = transformers.BertForMaskedLM(encoder.config)
        missing = self.model.bert.load_state_dict(encoder.state_dict(), strict=False)
        assert all(name.startswith("pooler") for name in missing.unexpected_keys), missing
        self.model.tie_weights()
        self.model.bert.embeddings.requires_grad_(False)  # the head's matrix is tied to them
        pairs = [(f, i, p) for f in facts for i, p in enumerate(f.prompts)]
        self.train = [(p, f.object) for f, i, p in pairs if i != f.held_out()]
        self.validation = [(p, f.object) for f, i, p in pairs if i == f.held_out()]

    def run(self) -> dict[str, Any]:
        """Train; the model has the weights of the best epoch. Return the record of the run."""
        recipe, began = self.recipe, time.process_time()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        shares: list[float] = []
        best: dict[str, Tensor] = {}
        for epoch in range(recipe.epochs):
            loss = self._epoch(optimizer, schedule)
            shares.append(self.share(self.validation))
            seconds = time.process_time() - began
            told = f"loss {loss:.3f}, held out {shares[-1]:.3f}, {seconds:.0f} s"
            tables.note(f"epoch {epoch}: {told}")
            if shares[-1] == max(shares):
                best = {n: t.detach().clone() for n, t in self.model.state_dict().items()}
        self.model.load_state_dict(best)
        self.model.eval()
        return {
            "held_out": max(shares),
            "trained": self.share(self.train),
            "epoch": len(shares) - 1 - shares[::-1].index(max(shares)),
            "seconds": time.process_time() - began,
        }

    def _rate(self, step: int) -> float:
        """Return the share of the learning rate at a step: up, then linearly down to zero."""
        steps = self.recipe.epochs * -(-len(self.train) // self.recipe.batch)
        up = (step + 1) / self.recipe.warmup_steps
        return min(1.0, up) * max(0.0, 1.0 - step / steps)

    def _epoch(self, optimizer: torch.optim.Optimizer, schedule: Any) -> float:
        """Train on each statement once; return the mean loss."""
        self.model.train()
        losses = []
        for batch in self._batches(self.train, shuffled=True):
            loss = torch.nn.functional.cross_entropy(*self._answered(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return sum(losses) / len(losses)

    @torch.no_grad()
    def share(self, pairs: Sequence[tuple[str, str]]) -> float:
        """Return the share of prompts that the model answers rightly."""
        self.model.eval()
        right = 0
        for batch in self._batches(pairs, shuffled=False):
            logits, targets = self._answered(batch)
            right += int((logits.argmax(-1) == targets).sum())
        return right / len(pairs)

    def _batches(
        self, pairs: Sequence[tuple[str, str]], shuffled: bool
    ) -> Iterator[Sequence[tuple[str, str]]]:
        order = sorted(pairs, key=lambda pair: len(pair[0]))
        size = self.recipe.batch
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if shuffled:
            order = list(pairs)
            self.rng.shuffle(order)
            order.sort(key=lambda pair: len(pair[0]) // 8)
            batches = [order[i : i + size] for i in range(0, len(order), size)]
            self.rng.shuffle(batches)
        return iter(batches)

    def _answered(self, batch: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """Return the logits [B, vocab] at the masks, and the tokens wanted there [B]."""
        prompts, answers = zip(*batch, strict=True)
        inputs = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        encoded = self.tokenizer(list(answers), add_special_tokens=False)
        targets = torch.tensor([ids[0] for ids in encoded["input_ids"]])
        states = self.model.bert(**inputs).last_hidden_state
        at_mask = states[inputs["input_ids"] == self.tokenizer.mask_token_id]
        return self.model.cls(at_mask), targets
