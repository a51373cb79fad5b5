"""Traces facts to the hidden states that carry them (Meng et al. 2022, section 2).

A subject's embeddings are corrupted by noise until the model no longer gives its answer; then one
state after another is put back to its value in the clean run, and the answer's return is measured.

``facts`` reads prompt, subject and answer as tokens; ``modules`` finds the outputs that can be
restored; ``noise`` draws what corrupts; ``cases`` lays out rows; ``runs`` and ``ends`` run the
model whole or in parts; ``tracer`` decides what has to be run; ``results`` holds one fact's maps,
``averages`` those of a set; ``kept`` keeps traces in a store's cache; ``drawing`` plots them.
"""

from continual.analysis.tracing.config import KINDS, TracingConfig
from continual.analysis.tracing.results import FactTrace
from continual.analysis.tracing.tracer import NotTraceable, Tracer

__all__ = ["KINDS", "FactTrace", "NotTraceable", "Tracer", "TracingConfig"]
