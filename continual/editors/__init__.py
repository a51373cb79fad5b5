"""The editors: methods that turn requests into a patch.

Each method has a folder here and a line in `choices`; `continual.proposals` has the contract that
all of them keep.
"""
