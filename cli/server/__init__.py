"""The HTTP face of a store: an OpenAI-compatible endpoint, health, metrics.

Knows requests, responses, tokens in headers, and nothing else: answers come from
`continual.serving`. ``app`` puts the parts together; ``service`` holds the objects that they share.
"""
