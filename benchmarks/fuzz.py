"""Damaged files for every reader of outside files: what is refused, what is read, and what goes wrong.

    python benchmarks/fuzz.py --inputs 10000

A reader may refuse a file with a ValueError of one line, or read it and give something sound; a crash, a hang, another
error, or a result that is not sound is a finding. The same seed gives the same damage, so findings can be repeated with
--first SEED --inputs 1. Ends with status 1 if there are findings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS / "core"), str(TESTS / "fuzz")]

from harness import fuzz, summary  # noqa: E402 - of the tests, which feed the same readers
from readers import READERS  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="damaged files per reader (default: 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--reader", default="", help="only readers whose name contains this")
    parser.add_argument("--json", type=Path, help="write the outcomes there")
    options = parser.parse_args()
    chosen = [reader for reader in READERS if options.reader in reader.name]
    if not chosen:
        parser.error(f"there is no reader {options.reader!r}; there are: {', '.join(r.name for r in READERS)}")
    outcomes = {}
    print("| reader | inputs | refused | read | findings | seconds |\n|---|---|---|---|---|---|", flush=True)
    for reader in chosen:
        start = time.perf_counter()
        outcome = fuzz(reader, range(options.first, options.first + options.inputs))
        outcomes[reader.name] = asdict(outcome)
        print(
            f"| {reader.name} | {outcome.inputs} | {outcome.refused} | {outcome.accepted} | {len(outcome.findings)} "
            f"| {time.perf_counter() - start:.0f} |",
            flush=True,
        )
        for text, count in summary(outcome.findings).items():
            seeds = [seed for seed, found in outcome.findings if found.splitlines()[-1][:160] == text]
            print(f"  {count} x {text} (seeds {seeds[:5]})", file=sys.stderr, flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(outcomes, indent=2) + "\n")
    return int(any(outcome["findings"] for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
