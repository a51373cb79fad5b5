"""The gallery: a world of pictures, and a small model that is trained to see it.

The package has the world and the training; a trained model does not come with it yet.

`scenes` has what a picture shows, `drawing` renders it, `questions` words what can be asked,
`corpus` draws training examples, `train` makes the model, and `measure` asks it.
"""
