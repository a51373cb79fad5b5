"""The report as a page: one HTML file that needs nothing else.

`page` is the face. The facts on the page come from `continual.reporting`.
"""

from cli.report.page import GENERATOR, page

__all__ = ["GENERATOR", "page"]
