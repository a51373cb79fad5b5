"""Knowledge neurons: the neurons of the FFNs that an answer is owed to (Dai et al. 2022).

A neuron is one coordinate of an FFN's intermediate row: the row behind the activation, for a gated
FFN the product act(gate)·up, that enters the output matrix. Its row of that matrix is its value.

- ``gold``  the tokens of an answer, each with the text in front of it and the place of its row
- ``passes``  a model run with one row scaled, by the quickest way that gives the model's logits
- ``attribution``  integrated gradients over a row, for an answer
- ``choosing``  thresholds, the neurons that a fact's prompts share, and those of a relation
- ``operations``  neurons suppressed or amplified, at the answer's place or in the weights
- ``finding``  the neurons of facts, and P of their answers with and without them
- ``relations``  the same, summed up over a relation
"""

from continual.analysis.neurons.attribution import STEPS, AnswerAttribution, attribute
from continual.analysis.neurons.choosing import FfnNeuron, NeuronThresholds
from continual.analysis.neurons.gold import GoldToken, MaskedPrompts, gold_tokens
from continual.analysis.neurons.passes import PassMaker

__all__ = [
    "STEPS",
    "AnswerAttribution",
    "FfnNeuron",
    "GoldToken",
    "MaskedPrompts",
    "NeuronThresholds",
    "PassMaker",
    "attribute",
    "gold_tokens",
]
