"""Correct a model: find a wrong answer, correct it, and see what else has changed.

    python examples/correct.py

The embedded model, the atlas, knows some thousands of facts and has gaps. Nobody told it the
capital of Sri Lanka, so it makes one up.
"""

import tempfile
from pathlib import Path

import cedit

CAPITAL = "The capital of Sri Lanka is"

with tempfile.TemporaryDirectory() as folder:
    # A store is a folder with the history of one base model. `model=DIRECTORY` takes your own, as
    # save_pretrained wrote it. Without general text (texts=0) a store is made in seconds; keep it
    # in a real one, so that edits leave it alone.
    with cedit.create(Path(folder) / "store", watch={"texts": 0, "neighbours": 0}) as session:
        print("before:", session.ask(CAPITAL))

        # Only `prompt` and `target_new` are needed. With its subject a correction can answer other
        # wordings, and holds only where a text names it.
        (step,) = session.apply(
            [
                {
                    "prompt": CAPITAL,
                    "target_new": "Sri Jayawardenepura Kotte",
                    "subject": "Sri Lanka",
                    "held_out_rephrases": ["What is the capital of Sri Lanka? Answer:"],
                }
            ]
        )
        (outcome,) = step.outcomes
        print("outcome:", outcome.outcome, "by", outcome.editor)
        print("after:", session.ask(CAPITAL))
        print("in other words:", session.ask("What is the capital of Sri Lanka? Answer:"))
        print("a neighbour:", session.ask("The capital of Peru is"))

        # Every step measures the corrections so far, and probes of what the model knew before.
        status = session.status()
        for rate in ("SR", "GR", "TrainR", "TestR"):
            print(f"{rate}: {status[rate]:.3f}")

        # The model is the transformers model: use it as any other, within the `with`.
        inputs = session.tokenizer(CAPITAL, return_tensors="pt")
        tokens = session.model.generate(**inputs, max_new_tokens=16)
        print("generate:", session.tokenizer.decode(tokens[0], skip_special_tokens=True).strip())

    # The store keeps it all: opened again, the model has its correction.
    with cedit.open(Path(folder) / "store") as session:
        print("opened again:", session.ask(CAPITAL))
