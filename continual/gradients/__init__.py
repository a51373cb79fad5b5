"""The common part of editors by gradients: rows, wanted shifts, one ridge system.

One forward and backward pass over an answer gives, for each of its tokens and each edited matrix, a
row: the input h of the matrix and the gradient g of the loss at its output. A method maps these
rows to wanted shifts v of the output. With the rows of a batch H [n, inputs] and V [n, outputs],

    ΔW = P·HᵀV,  P = (λI + μC₀ + HᵀH + memory)⁻¹

``matrices`` chooses the matrices, ``rows`` reads the rows, ``normaliser`` has the statistics over
all rows so far, ``ridge`` does the linear algebra, and ``editor`` runs them in order. Leaves the
map from rows to shifts to each method.
"""
