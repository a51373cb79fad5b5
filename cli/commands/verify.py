"""`cedit verify`: reads the whole store back, and builds the model again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.asking import confirmed
from cli.options import common, find_store
from cli.output import Output, counted, one_line

if TYPE_CHECKING:
    from store.check import Problem
    from store.repair import RepairPlan

DAMAGED = 20


@click.command("verify")
@click.option("--repair", is_flag=True, help="Heal what can be healed, and set aside the rest.")
@click.option("--yes", is_flag=True, help="Do not ask before something is lost.")
@common
def command(out: Output, store: str | None, repair: bool, yes: bool) -> int:
    """Check the whole store.

    It checks checksums, the chain of revisions, patches, and every fingerprint by building the
    model again. Exit code 20 means that something is not as it was written. A file that only takes
    up space, or can be made again, is named as harmless.

    With --repair indexes, cache and snapshots are made again, and files that nothing refers to go.
    A history that cannot be read to its end is cut off at its last readable revision. A patch that
    cannot be read is taken out of the model, and its corrections can be applied again. Files that
    cannot be healed are kept in the store's folder `damaged`. The command names every loss and
    asks before it happens.

    With --json there is one line, {"ok","problems":[{"object","problem","harmless"}]}, and with
    --repair one for each remedy before it, {"type":"remedy","object","action","loses"}.

    \b
    Example:
      cedit verify
      cedit verify --repair
    """
    from continual.history.replaying import verify

    path = find_store(store)
    if repair:
        _repair(out, path, yes)
    problems = verify(path)
    is_ok = all(problem.harmless for problem in problems)
    verdict = "All is as it was written." if is_ok else "The store is damaged: keep a copy of it."
    if not is_ok and not repair:
        verdict += " To heal what can be healed: cedit verify --repair"
    record = {"ok": is_ok, "problems": list(map(asdict, problems))}
    out.result(record, *_lines(problems), verdict)
    return 0 if is_ok else DAMAGED


def _lines(problems: Sequence[Problem]) -> list[str]:
    return [
        one_line(f"{'harmless' if p.harmless else 'PROBLEM'}  {p.object}: {p.problem}")
        for p in problems
    ]


def _repair(out: Output, path: Path, yes: bool) -> None:
    """Show the repair plan, ask before a loss, and carry the plan out. Raises IntegrityError for
    damage beyond repair."""
    from store import Store
    from store.check import verify_path
    from store.errors import IntegrityError
    from store.repair import carry_out, plan

    for problem in verify_path(path):
        if problem.is_beyond_repair:
            raise IntegrityError(
                problem.object, f"{problem.problem}; this cannot be healed: import an archive"
            )
    with Store.open(path, writable=True) as opened:
        repair_plan = plan(opened)
        _show(out, repair_plan)
        losses = [*repair_plan.loses, *(f"the patch {ref.sha256[:12]}" for ref in repair_plan.lost)]
        if losses:
            confirmed(f"This loses {'; '.join(losses)}. Go on?", yes, "--yes to lose that")
        carry_out(opened, repair_plan)
    if repair_plan.lost:
        _give_up(out, path, repair_plan)


def _show(out: Output, chosen: RepairPlan) -> None:
    remedies = [(r.object, r.action, r.loses) for r in chosen.remedies]
    remedies += [
        (f"patches/{ref.sha256}", "take it out of the model", "the corrections of that step")
        for ref in chosen.lost
    ]
    for name, action, loses in remedies:
        out.record({"type": "remedy", "object": name, "action": action, "loses": loses})
        loss = f" (loses {loses})" if loses else ""
        out.text(one_line(f"remedy    {name}: {action}{loss}"))


def _give_up(out: Output, path: Path, chosen: RepairPlan) -> None:
    from continual.history.repairing import give_up
    from continual.prompts import shown_prompt
    from continual.session import open_session

    with open_session(path, at="base") as session:
        outcome = give_up(session, chosen.lost)
        prompts = [shown_prompt(session.store.request(identity)) for identity in outcome.requests]
    out.text(f"{counted(len(prompts), 'correction')} no longer in force:")
    for prompt in prompts:
        out.text(one_line(f"  {prompt}"))
