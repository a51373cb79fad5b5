"""The commands and the report page that a person sees. They have no logic of their own."""

__distribution__ = "cedit"
