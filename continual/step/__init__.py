"""One turn of the pipeline: a batch of requests in, one revision out.

``planning`` decides which requests are edited, ``editing`` asks the editors of the chain and proves
what they propose, ``progress`` is how far that has come, and ``pipeline`` puts the stages in their
order, from the batch to the commit, by the ``clock``.
"""
