"""The outcome of every probe that counts, after every step.

``encoded_requests`` are requests as tokens, and as the probes that measure them; ``probing`` reads
these before and behind an edit, ``probe_sets`` reads the files of training and test probes.
``ledger`` follows the outcomes, by ``probe_passes`` if matrices move; ``retention`` says which
requests count, ``metrics`` gives their rates, and ``run_state`` holds all of it at head.
"""
