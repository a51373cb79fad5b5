"""The atlas: the embedded model, its facts, its probes and its stream of corrections.

A small GPT-2 that knows a few thousand real facts, trained by `continual.atlas.train` from the
tables beside it. It stands in for a pretrained model wherever none is at hand; `continual.embedded`
has the entries that a store of it writes down.
"""
