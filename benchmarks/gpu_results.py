"""Results of gpu.py: which failures are known, how a check is judged, the table and the exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""One line of the results: name, result (a key of MARKS), and the numbers of that check or measurement."""
MARKS = {"pass": "ok", "fail": "FAIL", "known": "known", "unexpected pass": "PASS?", "measured": ""}


@dataclass(frozen=True)
class KnownFailure:
    """A check that fails until its fault is mended.

    fault: its name in the issues. numbers: what is wrong because of it; a failure of any other number is a new one.
    """

    fault: str
    reason: str
    numbers: frozenset[str]


KNOWN: dict[str, KnownFailure] = {}
"""By name of the check. They concern the CUDA forms only."""


def judged(name: str, failed: Collection[str], cuda_forms: bool) -> Record:
    """`result` of a check of which the numbers in `failed` are too large, and the fault where it is a known failure."""
    known, wrong = KNOWN.get(name) if cuda_forms else None, {"failed": list(failed)} if failed else {}
    if known is None or not known.numbers.issuperset(failed):
        return {"result": "fail" if failed else "pass", **wrong}
    return {"result": "known" if failed else "unexpected pass", "fault": known.fault, "reason": known.reason, **wrong}


def write(results: Sequence[Record], path: Path) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in results), encoding="utf-8")


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(results: Sequence[Record], seconds: float) -> str:
    """All results in their order, the known failures below, and a line of totals."""
    lines = [_line(record) for record in results if "fault" not in record]
    for fault in dict.fromkeys((record["fault"], record["reason"]) for record in results if "fault" in record):
        lines += ["", "Known failures, {}: {}".format(*fault)]
        lines += [_line(record) for record in results if (record.get("fault"), record.get("reason")) == fault]
    if any(record["result"] == "unexpected pass" for record in results):
        lines.append("A known failure that passes: take its entry out of KNOWN in benchmarks/gpu_results.py")
    count = Counter(record["result"] for record in results)
    totals = f"{count['pass']} passed, {count['fail']} failed, {count['known']} known failures"
    if count["unexpected pass"]:
        totals += f", {count['unexpected pass']} known failures that passed"
    return "\n".join([*lines, "", f"{totals}, {count['measured']} measurements, {seconds:.0f} s"])


def exit_code(results: Sequence[Record]) -> int:
    """1 where anything failed that is not known to."""
    return int(any(record["result"] == "fail" for record in results))


def _line(record: Record) -> str:
    hidden = ("name", "result", "top", "trace", "fault", "reason")
    numbers = "  ".join(f"{name}={value}" for name, value in record.items() if name not in hidden)
    return f"{MARKS[record['result']]:5} {record['name']:58} {numbers}"[:260].rstrip()
