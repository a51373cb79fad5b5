"""What counts, and how it stands: every probe's outcome, after every step.

``candidates`` are requests as tokens, and as the probes that measure them; ``probing`` reads these
before and behind an edit, ``probe_sets`` what is asked of the model besides. ``ledger`` follows the
outcomes, by ``probe_passes`` where matrices move; ``retention`` says which requests count,
``metrics`` what their rates are, and ``standing`` is all of it at head.
"""
