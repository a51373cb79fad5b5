"""The edited model: a base, and the patches of one revision, put on in order.

`EditedModel` behaves as the transformers model that it wraps: within its `with` block `generate`
and pipelines run with the patches. Taking patches off rebuilds the tensors that they touched, so
that going back gives the same bytes as never having gone forward. Records beside the weights are
put on and taken off alike; `generate` then answers an input that is about a record by the record.

``effects`` holds the effects of patches; ``parameters`` and ``gates`` make those of their kinds,
``states`` puts patches on and takes them off, and ``edited`` is the model that the others see.
Knows nothing of requests or of the store.
"""

from continual.model.edited import EditedModel, Recalling, stand_at
from continual.model.states import Since, tensor_bytes

__all__ = ["EditedModel", "Recalling", "Since", "stand_at", "tensor_bytes"]
