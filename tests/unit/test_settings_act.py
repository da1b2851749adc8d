"""Every setting of every recipe does something that is seen here, is refused, or is seen by the test that its row names
(tests/settings_table.py)."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import settings_probes
from pydantic import BaseModel
from settings_table import A_FORMAT, A_TOOL, OF_EVALUATIONS, ROWS, THINKS, Row, chat

from counterpoint.configs.base import kinds_of
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.load import load_run
from counterpoint.configs.model_section import LoraSettings
from counterpoint.configs.schema import RECIPES
from counterpoint.data.formats.registry import check_format
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import load_model

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
TRAINS: dict[str, Any] = {
    "lora": {"rank": 2, "alpha": 4},
    "train": {"device": "cpu", "batch_rows": 8},
    "eval": {"every": 1},
}
LEAST: dict[str, dict[str, Any]] = {
    "sft": {**TRAINS, "data": {"train": [{"path": "rows.jsonl"}], "valid": [{"path": "rows.jsonl"}]}},
    "dpo": {**TRAINS, "data": {"train": [{"path": "rows.jsonl"}], "valid": [{"path": "rows.jsonl"}]}},
    "grpo": {
        **TRAINS,
        "data": {
            "train": [{"type": "file", "path": "prompts.jsonl"}],
            "valid": [{"type": "file", "path": "prompts.jsonl"}],
        },
        "rewards": [{"type": "answer"}],
    },
    "distill": {"data": {"train": [{"path": "rows.jsonl"}]}, "device": "cpu"},
    "evaluate": {"eval": {"tasks": [], "scorer_seconds": 600}, "device": "cpu"},
}


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings; where `type` chooses a class, `[type]` of each."""
    for name, info in model.model_fields.items():
        sections: list[type[BaseModel]] = []
        waiting: list[Any] = [info.annotation]
        while waiting:
            kind = waiting.pop()
            waiting.extend(get_args(kind))
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                sections.append(kind)
        if not sections:
            yield f"{prefix}{name}"
        for section in sections:
            for kind in kinds_of(section) or (section,):  # type: ignore[arg-type]
                chosen = f"[{get_args(kind.model_fields['type'].annotation)[0]}]" if kinds_of(section) else ""  # type: ignore[arg-type]
                yield from settings_of(kind, f"{prefix}{name}{chosen}.")


SETTINGS = {recipe: set(settings_of(model)) for recipe, model in RECIPES.items()}


def recipes_of(row: Row) -> tuple[str, ...]:
    return row.recipes or tuple(recipe for recipe, names in SETTINGS.items() if row.setting in names)


