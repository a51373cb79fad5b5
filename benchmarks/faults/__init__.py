"""Every fault that a store may meet, injected: what was acknowledged must be there afterwards.

    python -m benchmarks.faults [--short] [--only NAME,...] [--json OUT]

One file for a kind of fault; `workload` says what is done and what must hold, `processes` starts
what is to be hurt, `recording` and `disk` turn system calls into what a power loss may leave.
The tests in tests/faults run the short forms.
"""
