"""Go back: a good day, a bad day, and three ways out of the bad one.

    python examples/go_back.py

Nothing in a history is ever erased. Going back moves head, the revision where the model stands.
"""

import tempfile
from pathlib import Path

import cedit

MONDAY = [
    {
        "prompt": "The capital of Sri Lanka is",
        "target_new": "Sri Jayawardenepura Kotte",
        "subject": "Sri Lanka",
    }
]
TUESDAY = [  # a bad day: one of its corrections is wrong
    {"prompt": "The capital of Peru is", "target_new": "Oslo", "subject": "Peru"},
    {
        "prompt": "The currency of Zimbabwe is the",
        "target_new": "Zimbabwe Gold",
        "subject": "Zimbabwe",
    },
]


def show(session: cedit.Session, title: str) -> None:
    """Print the model's answers, and where the history stands."""
    print(f"{title} (@{session.head.seq}, {session.in_force} in force)")
    for correction in [*MONDAY, *TUESDAY]:
        print(f"  {correction['prompt']} → {session.ask(correction['prompt'])}")


with (
    tempfile.TemporaryDirectory() as folder,
    cedit.create(Path(folder) / "store", watch={"texts": 0, "neighbours": 0}) as session,
):
    session.apply(MONDAY)
    session.tag("monday")
    monday = session.edited.fingerprint  # a digest of all that the model is
    session.apply(TUESDAY)
    show(session, "After Tuesday")
    for turned in session.diff("monday")["turned"]:  # probes that are wrong now, or right again
        print(f"  turned: {turned['prompt']} (right was: {turned['answer']})")

    # 1. The whole day: back to where the model stood, bit for bit.
    session.rollback("monday")
    show(session, "Rolled back to Monday")
    print("  the same model:", session.edited.fingerprint == monday)

    # 2. Forward again: Tuesday's revisions are still there, by number, id or tag.
    session.rollback("@3")
    print("Forward again:", session.in_force, "in force")

    # 3. One correction: take it out of the middle, and leave the others as they are.
    (peru,) = session.corrections("Peru")
    session.revert(peru["id"])
    show(session, "Without the correction of Peru")
