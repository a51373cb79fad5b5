"""Benchmarks: the published protocols and the speed of an edit. Each is run from the project root.

    python benchmarks/atlas.py         the embedded model against its bars
    python -m benchmarks.durability    a run that is killed, a history that is walked
    python -m benchmarks.speed         T-Patcher here against the paper's own loop
    python -m benchmarks.sequential    1,000 corrections of the atlas, one by one
    python -m benchmarks.counterfact   500 CounterFact records, on a model that knows their facts

Each prints a table to standard output and, with `--json OUT`, writes the same with its settings.
"""
