"""Pictures: checked where they come in, brought to one form, and kept by what they show.

``content`` reads a file, a data URI or bytes as pixels, ``album`` holds the pictures of an open
store, and ``records`` puts their marks into the records of a stream. Leaves the places of pictures
in prompts to ``picture_marks``, and a model's view of them to the tasks.
"""

from continual.pictures.album import Album

__all__ = ["Album"]
