"""Reasoning for answer-only rows, by rejection sampling: the model thinks, and what ends in the row's answer is kept.

Reads top to bottom: folder and lock, rows, model, sampling by batches, result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from counterpoint.configs.errors import DataError, RunError
from counterpoint.configs.schema import DistillRun
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.intervals import wilson
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.checkpoints.start import put_start, with_start
from counterpoint.train.model.load import device_of, load_model, load_vocabulary_of
from counterpoint.train.run.folder import (
    RunFolder,
    choose_run_folder,
    json_lines,
    state_of,
    what_to_resume,
    write_whole,
)
from counterpoint.train.run.versions import versions
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.scoring.rejection_sampling import Question, distil, question_of, row_of
from counterpoint.train.scoring.scorers import Scorers

ROWS, REFUSED = "distilled.jsonl", "refused.jsonl"


def run(settings: DistillRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Write `distilled.jsonl` into the run folder. resume: continue where a run was cut off; the file is the same.

    overwrite: start anew in the newest folder of this name.
    """
    settings = with_start(settings)
    resume = what_to_resume(settings, resume)
    renderer = Renderer(load_vocabulary_of(settings.model), settings.data)
    questions = read_questions(settings, renderer)
    with RunFolder(*choose_run_folder(settings, resume, overwrite)) as folder:
        path = folder.path
        print(f"run folder  {path}")
        done = finished(folder, fingerprint(questions, settings, renderer), resume)
        folder.describe(settings, versions(device_of(settings.device).type))
        left = [question for question in questions if question.number not in done]
        print(f"{len(questions)} questions" + (f", {len(done)} of them done before" if done else ""))
        loaded = put_start(load_model(settings.model, device_of(settings.device)), settings.model)
        use_implementations(loaded.model, settings.model)
        sampler = Sampler(loaded, batch_rows=settings.distill.batch)
        with Scorers() as scorers:
            for start in range(0, len(left), settings.distill.batch):
                batch = left[start : start + settings.distill.batch]
                folder.lock.check()
                for found in sample_batch(settings, batch, renderer, sampler, scorers):
                    done[int(found["number"])] = found
                    with (path / (ROWS if "row" in found else REFUSED)).open("a", encoding="utf-8") as file:
                        file.write(json.dumps(found, ensure_ascii=False) + "\n")
                print(acceptance(done), flush=True)
        folder.state(state="finished", acceptance=acceptance(done))
        result = write_result(path)
        print(f"data        {result}")
        if not any("row" in found for found in done.values()):
            raise RunError(
                f"{result}: no answer was accepted, so there is no row: see {path / REFUSED}; raise distill.samples or "
                "distill.max_new_tokens, or take a stronger model"
            )
        print(f"next        counterpoint train CONFIG data.train={result}")
    return 0


def read_questions(settings: DistillRun, renderer: Renderer) -> list[Question]:
    """The questions of all rows; DataError for a bad row, or where no row has one."""
    questions: list[Question] = []
    others = 0
    rows = read_conversations(settings.data.train, settings.data)
    for number, item in enumerate(rows):
        if not isinstance(item, Conversation):
            raise DataError(getattr(item, "message", "data.train: a preference pair: distill takes conversations"))
        question = question_of(number, item, renderer)
        others += question is None
        if question is not None:
            questions.append(question)
    if others:
        print(f"{others} rows are left out: they end in tool calls, or nothing gives their right answer")
    if not questions:
        raise DataError("data.train: no row has a question with an answer: see `counterpoint show`")
    return questions


def fingerprint(questions: list[Question], settings: DistillRun, renderer: Renderer) -> str:
    """Hash of everything that a sample and its acceptance depend on, apart from the model's weights."""
    digest = hashlib.sha256(repr((settings.seed, settings.distill, settings.model)).encode())
    for question in questions:
        ids = renderer.prompt(question.prompt.conversation, question.effort)
        digest.update(repr((question.number, ids, question.answer, question.prompt.scorer)).encode())
    return digest.hexdigest()


def finished(folder: RunFolder, hash_now: str, resume: str | None) -> dict[int, dict[str, Any]]:
    """What an earlier run wrote of the same questions; a line that a kill cut short is dropped. RunError else."""
    state = folder.path / "run.json"
    if resume is None or not state.is_file():
        folder.empty()
        folder.state(state="running", data=hash_now)
        return {}
    if state_of(folder.path).get("data") != hash_now:
        raise RunError(f"{folder.path}: its rows or settings were others: start a new run, without --resume")
    done: dict[int, dict[str, Any]] = {}
    for name in (ROWS, REFUSED):
        lines = json_lines(folder.path / name)
        done |= {line["number"]: line for line in lines}
        if (folder.path / name).is_file():
            write_whole(folder.path / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return done


def sample_batch(
    settings: DistillRun, batch: list[Question], renderer: Renderer, sampler: Sampler, scorers: Scorers
) -> Iterator[dict[str, Any]]:
    """A line for each question: its row, or why it has none."""
    distill = settings.distill
    for done in distil(
        batch,
        renderer,
        sampler,
        scorers,
        samples=distill.samples,
        max_new_tokens=distill.max_new_tokens,
        temperature=distill.temperature,
        seed=settings.seed,
        scorer=distill.scorer,
        least_tokens=distill.least_tokens,
    ):
        line: dict[str, Any] = {"number": done.question.number, "id": done.question.prompt.id, "samples": done.samples}
        if done.completion is not None:
            line["row"] = row_of(done, distill.keep_answer)
        yield line


def acceptance(done: dict[int, dict[str, Any]]) -> str:
    """Shares with their intervals: rows that were accepted, and samples."""
    rows = sum("row" in line for line in done.values())
    drawn = sum(line["samples"] for line in done.values())
    low, high = wilson(rows, len(done))
    return f"accepted {rows} of {len(done)} rows ({rows / len(done):.2f} [{low:.2f}, {high:.2f}]) in {drawn} samples"


def write_result(path: Path) -> Path:
    """The accepted rows alone, in the order of the source: what `recipe: sft` takes."""
    lines = sorted(json_lines(path / ROWS), key=lambda line: cast(int, line["number"]))
    result = path / "data.jsonl"
    write_whole(result, "".join(json.dumps(line["row"], ensure_ascii=False) + "\n" for line in lines))
    return result
