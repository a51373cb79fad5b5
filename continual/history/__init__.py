"""What is done with steps of the past.

``inspection`` and ``reports`` say what they were; ``replaying`` builds every state anew and
compares, ``rehearsing`` makes a step once more; ``reverting`` takes one request out of the middle,
``reembedding`` embeds the memory anew, and ``repairing`` goes on without a patch that is lost.
"""
