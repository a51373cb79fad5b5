"""Measures every fault that a store may meet, injected: acknowledged work must be there afterwards.

    python -m benchmarks.faults [--short] [--only NAME,...] [--json OUT]

There is one file for a kind of fault. `workload` has the acts on a store and the checks that must
hold, `processes` starts the processes to be hurt, `recording` and `disk` turn system calls into the
possible contents of a disk after a power loss. The tests in tests/faults run the short forms.
"""

import os

# Children are forked. OpenMP's threads do not come along, and the pool that torch makes for
# `set_num_threads` breaks in them now and then: one thread, said before torch is loaded, needs
# neither.
os.environ["OMP_NUM_THREADS"] = "1"
