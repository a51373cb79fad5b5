"""Every fault that a store may meet, injected: what was acknowledged must be there afterwards.

    python -m benchmarks.faults [--short] [--only NAME,...] [--json OUT]

One file for a kind of fault; `workload` says what is done and what must hold, `processes` starts
what is to be hurt, `recording` and `disk` turn system calls into what a power loss may leave.
The tests in tests/faults run the short forms.
"""

import os

# Children are forked. OpenMP's threads do not come along, and the pool that torch makes for
# `set_num_threads` breaks in them now and then: one thread, said before torch is loaded, needs
# neither.
os.environ["OMP_NUM_THREADS"] = "1"
