"""Pages to look at: the report of a run, several runs compared, images that were segmented."""

from cosa.report.writing import keep_up, write_comparison, write_report

__all__ = ["keep_up", "write_comparison", "write_report"]
