"""Warnings about a store that a person should read before the next edit, each with a remedy.

One function for each cause, and its line in CAUSES. Reads records alone; `init`, `status` and
`apply` print the warnings on the terminal, and have them as `warnings` in their JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from continual.choices import DECODERS
from continual.recheck.metrics import Count
from continual.settings import StoreSettings
from continual.watch.config import ROWS_MIN
from store import Store

PROBES_MIN = 20  # of a set: fewer say nothing
RIGHT_SHARE_MIN = 0.1


def store_warnings(store: Store) -> list[str]:
    """Return all warnings of a store, as sentences for people."""
    return [warning for cause in CAUSES for warning in cause(store)]


def unanswered_probes(store: Store) -> Iterator[str]:
    """Warn about probe sets that the base hardly answers: they could not show any damage."""
    record = store.ledger(0)
    for name, numbers in (record["base"] if record else {}).items():
        count = Count(*numbers)
        if count.total >= PROBES_MIN and count.right < RIGHT_SHARE_MIN * count.total:
            yield (
                f"The base model answers {count.right} of its {count.total} {name} probes, so "
                "they cannot show what an edit breaks. Either it does not know these facts, or it "
                f"is not asked as it is used: {_likely_reason(store, name)}. Compare `cedit ask` "
                "with the probes' answers, and make a new store with probes that it answers."
            )


def _likely_reason(store: Store, name: str) -> str:
    task = store.settings.get("task", {})
    in_chat = any("messages" in probe for probe in store.base.body["probes"].get(name, ()))
    if task.get("template") and not in_chat:
        return "it has a chat template, so its probes may have to be `messages`"
    if in_chat:
        return "its whole turn counts as the answer, so a longer one than the probe's is wrong"
    if task.get("terminator"):
        return f"its answers may not end in the store's terminator {task['terminator']!r}"
    return "a blank may be missing between prompt and answer, or be one too many"


def little_memory(store: Store) -> Iterator[str]:
    """Warn if too few positions tell an edit to leave them alone: it may change everything else.
    A store set to watch no text gets no warning."""
    settings = StoreSettings.of(store.settings)
    if settings.task_name not in DECODERS or settings.watch.get("texts") == 0:
        return
    texts = [r.body["watch"]["passages"] for r in store.lineage("head") if "watch" in r.body]
    text_rows = sum(len(targets) for _, _, targets in texts[-1][::2]) if texts else 0
    probe_rows = len(store.base.body["probes"].get("train", ()))
    if texts and text_rows + probe_rows < ROWS_MIN:
        yield (
            f"{text_rows + probe_rows} rows tell an edit what to leave alone, and fewer than "
            f"{ROWS_MIN} are too few: what nobody names, an edit may change. Give general text "
            "with `cedit watch`, or training probes with `cedit init --train-probes`."
        )


CAUSES: tuple[Callable[[Store], Iterator[str]], ...] = (
    unanswered_probes,
    little_memory,
)
"""Functions that look at a store and yield its warnings."""
