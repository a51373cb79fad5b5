"""A sweep over the classes of the installed transformers that a task can load, tiny and random.

Each must be corrected as promised, or refused with a reason; see `__main__`.
"""
