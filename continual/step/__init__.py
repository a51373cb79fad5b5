"""One turn of the pipeline: a batch of requests in, one revision out.

``planning`` decides which requests are edited, ``editing`` asks the editors of the chain and proves
their proposals, ``progress`` counts which edits are pending, applied or refused. ``pipeline`` runs
the stages in order, from the batch to the commit, and times them by the ``clock``.
"""
