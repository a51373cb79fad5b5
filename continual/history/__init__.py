"""The operations on steps of the past.

``inspection`` and ``reports`` describe them; ``replaying`` builds every state anew and compares,
``rehearsing`` makes a step once more. ``rewriting`` moves head to a state that is more than a step
away. One of five operations chooses that state: ``rolling_back``, ``reverting`` (one request out of
the middle), ``erasing`` (a relation's neurons), ``reembedding`` (the memory by another encoder),
``repairing`` (without a lost patch).
"""
