"""The watch set: text and questions that an edit has to leave alone although nobody said so.

    config       the store's [watch] table: the amount that is watched, and the limit on changes
    passages     texts with the token that is expected behind each position
    writing      texts that the model writes itself, sampled or greedy
    general      general text of the base model: half is memory, half is held out and measured
    names        other subjects: from the store's history, and as the model lists them
    neighbours   the neighbourhood of one request: other questions about its subject, its prompt
                 about other subjects, and the words behind its answer
    stating      passages that state the very fact that an edit corrects
    fluency      entropy of n-grams of a continuation

Memory is for editors: they stay silent on it. Held-out passages are never shown to an editor; the
ledger measures them after every step, and `step.watching` refuses an edit that changes too many.
"""
