"""The documentation site: Sphinx with MyST's Markdown and the theme Furo.

    sphinx-build -W --keep-going -b html docs docs/_build

Pages of reference are made from the code: the commands by sphinx-click, the settings and the names
that can be chosen by `docs/extensions/tables.py`, Python's interface from its docstrings.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

project = "cedit"
author = "the authors of cedit"
smartquotes = False  # they make one dash of the two of an option
html_show_copyright = False
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "tables",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "extensions"]
html_theme = "furo"
html_title = "cedit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path: list[str] = []
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
suppress_warnings = ["misc.highlighting_failure"]
