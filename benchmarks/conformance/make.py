"""The cases of the conformance suite: `python benchmarks/conformance/make.py` writes conformance/cases again.

Every run writes the same bytes. `--check` compares instead, and names the files that differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from building import Category, header_table
from completions import malformed, valid
from dialogues import (
    builtin,
    developer_texts,
    efforts,
    late_system,
    multi_turn,
    parallel,
    preamble,
    single,
    structured,
    tool_loop,
)
from schemas import schemas
from texts import empty, reasoning_forms, typed_markup, unicode_texts

SUITE = Path(__file__).parents[2] / "conformance"
CATEGORIES = (
    single,
    multi_turn,
    tool_loop,
    preamble,
    parallel,
    builtin,
    structured,
    efforts,
    developer_texts,
    schemas,
    late_system,
    typed_markup,
    unicode_texts,
    empty,
    reasoning_forms,
    valid,
    malformed,
)


def category_text(category: Category) -> str:
    """A file of cases: one line a case."""
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in category.cases)
    head = json.dumps({"category": category.name, "about": category.about}, ensure_ascii=False)[1:-1]
    return f'{{{head}, "cases": [\n{lines}\n]}}\n'


def files() -> dict[Path, str]:
    made = [make() for make in CATEGORIES]
    cases = [case for category in made for case in category.cases]
    first: dict[str, str] = {}
    for case in cases:
        content = {key: value for key, value in case.items() if key not in ("id", "property", "status", "why")}
        same = first.setdefault(json.dumps(content, sort_keys=True), case["id"])
        assert same == case["id"], f"{case['id']} is the same case as {same}"
    table = header_table(cases)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(ids, separators=(',', ':'))}" for name, ids in table.items())
    texts = {SUITE / "cases" / f"{category.name}.json": category_text(category) for category in made}
    return texts | {SUITE / "headers.json": f"{{\n{lines}\n}}\n"}


def main() -> int:
    texts = files()
    if "--check" in sys.argv[1:]:
        stale = {path for path in (SUITE / "cases").glob("*.json") if path not in texts}
        stale |= {path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text}
        for path in sorted(stale):
            print(f"{path.relative_to(SUITE)} differs: run benchmarks/conformance/make.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    counts = {"required": 0, "arguable": 0}
    for path in sorted((SUITE / "cases").glob("*.json")):
        cases = json.loads(path.read_text("utf-8"))["cases"]
        for case in cases:
            counts[case["status"]] += 1
        print(f"{path.stem:<24}{len(cases):>4}")
    print(counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
