"""A model that answers many people while it is corrected: one thread owns it, and takes turns.

``sampling`` says how a token is chosen, ``texts`` makes readable pieces of tokens, ``asks`` are the
questions, ``generating`` answers them, ``speaking`` names the edits behind a token. ``desk`` is the
thread: an answer is begun and ended at one revision, and edits come between answers. ``receipts``
keeps the latest answers. Knows nothing of HTTP.
"""
