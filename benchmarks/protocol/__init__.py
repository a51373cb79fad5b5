"""T-Patcher's sequential protocol (Huang et al. 2023, section 4), run whole.

An initial model, trained on D_train, meets a stream of inputs that it was never trained on. It is
edited wherever it is wrong, and SR, GR, ER, TrainR and TestR are measured after every edit.

    splits         D_train, validation, D_edit and D_test of any examples; D_edit in folds
    claims         FEVER's claims, and rules that reword a claim
    questions      zsRE's questions, and questions about ParaRel's facts
    networks       new models of three architectures, with their tokenizers
    training       trains one of them, and keeps it under a digest of its training data
    settings       the streams, probes and models of the three tasks
    runs           one fold by one editor, resumable; a JSON file each
    published      the paper's rows
    reporting      the table and the curves over all runs
"""
