"""`cedit verify`: the whole store read back, and the model built again."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.options import common, find_store
from cli.output import Output, one_line

DAMAGED = 20


@click.command("verify")
@common
def command(out: Output, store: str | None) -> int:
    """Check the whole store.

    Checksums, the chain of revisions, patches, and every fingerprint by building it again. Exit
    code 20 says that something is not as it was written; what only takes up space is named as
    harmless.

    \b
    Example:
      cedit verify
      cedit verify --json
    """
    from continual.replaying import verify

    problems = verify(find_store(store))
    is_ok = all(problem.harmless for problem in problems)
    lines = [
        one_line(f"{'harmless' if p.harmless else 'PROBLEM'}  {p.object}: {p.problem}")
        for p in problems
    ]
    verdict = "All is as it was written." if is_ok else "The store is damaged: keep a copy of it."
    out.result({"ok": is_ok, "problems": list(map(asdict, problems))}, *lines, verdict)
    return 0 if is_ok else DAMAGED
