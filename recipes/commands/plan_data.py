"""What a run will train on: rows, tokens, steps, and the largest forward pass; for the command `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from counterpoint.configs.errors import NoDataError
from counterpoint.configs.schema import DpoRun, GrpoRun, SftRun

if TYPE_CHECKING:
    from counterpoint.configs.schema import TrainingRun
    from counterpoint.data.dataset.pairs import Pair, Rated
    from counterpoint.data.layout.tree import TreeRow
    from counterpoint.train.plan.memory import Batch


@dataclass(frozen=True)
class Work:
    """batch: the largest forward pass of a process. steps and tokens of the whole run are None where the data is not
    there. lines: the data, for a person. rows: of a supervised run, to measure with."""

    batch: Batch
    steps: int | None
    tokens: int | None
    lines: tuple[str, ...]
    rows: Sequence[TreeRow] = ()


def work_of(run: TrainingRun) -> Work:
    """Reads the data as training would. Data that is not there is planned for at its longest, and reported; DataError
    for what training would refuse, such as rows that are nearly all bad."""
    try:
        if isinstance(run, SftRun):
            return _supervised(run)
        return _pairs(run) if isinstance(run, DpoRun) else _rollouts(run)
    except NoDataError as error:
        return _longest(run, str(error))


def _processes(run: TrainingRun) -> int:
    return run.launch.processes * run.launch.nodes


def _supervised(run: SftRun) -> Work:
    from counterpoint.data.dataset.build import build_training_sets
    from counterpoint.train.loop.training_arguments import total_steps
    from counterpoint.train.model.load import load_vocabulary_of
    from counterpoint.train.plan.memory import Batch
    from counterpoint.train.run.world import rows_per_step

    sets = build_training_sets(run.data, load_vocabulary_of(run.model), seed=run.seed)
    data = sets.train
    taken = min(run.train.batch_rows, len(data.rows))
    sizes = [_size(row) for row in data.rows]  # each row is read from the disk
    targets = sorted((size.targets for size in sizes), reverse=True)[:taken]
    width = max(size.width for size in sizes)
    batch = Batch(taken, width, sum(targets), *_most_sequences(sizes, taken, width))
    widths = [len(row) for found in sets.held_out.values() for row in found.rows]
    steps, step_rows = total_steps(run, len(data.rows), _processes(run)), rows_per_step(run, _processes(run))
    mean = sum(size.width for size in sizes) / len(sizes)
    passes = steps * step_rows / len(data.rows)
    cut = data.report.too_long
    lines = [
        *data.lines(),
        f"{_counted(len(data.rows), 'row')} of {mean:,.0f} tokens (the longest {batch.width:,}), {step_rows} a step: "
        f"{_counted(steps, 'step')}, {passes:.3g} passes",
        f"{cut:,} examples longer than data.max_tokens ({run.data.max_tokens:,}) left out"
        if cut
        else "no row is longer",
        *sets.lines,
        *_held_out(run, widths, "row", steps),
    ]
    batch = _with_held_out(batch, widths, run.train.batch_rows)
    return Work(batch, steps, round(steps * step_rows * mean), tuple(lines), data.rows)


class _Size(NamedTuple):
    """Of a row: tokens, targets, and the sequences and keys that a flash kernel takes it as."""

    width: int
    targets: int
    sequences: int
    keys: int


def _size(row: TreeRow) -> _Size:
    import numpy as np

    from counterpoint.train.model.attention_plan import flash_sequences

    sequences, keys = flash_sequences(row.position.astype(np.int64), row.subtree_end.astype(np.int64))
    return _Size(len(row), len(row.target_id), sequences, keys)


def _most_sequences(rows: Sequence[_Size], taken: int, width: int) -> tuple[int, int]:
    """Sequences and keys of the batch of `taken` rows for which a flash kernel takes most memory, with padding."""
    from counterpoint.data.layout.collate import PADDING_RUN

    found: list[tuple[int, int]] = []
    for row in rows:
        found.append((row.sequences - (row.width - width) // PADDING_RUN, row.keys + width - row.width))
    found.sort(key=lambda each: 128 * each[0] + each[1], reverse=True)
    return sum(sequences for sequences, _ in found[:taken]), sum(keys for _, keys in found[:taken])


def _pairs(run: DpoRun) -> Work:
    from counterpoint.data.dataset.pair_sets import build_pair_sets
    from counterpoint.train.loop.rl_arguments import steps_of
    from counterpoint.train.model.load import load_vocabulary_of
    from counterpoint.train.run.world import rows_per_step

    sets = build_pair_sets(run.data, run.dpo, load_vocabulary_of(run.model), seed=run.seed)
    found = sets.train
    per_step = rows_per_step(cast(Any, run), _processes(run))
    steps = steps_of(run, len(found.pairs), per_step)
    sizes = [_pair_size(pair) for pair in found.pairs]
    held_out = [_pair_size(pair) for each in sets.held_out.values() for pair in each.pairs]
    mean = sum(size.width for size in sizes) / len(sizes)
    longest = f"the longest {found.noun} has {max(size.width for size in sizes):,} tokens; {per_step} a step: "
    widths = [size.width for size in held_out]
    lines = (
        *found.lines(),
        *sets.lines,
        longest + _counted(steps, "step"),
        *_held_out(run, [2 * n for n in widths], found.noun, steps),
    )
    return Work(_pair_batch(run, sizes, held_out), steps, round(steps * per_step * mean), lines)


def _pair_size(pair: Pair | Rated) -> _Size:
    """As a tree of its own, in which the prompt comes once and what both sides begin with once."""
    from counterpoint.data.dataset.pairs import Rated

    prompt = len(pair.prompt_ids)
    if isinstance(pair, Rated):
        return _Size(pair.tokens, sum(pair.mask), 1, pair.tokens)
    both = zip(pair.chosen_ids, pair.rejected_ids, strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], both))
    width = prompt + len(pair.chosen_ids) + len(pair.rejected_ids) - shared
    return _Size(width, sum(pair.chosen_mask) + sum(pair.rejected_mask), 3, width + 2 * (prompt + shared))


def _pair_batch(run: DpoRun, sizes: Sequence[_Size], held_out: Sequence[_Size] = ()) -> Batch:
    """The largest tree row: of a step of one process as many units as fit, or the longest one."""
    from counterpoint.train.loop.rl_arguments import pair_tokens
    from counterpoint.train.plan.memory import Batch

    largest = sorted(sizes, key=lambda size: size.width, reverse=True)[: run.train.batch_rows * run.train.accumulation]
    longest = max(size.width for size in (*sizes, *held_out))
    width = max(longest, min(pair_tokens(run), sum(size.width for size in largest)))
    fitting = max(1, min(len(largest), width // max(1, largest[-1].width)))
    targets, sequences, keys = (sum(sorted(column)[-fitting:]) for column in list(zip(*largest, strict=True))[1:])
    return Batch(1, width, min(width, targets), sequences, max(width, keys), longest=longest)


def _rollouts(run: GrpoRun) -> Work:
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.recipes.grpo_prompts import read_sets
    from counterpoint.train.loop.grpo_items import items_of
    from counterpoint.train.loop.rl_arguments import sampled_groups, steps_of
    from counterpoint.train.model.load import load_vocabulary_of
    from counterpoint.train.scoring.prompts import load_prompts

    renderer = Renderer(load_vocabulary_of(run.model), run.data)
    try:
        asked = load_prompts(run.eval.prompts)
    except NoDataError:  # they may be on the machine that trains
        asked = []
    sets = read_sets(run, renderer, evaluation=asked)
    prompts, items = sets.train, items_of(sets.train, renderer, run.grpo.efforts)
    rollouts = sampled_groups(run, _processes(run)) * run.grpo.group
    steps = steps_of(run, len(items), sampled_groups(run, _processes(run)))
    held_out = items_of(sets.held_out, renderer, run.grpo.efforts)
    lengths = [len(renderer.prompt(item.prompt.conversation, item.effort)) for item in [*items, *held_out]]
    longest = max(lengths)
    width = longest + run.rollout.completion_tokens
    lines = [
        f"{len(prompts):,} prompts (the longest {longest:,} tokens), rollouts of up to "
        f"{run.rollout.completion_tokens:,} tokens, {rollouts} a step: {_counted(steps, 'step')}",
        "tokens and time count every rollout at its longest, and once more for its sampling",
        *sets.lines,
    ]
    if run.rollout.in_environments:
        lines.append("what the environment says is counted in rollout.completion_tokens alone")
    lines += _held_out(run, [n + run.rollout.completion_tokens for n in lengths[len(items) :]], "rollout", steps)
    if run.tools != type(run.tools)():
        lines.append("declarations of tools are not counted")
    if run.rollout.engine == "vllm":
        lines.append(f"vLLM takes {run.rollout.vllm.gpu_memory:.0%} of each GPU, which is left out of what is free")
    # An environment writes prompts of its own, up to the longest.
    batch = _rollout_batch(run, run.data.max_tokens if run.rollout.in_environments else longest)
    return Work(batch, steps, 2 * steps * rollouts * width, tuple(lines))


def _rollout_batch(run: GrpoRun, prompt: int) -> Batch:
    """The largest tree row: of one process's rollouts, each as long as it may be, as many as fit.

    prompt: tokens of the longest, which a group shares.
    """
    from counterpoint.train.plan.memory import Batch

    each, group = run.rollout.completion_tokens, run.grpo.group
    budget = max(prompt + each, run.grpo.row_tokens or run.data.max_tokens + each)
    rollouts, branches, tokens = run.train.batch_rows * run.train.accumulation, 0, 0
    while branches < rollouts:
        more = each + (prompt if branches % group == 0 else 0)
        if tokens + more > budget:
            break
        branches, tokens = branches + 1, tokens + more
    trunks = -(-branches // group)
    return Batch(1, tokens, branches * each, branches + trunks, tokens + branches * prompt, longest=prompt + each)


def _held_out(run: TrainingRun, widths: Sequence[int], noun: str, steps: int) -> list[str]:
    """A line on what is measured beside training, none where nothing is."""
    if not widths:
        return []
    between = (steps - 1) // run.eval.every if run.eval.every else 0
    times = run.eval.at_start + between + 1
    return [
        f"held-out: {_counted(len(widths), noun)} of {sum(widths):,} tokens (the longest {max(widths):,}), measured "
        f"{_counted(times, 'time')}: {times * sum(widths):,} tokens forward, not in the time below"
    ]


def _with_held_out(batch: Batch, widths: Sequence[int], rows: int) -> Batch:
    """The larger of both forward passes in each of its sizes; a held-out row may be longer than every trained one."""
    if not widths:
        return batch
    return replace(batch, rows=max(batch.rows, min(rows, len(widths))), width=max(batch.width, *widths))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _longest(run: TrainingRun, why: str) -> Work:
    """Full rows that carry loss everywhere: the most that the settings let through."""
    from counterpoint.train.plan.memory import Batch

    rows, width = run.train.batch_rows, run.data.max_tokens
    if isinstance(run, SftRun):
        width = run.data.pack_tokens or width
    batch = Batch(rows, width, rows * width)
    if isinstance(run, DpoRun):
        unit = width if run.dpo.rated else 2 * width
        every = [_Size(unit, unit, 3, 2 * unit)] * (rows * run.train.accumulation)
        batch, width = _pair_batch(run, every), unit
    if isinstance(run, GrpoRun):
        width += run.rollout.completion_tokens
        batch = _rollout_batch(run, run.data.max_tokens)
    lines = (f"not read ({why})", f"planned for full rows of {width:,} tokens")
    per_step = run.train.batch_rows * run.train.accumulation * _processes(run) * width
    steps = run.train.steps
    return Work(batch, steps, steps * per_step if steps else None, lines)
