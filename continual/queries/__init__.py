"""Rows of queries, and which of them a neuron fires on.

``memory`` holds the queries that new neurons must keep away from; ``search`` finds the rows where a
neuron fires, exactly; ``coded_rows`` bounds their scores by a byte a number, and ``growing`` are
the tensors they lie in.
"""