PAIRS = [(recipe, row) for row in ROWS for recipe in recipes_of(row)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_has_a_row_and_every_row_a_setting(recipe: str) -> None:
    in_table = {row.setting for found, row in PAIRS if found == recipe}
    in_table |= {
        row.setting for row in ROWS if row.setting.startswith(OF_EVALUATIONS) and "eval" in RECIPES[recipe].model_fields
    }
    assert sorted(SETTINGS[recipe] - in_table) == [], "without a row: what does it do?"
    assert sorted(in_table - SETTINGS[recipe]) == [], "no setting any more: remove the row"


def test_a_row_says_one_thing() -> None:
    for row in ROWS:
        assert recipes_of(row), row
        assert [bool(row.probe), bool(row.refused), bool(row.seen_in)].count(True) == 1, row
        assert row.effect, row


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set `name` in `values`. `[kind]` is the entry of that `type`, without one a list's first entry."""
    *sections, last = name.split(".")
    if sections and sections[-1] in ("columns", "roles") and isinstance(value, dict):
        last = sections.pop()
    place: Any = values
    for section in sections:
        key, _, kind = section.rstrip("]").partition("[")
        if kind and key == "rewards":
            entries = place.setdefault(key, [])
            place = next((entry for entry in entries if entry["type"] == kind), None)
            if place is None:
                entries.append(place := {"type": kind})
        elif kind:
            if [entry["type"] for entry in place.get(key, [])] != [kind]:
                place[key] = [{"type": kind}]
            place = place[key][0]
        else:
            place = place.setdefault(key, {})
            place = place[0] if isinstance(place, list) else place
            place = place.setdefault("some", {}) if key == "environments" else place
    if last == "type":
        place.clear()
    place[last] = value


def run_of(recipe: str, base: dict[str, Any], changed: dict[str, Any]) -> Any:
    values = {"recipe": recipe, "name": "run", **copy.deepcopy(LEAST[recipe])}
    for name, value in [*base.items(), *changed.items()]:
        if re.split(r"[.\[]", name)[0] in RECIPES[recipe].model_fields:
            put(values, name, copy.deepcopy(value))
    return load_run(None, values=values, check_format=check_format)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the rows name: data, tools, code, a model and an adapter."""
    place = tmp_path_factory.mktemp("settings")

    def write(name: str, *rows: dict[str, Any]) -> None:
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    sums = [{"prompt": f"What is {n} + 2?", "answer": n + 2, "id": str(n)} for n in range(3)]
    write("prompts.jsonl", *sums)
    write("other_prompts.jsonl", *({**row, "prompt": "Add!"} for row in sums))
    school = [{"question": row["prompt"], "answer": f"Add. #### {row['answer']}"} for row in sums]
    write("gsm8k.jsonl", *school)
    write("other_gsm8k.jsonl", *reversed(school))
    write("routed.jsonl", *({**row, "environment": name} for row, name in zip(sums, "aab", strict=True)))
    write("tools.jsonl", {**sums[0], "tools": [A_TOOL]})
    write("formats.jsonl", {**sums[0], "response_format": A_FORMAT})
    write("other.jsonl", *chat({"role": "assistant", "content": "Another."}))
    (place / "tools.json").write_text(json.dumps([A_TOOL]))
    (place / "mine.py").write_text(
        "def nothing(*a):\n    return 0.0\n\n\ndef half(*a):\n    return 0.5\n\n\n"
        "def several(given):\n    return [7.0] * len(given) if isinstance(given, list) else 1.0\n"
    )
    (place / "world.py").write_text(WORLD)
    shutil.copytree(tiny_folder(), place / "other_model")
    model = attach_lora(load_model("tiny").model, LoraSettings(rank=3, experts=False))
    model.peft_config["default"].base_model_name_or_path = "tiny"
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data += 0.01
    save_weights(model, place / "other_adapter")
    return place


SEEN: dict[Any, Any] = {}
WORLD = """
import os
from counterpoint import Environment

class World(Environment):
    seconds = 60.0

    def setup(self, settings):
        self.given = settings

    def reset(self, row, ctx):
        assert not (self.given.get("broken") and row["id"] == "0")
        return row["prompt"] + self.given.get("more", "")

    def add(self) -> str:
        return "added"

    def respond(self, final, ctx):
        return "Go on." if ctx.turn < 2 else None

    def reward(self, rollout, ctx):
        return {"a": 0.5, "b": 0.25, "process": os.getpid(), "parent": os.getppid()}

class Other(World):
    def add(self) -> str:
        return "other"
"""


# Their classes are those of `grpo`'s rewards and of the tasks of `evaluate`.
SHARED = (("evaluate", "eval.rewards["), ("sft", "eval.tasks["))


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        pytest.param(
            recipe,
            row,
            id=f"{recipe}-{row.setting}-{n}",
            marks=pytest.mark.slow if any(recipe == r and row.setting.startswith(s) for r, s in SHARED) else (),
        )
        for n, (recipe, row) in enumerate(PAIRS)
    ],
)
def test_a_setting_does_what_its_row_says(recipe: str, row: Row, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    changed = {row.setting: row.value}
    if row.refused:
        run_of(recipe, row.base, {})
        with pytest.raises(ConfigError, match=re.escape(row.refused)):
            run_of(recipe, row.base, changed)
        return
    if row.seen_in:
        file, _, name = row.seen_in.partition("::")
        _, found, body = (ROOT / file).read_text().partition(f"\ndef {name}(")
        assert found, "no such test"
        assert row.setting.rpartition(".")[2] in body.partition("\ndef test_")[0], "the test does not name the setting"
        return
    lines = row.lines or (*chat(), *chat(THINKS))
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    probe = getattr(settings_probes, row.probe)
    key = recipe, row.probe, json.dumps([row.base, row.lines])
    if key not in SEEN:
        SEEN[key] = settings_probes.told(probe, run_of(recipe, row.base, {}))
    after = settings_probes.told(probe, run_of(recipe, row.base, changed))
    assert after != SEEN[key], f"{row.setting} = {row.value!r} changes nothing ({row.probe})"
    stopped = [each for each in (SEEN[key], after) if isinstance(each, settings_probes.Refusal)]
    assert len(stopped) == bool(row.stops), stopped
    assert all(row.stops in each for each in stopped), stopped
