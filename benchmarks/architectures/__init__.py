"""Every class of the installed transformers that a task can load, tiny and random: is it corrected
as promised, or refused with a reason? See `__main__`."""
