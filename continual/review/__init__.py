"""Corrections that wait for people: proposed, decided, applied, verified, and followed further.

``states`` are the states of a correction and the ways between them, ``items`` the records,
``queue`` keeps them in the store, ``conflicts`` compares them with the corrections in force.
``applying`` makes the approved ones with a session, and ``following`` reads from the history what
became of them later. Knows nothing of HTTP.
"""
