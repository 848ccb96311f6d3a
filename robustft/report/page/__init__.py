"""The report as one HTML file: what its sections say, and the templates that they are written with.

A section is a function in a file of its own, listed in `SECTIONS`, and a template in templates/.
"""

from robustft.report.page.listed import SECTIONS
from robustft.report.page.render import render
from robustft.report.page.section import Report, Section

__all__ = ["SECTIONS", "Report", "Section", "render"]
