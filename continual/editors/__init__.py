"""The editors: methods that turn requests into a patch. One folder per method, and one line in
`choices`; `continual.proposals` says what all of them are given, and what they give.
"""
