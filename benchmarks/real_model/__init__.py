"""A pretrained model after a stream of corrections, asked from outside by free greedy generation.

`questions` chooses CounterFact's records and the prompts around them, `asking` generates the
answers, `measures` compares the edited model's with the base's, and `runs` applies the stream to a
store. The editors know nothing of any question but the corrected prompts.
"""
