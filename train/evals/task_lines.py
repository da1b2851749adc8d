"""What a terminal says of each task: several samples of a prompt, rollouts and rewards, the base beside it."""

from __future__ import annotations

from counterpoint.data.intervals import Estimate
from counterpoint.train.evals.findings import Findings
from counterpoint.train.evals.report_data import BASE
from counterpoint.train.evals.results import Cell


def task_lines(found: Findings) -> list[str]:
    """Of the shown side, a line or more for each task and effort that was rolled out or sampled several times."""
    before = found.sides.get(BASE) if len(found.sides) > 1 else None
    base = {(cell.task, cell.effort): cell for cell in before.tasks} if before is not None else {}
    return [line for cell in found.shown.tasks for line in _lines(cell, base.get((cell.task, cell.effort)))]


def _lines(cell: Cell, base: Cell | None) -> list[str]:
    head = f"{cell.task or 'prompts'}, {cell.effort}"
    out: list[str] = []
    most = max(cell.pass_at, default=1)
    if most > 1:
        told = [
            f"{name} {_told(found)}{_base(was)}"
            for name, found, was in (
                ("pass@1", cell.pass_at[1], base.pass_at.get(1) if base else None),
                (f"pass@{most}", cell.pass_at[most], base.pass_at.get(most) if base else None),
                (f"pass^{most}", cell.pass_hat[most], base.pass_hat.get(most) if base else None),
            )
        ]
        out.append(f"{head}: {', '.join(told)}")
    numbers, was = cell.rollouts, base.rollouts if base is not None else None
    if numbers is not None:
        ended = ", ".join(f"{how} {count}" for how, count in numbers.ended.items())
        failed = f" ({numbers.faults.share:.2f} failed)" if numbers.faults.count else ""
        out.append(
            f"{head}: {numbers.invalid.n} rollouts, {numbers.turns:.1f} turns, {numbers.calls:.1f} calls{failed}, "
            f"ended: {ended or 'none'}, invalid {numbers.invalid.count}"
        )
        told = [
            f"{name} {_told(estimate)}{_base(was and was.rewards.get(name))}"
            for name, estimate in numbers.rewards.items()
        ]
        told += [f"judged with {numbers.judge_tokens:,} tokens"] if numbers.judge_tokens else []
        out += [f"{head}: {', '.join(told)}"] if told else []
    return out


def _told(found: Estimate) -> str:
    interval = f" [{found.low:.2f}, {found.high:.2f}]" if found.low == found.low else ""
    return f"{found.value:.2f}{interval}"


def _base(found: Estimate | None) -> str:
    return "" if found is None else f" (base {found.value:.2f})"
