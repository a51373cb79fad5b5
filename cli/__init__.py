"""The faces of cedit: what a person at a terminal sees. No logic of their own."""
