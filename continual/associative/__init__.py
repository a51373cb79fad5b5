"""What the locate-then-edit methods share: an FFN's output matrix as a linear associative memory.

ROME, MEMIT, EMMET and AlphaEdit write W + Δ so that the key of a subject, the input of the matrix
at the subject's last token, gives another value there (Meng et al. 2022, section 3.1). They agree
on how a value is found and how keys are read, and differ in how Δ is solved for.

``subjects`` and ``contexts`` turn a request into ``lessons``; ``places`` says at which token it is
written; ``targets`` finds the values, by ``layers`` that are made for many passes; ``keys`` reads
the keys, ``solves`` is the linear algebra, and ``editor`` puts them in their order.
"""
