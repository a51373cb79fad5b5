"""Erasing a relation: the values of its neurons set to zero, in a revision without requests.

A revision of operation "erase" names the relation and the neurons, and has a patch as an edit's: a
low-rank one that takes the values away (Dai et al. 2022, section 5). A rollback gives them back,
bit for bit, and so does `revert`, by the revision's name. No request stands behind it, so `rebase`
does not carry it. Leaves finding the neurons to `analysis.neurons`.
"""

from __future__ import annotations

from collections.abc import Sequence

from continual.analysis.neurons import FfnNeuron
from continual.analysis.neurons.operations import SUPPRESSED, scaled_values
from continual.effects import moved_blocks
from continual.errors import CeditError
from continual.history.rewriting import rewrite
from continual.open_store import OpenStore
from continual.patches import pack
from store import Draft, Layer, Revision, operations


def erase(opened: OpenStore, relation: str, neurons: Sequence[FfnNeuron]) -> Revision:
    """Set the values of neurons to zero at head, and measure the model without them. Raises
    CeditError if there are none, or all of these values are zero already."""
    opened.stand_at_head()
    edited = opened.edited
    present = [n for n in neurons if bool(edited.weight(n.block).sum[n.place].any())]
    if not present:
        raise CeditError(
            f"There is nothing to erase of {relation!r}: it has no neurons, or their values are "
            "zero already."
        )

    def put_on(layers: Sequence[Layer]) -> Draft:
        patch = scaled_values(edited, present, SUPPRESSED)
        patch.check()
        edited.put([patch])
        edited.settle()
        tensors, meta = pack([patch])
        body = {
            "relation": relation,
            "neurons": [list(neuron) for neuron in present],
            **moved_blocks(patch.reach, opened.site.place),
        }
        parent, fingerprint = layers[-1].revision.id, edited.fingerprint
        return Draft(operations.ERASE, parent, fingerprint, body, tensors=tensors, patch_meta=meta)

    revision = rewrite(opened, put_on)
    opened.settle()
    return revision
