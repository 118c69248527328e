"""Damaged files are refused in one sentence or read soundly: no crash, no hang, no other error.

`benchmarks/fuzz.py` does the same at volume.
"""

from __future__ import annotations

import pytest
from harness import Reader, fuzz, summary
from readers import READERS

INPUTS = 120


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_refused_or_read_soundly(reader: Reader) -> None:
    outcome = fuzz(reader, range(INPUTS), limit=3)
    assert not outcome.findings, f"{summary(outcome.findings)}\nfirst: {outcome.findings[0]}"
    assert outcome.inputs == INPUTS
    assert outcome.refused, "Not one of the damaged files was refused."
