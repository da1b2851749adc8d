"""The conformance suite as its own scripts read it, and answers that are right in every respect."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "conformance"
START_ASSISTANT = [200006, 173781]


@cache
def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@cache
def suite(*references: str) -> Any:
    """The suite with these references only, or with all."""
    whole = module("score").Suite(FOLDER)
    if references:
        whole.references = {name: whole.references[name] for name in references}
    return whole


def right_examples(case: dict[str, Any], reference: Any) -> list[dict[str, list[int]]]:
    """One example an action, with the prompt of the reference; none for actions that it refuses."""
    examples = []
    for number, action in enumerate(case["actions"]):
        prompt = reference.prompt(case["id"], number)
        if prompt is None:
            continue
        ids, mask = list(prompt), [0] * len(prompt)
        for position, message in enumerate(action["target"]):
            spoken = [*(START_ASSISTANT if position else []), *message["headers"][0], *message["body_ids"]]
            ids += [*spoken, message["end"]]
            mask += [1] * (len(spoken) + 1)
        examples.append({"ids": ids, "mask": mask})
    return examples


def right_answer(case: dict[str, Any], reference: Any) -> dict[str, Any]:
    if "actions" in case:
        return {"examples": right_examples(case, reference)}
    return {"messages": case["expect"]} if case["valid"] else {"refused": True}
