"""The gallery: the embedded model that sees, and the world of pictures that it was trained on.

`scenes` has what a picture shows, `drawing` renders it, `questions` words what can be asked,
`corpus` draws training examples, `train` makes the model, and `measure` asks it.
"""
