"""Analyses: tell where a model, at any revision, keeps what it knows. Nothing here edits.

``tracing`` restores single states of a run whose subject was corrupted; ``neurons`` attributes an
answer to single neurons of the FFNs. One folder for each kind of analysis; leaves the editors that
follow from one to ``editors``.
"""
