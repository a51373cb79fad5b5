"""The editors with the chains that they form, the readers and the tasks: a line for each.

The command line's help and completion, the check of `cedit.toml`, README's tables and the engine
all read these lists. Knows names alone: an object is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from continual.registry import EditorEntry, ReaderEntry, Registry, TaskEntry

CAUSAL = ("causal",)
DECODERS = ("causal", "multimodal")
"""The tasks whose models go on with a text: what holds for one of texts holds for one that sees."""


@dataclass(frozen=True)
class Chain:
    """Editors under one name, each for the requests that those before it did not get right."""

    name: str
    editors: tuple[str, ...]
    summary: str


DEFAULT_CHAIN = ("tpatcher", "serac")
"""The editors that a request goes through, until one of them gets it right. The memory is last."""

CHAINS: Mapping[str, Chain] = {
    "auto": Chain(
        "auto",
        ("memit", "tpatcher", "serac"),
        "memit where the prompt has the subject, then tpatcher, then serac",
    )
}
"""Chains by name, for any task: of the editors named, those that edit its models."""

EDITORS = Registry(
    EditorEntry,
    EditorEntry(
        "tpatcher",
        "continual.editors.tpatcher:TPatcher",
        "adds a neuron for each wrong token to the last FFN; silent on everything remembered",
        grid="continual.editors.tpatcher.grid:grid",
    ),
    EditorEntry(
        "memit",
        "continual.editors.memit:Memit",
        "writes to the FFN output matrix of a few blocks, a whole batch in one least-squares fit",
        tasks=CAUSAL,
        grid="continual.editors.memit.grid:grid",
    ),
    EditorEntry(
        "emmet",
        "continual.editors.emmet:Emmet",
        "as memit, with the new values as constraints",
        tasks=CAUSAL,
        grid="continual.editors.emmet.grid:grid",
    ),
    EditorEntry(
        "alphaedit",
        "continual.editors.alphaedit:AlphaEdit",
        "as memit, in the directions that other keys hardly have; earlier edits weigh in",
        tasks=CAUSAL,
        grid="continual.editors.alphaedit.grid:grid",
    ),
    EditorEntry(
        "rome",
        "continual.editors.rome:Rome",
        "as memit, one request after another, each a rank-one update",
        tasks=CAUSAL,
        grid="continual.editors.rome.grid:grid",
    ),
    EditorEntry(
        "serac",
        "continual.editors.serac:Serac",
        "keeps the edit as a text; a reader answers the inputs that are about it",
        tasks=CAUSAL,
        grid="continual.memory.grid:grid",
    ),
    EditorEntry(
        "ike",
        "continual.editors.ike:Ike",
        "as serac, read by the base model behind demonstrations",
        tasks=CAUSAL,
        grid="continual.memory.grid:grid",
    ),
    EditorEntry(
        "lookup",
        "continual.editors.lookup:LookupEditor",
        "adds an edit's value to one block's FFN output where a token's key matches",
        tasks=CAUSAL,
        config="continual.editors.lookup:LookupConfig",
        grid="continual.editors.lookup.grid:grid",
    ),
    EditorEntry(
        "grace",
        "continual.editors.grace:Grace",
        "replaces one block's FFN output where its query is near an edit's; all else stays",
        tasks=CAUSAL,
    ),
    EditorEntry(
        "kn",
        "continual.editors.kn:Kn",
        "rewrites values of the FFN neurons that the present answer is owed to; weak",
        tasks=("causal", "seq2seq"),
        sees=False,
    ),
    EditorEntry(
        "ultraedit",
        "continual.editors.ultraedit:UltraEdit",
        "a step along normalised gradients; earlier edits weigh in",
    ),
    EditorEntry(
        "mend",
        "continual.editors.mend:Mend",
        "a trained network turns gradients into updates",
    ),
    EditorEntry(
        "malmen",
        "continual.editors.malmen:Malmen",
        "as mend, a whole batch in one least-squares fit",
    ),
    EditorEntry(
        "ke",
        "continual.editors.ke:Ke",
        "a network that reads the edit gates gradients",
    ),
    EditorEntry(
        "calinet",
        "continual.editors.calinet:Calinet",
        "trains slots beside the last FFN for a batch of facts, which share them",
    ),
    EditorEntry(
        "ft-last",
        "continual.editors.finetune:FtLast",
        "fine-tunes the last block: what the others are compared with",
    ),
    EditorEntry("ft-all", "continual.editors.finetune:FtAll", "fine-tunes all of the model"),
    EditorEntry(
        "ft-last-kl",
        "continual.editors.finetune:FtLastKl",
        "as ft-last, held to the answers of training probes and past edits",
    ),
    EditorEntry(
        "ft-all-kl",
        "continual.editors.finetune:FtAllKl",
        "as ft-all, held in the same way",
    ),
    EditorEntry(
        "ft-l",
        "continual.editors.finetune:FtL",
        "fine-tunes one FFN output matrix, each element within a bound",
    ),
    EditorEntry(
        "ft-vision",
        "continual.editors.finetune:FtVision",
        "fine-tunes the layers between pictures and text",
        tasks=("multimodal",),
    ),
    reserved=tuple(CHAINS),
)

READERS = Registry(  # most specific first
    ReaderEntry,
    ReaderEntry("langfuse", "continual.readers.langfuse", "items of Langfuse's data sets"),
    ReaderEntry("label_studio", "continual.readers.label_studio", "tasks of Label Studio"),
    ReaderEntry("argilla", "continual.readers.argilla", "records of Argilla with responses"),
    ReaderEntry("counterfact", "continual.readers.counterfact", "CounterFact, original schema"),
    ReaderEntry("mquake", "continual.readers.mquake", "MQuAKE, chains of facts"),
    ReaderEntry("mmedit", "continual.readers.mmedit", "MMEdit, its textual side"),
    ReaderEntry(
        "zsre_languages", "continual.readers.zsre_languages", "zsRE in several languages (MzsRE)"
    ),
    ReaderEntry("zsre_mend", "continual.readers.zsre_mend", "zsRE, as MEND has it"),
    ReaderEntry("wikibigedit", "continual.readers.wikibigedit", "WikiBigEdit"),
    ReaderEntry("fever", "continual.readers.fever", "FEVER, claims and their labels"),
    ReaderEntry("tpatcher", "continual.readers.tpatcher", "T-Patcher's files"),
    ReaderEntry("ripple", "continual.readers.ripple", "RippleEdits, a fact and what follows"),
    ReaderEntry("halluedit", "continual.readers.halluedit", "HalluEditBench"),
    ReaderEntry("known", "continual.readers.known", "facts that GPT-2 XL knows"),
    ReaderEntry("pararel", "continual.readers.pararel", "ParaRel, to be joined with its patterns"),
    ReaderEntry(
        "easyedit_counterfact", "continual.readers.easyedit_counterfact", "CounterFact, flat"
    ),
    ReaderEntry("knowedit", "continual.readers.knowedit", "KnowEdit"),
    ReaderEntry("easyedit", "continual.readers.easyedit", "EasyEdit"),
    ReaderEntry("rome", "continual.readers.rome", "requests as ROME's and MEMIT's code has them"),
    ReaderEntry("plain", "continual.readers.plain", "cedit's own fields"),
)

TASKS = Registry(
    TaskEntry,
    TaskEntry(
        "causal", "continual.tasks.causal:CausalTask", "a decoder continues the prompt, or chats"
    ),
    TaskEntry(
        "seq2seq", "continual.tasks.seq2seq:Seq2SeqTask", "an encoder-decoder answers the prompt"
    ),
    TaskEntry(
        "classification",
        "continual.tasks.classification:ClassificationTask",
        "a classifier labels the prompt",
    ),
    TaskEntry(
        "multimodal",
        "continual.tasks.multimodal:MultimodalTask",
        "a decoder that sees continues a prompt with pictures (LLaVA's class, BLIP-2's)",
    ),
)
