"""Tables of the site that are read from the code: editors, readers and settings.

Directives `editors`, `readers` and `settings`, each without arguments.
"""

from __future__ import annotations

from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from continual.choices import CHAINS, EDITORS, READERS
from continual.described import settings_of, table_class, table_names, toml_value


class Generated(SphinxDirective):
    """A piece of Markdown that is made when the page is built."""

    def lines(self) -> Iterator[str]:
        """The lines of Markdown."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """The nodes of the lines."""
        return self.parse_text_to_nodes("\n".join(self.lines()), allow_section_headings=True)


class Editors(Generated):
    """Editors and chains by name."""

    def lines(self) -> Iterator[str]:
        """A row for each."""
        yield from ("| editor | what it does | tasks |", "|---|---|---|")
        for entry in EDITORS.values():
            yield f"| `{entry.name}` | {entry.summary} | {', '.join(entry.tasks) or 'all'} |"
        for chain in CHAINS.values():
            yield f"| `{chain.name}` | {chain.summary} | all |"


class Readers(Generated):
    """Formats of corrections."""

    def lines(self) -> Iterator[str]:
        """A row for each."""
        yield from ("| format | |", "|---|---|")
        for name, summary in READERS.summaries.items():
            yield f"| `{name}` | {summary} |"


class Settings(Generated):
    """Every table of `cedit.toml` that has a class."""

    def lines(self) -> Iterator[str]:
        """A heading and a table for each."""
        for name in table_names():
            yield from (f"## [{name}]", "", "| key | default | meaning |", "|---|---|---|")
            for setting in settings_of(table_class(name)):
                default = "" if setting.is_required else toml_value(setting.default)
                meaning = setting.meaning.replace("|", "\\|")
                yield f"| `{setting.name}` | {f'`{default}`' if default else ''} | {meaning} |"
            yield ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    for name, directive in (("editors", Editors), ("readers", Readers), ("settings", Settings)):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
