"""One file per command, each with a `command` that `cli.main` loads when it is asked for."""
