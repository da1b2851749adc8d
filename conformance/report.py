"""Tables of results, and the page `docs/conformance.md`. The standard library alone.

A row of a table is a run: a peer, or one of the forms that its `forms.json` names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Passes = Callable[..., bool | None]


@dataclass
class Result:
    """A scored run. found: what `score.py` says of each case."""

    peer: str
    form: str
    versions: dict[str, str]
    seconds: float
    found: dict[str, Json]

    @property
    def name(self) -> str:
        return f"{self.peer} ({self.form})" if self.form else self.peer

    @property
    def file(self) -> str:
        return "-".join(part for part in (self.peer, self.form) if part).replace("=", "_")


@dataclass
class Book:
    """Results over one suite. passes: `score.passes`."""

    suite: Any
    results: list[Result]
    passes: Passes

    def required(self, training: bool) -> list[str]:
        wanted = (name for name, case in self.suite.cases.items() if case["status"] == "required")
        return [name for name in wanted if ("actions" in self.suite.cases[name]) == training]

    @property
    def trained(self) -> list[Result]:
        """The runs that made training examples."""
        cases = self.required(training=True)
        return [r for r in self.results if any(r.found[name]["outcome"] != "unsupported" for name in cases)]

    def count(self, result: Result, reference: str, cases: Sequence[str], **how: bool) -> tuple[int, int]:
        """Passes, and the cases that the peer and the reference can express."""
        verdicts = [self.passes(self.suite.cases[name], result.found[name], reference, **how) for name in cases]
        return sum(v is True for v in verdicts), sum(v is not None for v in verdicts)

    def best(self, result: Result) -> str:
        """The reference under which a run passes most: its own where a form names one."""
        if result.form in self.suite.references:
            return result.form
        cases = self.required(training=True)
        return max(self.suite.references, key=lambda name: self.count(result, name, cases, mild=True)[0])


_LETTERS = {"exact": "e", "equivalent": "q", "different": "d"}
_GRADES = {letter: grade for grade, letter in _LETTERS.items()}


def result_json(result: Result, about: Json, references: Sequence[str]) -> str:
    """A results file: what is about the run, then one line a case. `prompts` has a letter for each reference, in order:
    e exact, q equivalent, d different, - not to be had."""
    lines = []
    for name, found in result.found.items():
        case = dict(found)
        if "prompts" in case:
            case["prompts"] = "".join(_LETTERS.get(case["prompts"].get(reference), "-") for reference in references)
        lines.append(f"{json.dumps(name)}:{json.dumps(case, ensure_ascii=False, separators=(',', ':'))}")
    head = {"peer": result.peer, "form": result.form, "versions": result.versions, "seconds": round(result.seconds, 1)}
    head |= {**about, "references": list(references)}
    body = ",\n".join(lines)
    return f'{json.dumps(head, ensure_ascii=False)[:-1]},\n"cases":{{\n{body}\n}}}}\n'


def read_result(text: str) -> tuple[Result, Json]:
    """A result and what is about its run, from its file."""
    stored = json.loads(text)
    for found in stored["cases"].values():
        if "prompts" in found:
            letters = zip(stored["references"], found["prompts"], strict=True)
            found["prompts"] = {name: _GRADES[letter] for name, letter in letters if letter != "-"}
    keys = ("peer", "form", "versions", "seconds", "cases", "references")
    about = {key: value for key, value in stored.items() if key not in keys}
    return Result(stored["peer"], stored["form"], stored["versions"], stored["seconds"], stored["cases"]), about


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def pass_table(book: Book) -> str:
    """Training cases that pass, strict and mild mask, of those that can be expressed, under each reference."""
    cases = book.required(training=True)
    rows: list[list[object]] = []
    for result in book.trained:
        row: list[object] = [result.name]
        for reference in book.suite.references:
            strict, of = book.count(result, reference, cases)
            mild, _ = book.count(result, reference, cases, mild=True)
            text = f"{strict} / {mild} / {of}" if of else "-"
            row.append(f"**{text}**" if reference == book.best(result) and of else text)
        rows.append(row)
    return table(["peer", *book.suite.references], rows)


def part_table(book: Book) -> str:
    """The parts of the same cases: targets, masks, and prompts under the best reference."""
    cases = book.required(training=True)
    rows: list[list[object]] = []
    for result in book.trained:
        reference = book.best(result)
        scored = [result.found[name] for name in cases if result.found[name]["outcome"] == "scored"]
        prompts = [found["prompts"].get(reference) for found in scored]
        outcomes = [result.found[name]["outcome"] for name in cases]
        rows.append(
            [
                result.name,
                sum(found["target"] for found in scored),
                sum(found["mask"] == "strict" for found in scored),
                sum(found["mask"] in ("strict", "mild") for found in scored),
                reference,
                *(prompts.count(grade) for grade in ("exact", "equivalent", "different")),
                outcomes.count("unsupported"),
                outcomes.count("error"),
            ]
        )
    head = ["peer", "target", "mask strict", "mask mild", "prompts under", "exact", "equivalent", "different"]
    return table([*head, "unsupported", "errors"], rows)


def category_table(book: Book) -> str:
    """Passes by category, mild mask, under the best reference of each run; of several forms of ours the first."""
    ours = [result for result in book.trained if result.peer == "counterpoint"]
    results = [result for result in book.trained if result not in ours[1:]]
    rows: list[list[object]] = []
    for category, names in book.suite.categories.items():
        cases = [name for name in names if book.suite.cases[name]["status"] == "required"]
        if not cases or "actions" not in book.suite.cases[cases[0]]:
            continue
        row: list[object] = [category, len(cases)]
        for result in results:
            passed, of = book.count(result, book.best(result), cases, mild=True)
            row.append("-" if not of else passed if of == len(cases) else f"{passed} of {of}")
        rows.append(row)
    return table(["category", "cases", *(result.name for result in results)], rows)


def completion_table(book: Book) -> str:
    """Valid completions read right, malformed ones refused by group; arguable ones apart."""
    cases = {name: case for name, case in book.suite.cases.items() if "valid" in case}
    groups = ("structure", "ending", "order", "tools", "text")
    kinds: dict[str, Callable[[Json], bool]] = {
        "valid, calls": lambda case: case["valid"] and any(m["recipient"] for m in case["expect"]),
        "valid, answers": lambda case: case["valid"] and not any(m["recipient"] for m in case["expect"]),
    } | {f"refused: {group}": (lambda case, g=group: not case["valid"] and case["group"] == g) for group in groups}
    head: list[str] = ["peer"]
    columns: list[list[str]] = []
    for kind, wanted in kinds.items():
        for status in ("required", "arguable"):
            names = [name for name, case in cases.items() if wanted(case) and case["status"] == status]
            if names:
                head.append(kind + (" (arguable)" if status == "arguable" else ""))
                columns.append(names)
    rows = []
    for result in book.results:
        if all(result.found[name]["outcome"] == "unsupported" for name in cases):
            continue
        row: list[object] = [result.name]
        for names in columns:
            judged = [result.found[name] for name in names if result.found[name]["outcome"] != "unsupported"]
            row.append(f"{sum(found.get('right', False) for found in judged)} of {len(judged)}" if judged else "-")
        rows.append(row)
    return table(head, rows)


def totals(book: Book, result: Result) -> Json:
    """The counts of a run as one object; a pass is one of the strict mask."""
    cases = book.required(training=True)
    under = {}
    for reference in book.suite.references:
        strict, of = book.count(result, reference, cases)
        mild, _ = book.count(result, reference, cases, mild=True)
        exact, _ = book.count(result, reference, cases, exact=True)
        under[reference] = {"strict": strict, "mild": mild, "exact": exact, "of": of}
    completions = [result.found[name] for name in book.required(training=False)]
    judged = [found for found in completions if found["outcome"] != "unsupported"]
    read = {"right": sum(found.get("right", False) for found in judged), "of": len(judged)}
    run = {"peer": result.peer, "form": result.form, "versions": result.versions, "seconds": round(result.seconds, 1)}
    return {**run, "references": under, "completions": read}


def terminal(book: Book) -> str:
    """The two main tables for a terminal."""
    titles = ("training rows: passes with the strict mask / the mild mask / cases that both can express", "completions")
    return "\n\n".join(
        f"{title}\n{_aligned(text.replace('**', ''))}"
        for title, text in zip(titles, (pass_table(book), completion_table(book)), strict=True)
    )


def _aligned(markdown: str) -> str:
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines() if not line.startswith("|---")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def differences(
    suite: Any, name: str, answer: Json, score: Any, decode: Callable[[Sequence[int]], str]
) -> Iterator[str]:
    """What a case's answer and its references have in place of each other, from where they part."""
    case = suite.cases[name]
    if "actions" not in case:
        yield "completion: " + decode([id_ for id_ in case["ids"] if 0 <= id_ < 201_088])
        yield "answer: " + json.dumps(answer, ensure_ascii=False)
        return
    examples = answer.get("examples", [])
    actions = [action for action in score.actions_of(examples) if action.trained]
    for number, wanted in enumerate(case["actions"]):
        for reference_name, reference in suite.references.items():
            prompt = reference.prompt(name, number)
            if prompt is None or not actions:
                continue
            prompts = [list(examples[a.example]["ids"][: a.start + 2]) for a in actions]
            nearest = max(prompts, key=lambda ids: (_common(ids, prompt), -abs(len(ids) - len(prompt))))
            if nearest != prompt:
                at = max(_common(nearest, prompt) - 8, 0)
                yield f"action {number}, prompt under {reference_name}:"
                yield f"  has   ...{decode(nearest[at : at + 60])!r}"
                yield f"  wants ...{decode(prompt[at : at + 60])!r}"
        yield f"action {number}, target: " + "".join(
            decode([*message["headers"][0], *message["body_ids"], message["end"]]) for message in wanted["target"]
        )
    for number, example in enumerate(examples):
        trained = sum(map(bool, example["mask"]))
        yield f"example {number}: {trained} of {len(example['mask'])} tokens trained, ends in"
        yield f"  ...{decode(example['ids'][-80:])!r}"


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)


