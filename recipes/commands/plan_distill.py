"""`counterpoint plan` of `recipe: distill`: whether the model and what it samples at a time fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoint.configs.errors import NoDataError

if TYPE_CHECKING:
    from counterpoint.configs.schema import DistillRun
    from counterpoint.train.plan.memory import Memory

PROMPT = 1_024
"""Tokens of a prompt where there is no data to read."""
MOST = 1 << 16


def width_of(run: DistillRun) -> tuple[int, list[str]]:
    """Tokens of the longest prompt and its sample together, and the data for a person."""
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.recipes.distill import read_questions
    from counterpoint.train.model.load import load_vocabulary_of

    renderer = Renderer(load_vocabulary_of(run.model), run.data)
    try:
        questions = read_questions(run, renderer)
    except NoDataError as error:
        return PROMPT + run.distill.max_new_tokens, [
            f"not read ({error})",
            f"planned for prompts of {PROMPT:,} tokens and samples of {run.distill.max_new_tokens:,}",
        ]
    longest = max(len(renderer.prompt(each.prompt.conversation, each.prompt.conversation.effort)) for each in questions)
    most = len(questions) * run.distill.samples * run.distill.max_new_tokens
    return longest + run.distill.max_new_tokens, [
        f"{len(questions):,} questions, the longest of {longest:,} tokens; up to {run.distill.samples} samples each",
        f"at most {most:,} tokens are sampled",
    ]


def memory_of(run: DistillRun, device: str, rows: int, width: int) -> Memory:
    """Bytes while `rows` samples of `width` tokens, prompts included, are drawn; without that of `model.adapter`."""
    import torch

    from counterpoint.train.model.load import dtype_of
    from counterpoint.train.plan.estimate import NO_LORA
    from counterpoint.train.plan.memory import while_sampling
    from counterpoint.train.plan.shape import shape_of, weight_bytes

    auto = 2 if device == "cuda" else 4
    itemsize = auto if run.model.dtype == "auto" else dtype_of(run.model.dtype, torch.device("cpu")).itemsize
    shape = shape_of(run.model, NO_LORA)
    return while_sampling(shape, weight_bytes(shape, run.model, itemsize), itemsize, device, rows, width)


def most_at_a_time(run: DistillRun, device: str, width: int, budget: float) -> int:
    """The largest `distill.batch`, up to MOST, with which the run fits into `budget` bytes; 0 for none."""
    low, high = 0, MOST + 1
    while low + 1 < high:
        middle = (low + high) // 2
        fits = memory_of(run, device, middle, width).total <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low
