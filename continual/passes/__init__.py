"""Runs a model in parts, and no more of it than an answer depends on.

``partial`` runs blocks i to j from kept states, ``site_pass`` a pass up to the last FFN, and
``suffix`` the ends of sequences alone; ``packing`` puts these ends in one row, and ``batching``
puts sequences of like lengths together. ``edit_site`` finds the site at which a model can be
edited: ``row_tail`` takes rows there to their logits, and ``additions`` checks that an addition
joins the residual sum. Nothing here knows of edits.
"""
