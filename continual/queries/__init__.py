"""Rows of queries, and the search for the rows that a neuron fires on.

``memory`` holds the queries that new neurons must keep away from; ``search`` finds the rows where a
neuron fires, exactly; ``coded_rows`` bounds their scores by a byte a number, and ``growing`` has
the tensors that hold them.
"""