def failures(book: Book, result: Result, status: str = "required") -> Iterator[tuple[str, str, str]]:
    """Kind, case and fault of every case that does not pass under the best reference (mild mask)."""
    reference = book.best(result)
    for name, found in result.found.items():
        case = book.suite.cases[name]
        if case["status"] != status or found["outcome"] == "unsupported":
            continue
        if book.passes(case, found, reference, mild=True, exact=True) is not False:
            continue
        if found["outcome"] == "error":
            yield "error", name, found["faults"][0]
        elif "valid" in case:
            kind = "reads a valid completion otherwise" if case["valid"] else f"accepts: {case['group']}"
            yield kind, name, found["faults"][0]
        else:
            prompt = found["prompts"].get(reference)
            if prompt != "exact":
                yield f"prompt: {name.rpartition('-')[0]}", name, f"{prompt} under {reference}"
            for fault in found["faults"]:
                if "mask wrong" in fault or "trained twice" in fault or "belongs to no action" in fault:
                    yield "mask", name, fault
                elif "mask mild" not in fault:
                    yield f"target: {fault.rpartition(': ')[2].partition(' ')[0]}", name, fault


def reproducers(book: Book, result: Result) -> str:
    """The first case of every kind of failure, with the command that shows it."""
    first: dict[str, tuple[str, str, int]] = {}
    for kind, name, fault in failures(book, result):
        known = first.get(kind)
        first[kind] = (name, fault, 1) if known is None else (*known[:2], known[2] + 1)
    rows = [
        [kind, count, book.suite.cases[name]["property"], fault[:110], f"`--case {name}`"]
        for kind, (name, fault, count) in first.items()
    ]
    return table(["kind", "cases", "the first one", "what it shows", "reproducer"], rows) if rows else ""


