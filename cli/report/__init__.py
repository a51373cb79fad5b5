"""The report as a page: one HTML file that needs nothing else.

`page` is the face. What is shown comes from `continual.reporting`.
"""

from cli.report.page import GENERATOR, page

__all__ = ["GENERATOR", "page"]
