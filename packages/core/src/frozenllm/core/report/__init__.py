"""``frozenllm report``: one page about finished runs, which needs neither their data nor a network.

Needs the extra ``[train]``::

    from frozenllm.core.report import write_report

    write_report(["runs/digits"], "report.html")
"""

import frozenllm.core.training  # noqa: F401 (first: it names the extra where that is missing)

# isort: split
from frozenllm.core.report.page import Lead, write_report

__all__ = ["Lead", "write_report"]