def arguable_table(book: Book, result: Result) -> str:
    rows = [
        [name, book.suite.cases[name]["property"], kind, book.suite.cases[name]["why"]]
        for kind, name, _ in failures(book, result, "arguable")
    ]
    return table(["case", "property", "how it differs", "why it is arguable"], rows) if rows else ""


def page(book: Book, about: Mapping[str, str], intro: str) -> str:
    """The page, from results alone. about: date and command of the run. intro: the text above the tables."""
    required, arguable = (
        sum(case["status"] == status for case in book.suite.cases.values()) for status in ("required", "arguable")
    )
    references = [
        [f"`{name}`", ", ".join(f"{package} {version}" for package, version in reference.versions.items())]
        for name, reference in book.suite.references.items()
    ]
    runs = [
        [r.name, ", ".join(f"{package} {version}" for package, version in r.versions.items()), f"{r.seconds:.1f}"]
        for r in book.results
    ]
    ours = [result for result in book.results if result.peer == "counterpoint"]
    others = [result for result in book.results if result.peer != "counterpoint"]
    parts = [
        intro.strip(),
        f"## The run\n\nMade on {about['date']} by `{about['command']}`: {required} required cases and {arguable} "
        "arguable ones. Seconds are those of the run, without installation.",
        table(["peer", "versions", "seconds"], runs),
        table(["reference", "made by"], references),
        "## Training rows\n\nRequired cases that pass with the strict mask / with the mild mask / that peer and "
        "reference can express; bold is the reference that a row is judged by below.",
        pass_table(book),
        "### Parts",
        part_table(book),
        "### By category\n\nMild mask, under the reference in bold above; `-`: the peer cannot express it.",
        category_table(book),
        "## Completions\n\nRead right, or refused. A lenient reader may be lenient on purpose.",
        completion_table(book),
        "## Where ours fails",
    ]
    for result in ours:
        shown = reproducers(book, result)
        parts += [f"Under `{book.best(result)}`: " + ("required cases that differ" if shown else "no required case.")]
        parts += [shown] if shown else []
    if ours:
        shown = arguable_table(book, ours[0])
        parts += ["### Where ours is arguable", shown] if shown else []
    parts.append("## Where the others differ\n\nOne row a kind of failure, each with its first case.")
    for result in others:
        shown = reproducers(book, result)
        command = f"counterpoint conformance --peer {result.peer} --case CASE"
        parts += [f"### {result.name}\n\n`{command}`", shown] if shown else []
    return "\n\n".join(parts) + "\n"
