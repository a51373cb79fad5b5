"""Benchmarks: the published protocols, the cost of each part, and every fault.

Each is run from the project root:

    python -m benchmarks.atlas         the embedded model against its bars
    python -m benchmarks.protocol      T-Patcher's protocol on fever, zsre and counterfact, by fold
    python -m benchmarks.sequential    1,000 corrections of the atlas, one by one
    python -m benchmarks.batches       300 corrections of the atlas in batches of 10, by editor
    python -m benchmarks.lookup        the look-up beside T-Patcher, one correction after another
    python -m benchmarks.long_streams  10,000 corrections of the atlas, all of them in force
    python -m benchmarks.instead       a LoRA, and retrieval into the prompt, on the same stream
    python -m benchmarks.counterfact   500 CounterFact records, on a model that knows their facts
    python -m benchmarks.real_model    a pretrained model after a stream, asked from outside
    python -m benchmarks.mmedit        single edits of a model that sees, by MMEdit's metrics
    python -m benchmarks.baselines     fine-tuning on the atlas, one correction after another
    python -m benchmarks.gradients     editors by gradients on the atlas, one after another
    python -m benchmarks.memory        SERAC and IKE on the atlas, one correction after another
    python -m benchmarks.retention     what lasts of batches of weight edits, and as one patch
    python -m benchmarks.capacity      how many facts one batch of weight edits takes
    python -m benchmarks.footprint     memory and seconds of an edit, by editor and base
    python -m benchmarks.gallery_sheet  the gallery's pictures, drawn on one sheet
    python -m benchmarks.picture_corrections  corrections of pictures, before and after, drawn
    python -m benchmarks.gates         a plane between a correction's wordings and all else
    python -m benchmarks.knowledge_neurons  suppressed, amplified, erased; beside the published rows
    python -m benchmarks.places        T-Patcher at every block, key and landing
    python -m benchmarks.tracing       causal traces here against a full pass for every place
    python -m benchmarks.trace_and_edit  where facts are carried against where edits work
    python -m benchmarks.architectures  every class of transformers' maps, as a tiny random model
    python -m benchmarks.calibration   settings chosen by measuring, on worlds of other recipes
    python -m benchmarks.saving        the edited model as other tools load it, in each form
    python -m benchmarks.scope         the right record among many, or none
    python -m benchmarks.train_scope   the training of the scope that comes with the package
    python -m benchmarks.efficiency    seconds, memory and bytes of an edit, for every editor
    python -m benchmarks.edit_seconds  seconds of an edit on CounterFact and zsRE, every editor
    python -m benchmarks.speed         T-Patcher here against the paper's own loop
    python -m benchmarks.memit_speed   MEMIT here against the straightforward loop
    python -m benchmarks.workers       maps by workers beside one process, up to 100,000 probes
    python -m benchmarks.vectors       the vector index at size
    python -m benchmarks.commits       a commit against a bare LMDB transaction
    python -m benchmarks.history       going back in a long history, and opening it
    python -m benchmarks.serving       a served model under load while it is corrected
    python -m benchmarks.durability    a run that is killed, a history that is walked
    python -m benchmarks.faults        every fault that a store may meet

Each prints a table to standard output. With `--json OUT` most also write it to a file, with its
settings.
"""
