"""Knowledge neurons: their published tables, run again on models that know their facts.

`worlds` has the models with their facts, `training` the training of the masked one, `changes` P and
perplexities with neurons suppressed, amplified and erased, `naive` the plain loop of an
attribution, and `figures` the bars.
"""
