"""The locate-then-edit methods' common part: an FFN's output matrix as a linear associative memory.

ROME, MEMIT, EMMET and AlphaEdit write W + Δ so that the key of a subject, the input of the matrix
at the subject's last token, gives another value there (Meng et al. 2022, section 3.1). They share
the search for a value and the reading of keys, and differ in the solve for Δ.

``subjects`` and ``contexts`` turn a request into ``edit_texts``; ``places`` chooses the token to
write to; ``targets`` finds the values, through ``layers`` that are made for many passes; ``keys``
reads the keys, ``solves`` does the linear algebra, and ``editor`` runs them in order.
"""
