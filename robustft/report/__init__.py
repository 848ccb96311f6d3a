"""Tables, plots and the HTML report of a list of result records."""

from robustft.report.table import Table, make_table, table
from robustft.report.write import write_report

__all__ = ["Table", "make_table", "table", "write_report"]
