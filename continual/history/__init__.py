"""What is done with steps of the past.

``inspection`` and ``reports`` say what they were; ``snapshots`` stands at their states quickly;
``replaying`` builds every state anew and compares, ``rehearsing`` makes a step once more;
``reverting`` takes one request out of the middle, ``rebasing`` puts a history's requests on another
base model, and ``repairing`` goes on without a patch that is lost.
"""
