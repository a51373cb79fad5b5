"""A pretrained model after a stream of corrections, asked from outside by free greedy generation.

`questions` chooses CounterFact's records and the prompts around them, `asking` generates the
answers and keeps those of the base, `measures` compares the two, and `runs` applies the stream to a
store of its own. Nothing here is known to the editors.
"""
