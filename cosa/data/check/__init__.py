"""A look at a data set before anything is made of it: data that cannot lie.

``statistics`` counts what is in it, ``rules`` judge the counts, ``report`` does both and tells.
"""

from cosa.data.check.report import Report, examine, examine_masks
from cosa.data.check.rules import Finding

__all__ = ["Finding", "Report", "examine", "examine_masks"]
