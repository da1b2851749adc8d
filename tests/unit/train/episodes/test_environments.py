"""An environment's instance is a rollout's own; what it does wrong is told to the model, or makes the rollout invalid."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.environment_section import EnvironmentSettings, UserSettings
from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes.environment_worker import Facts
from counterpoint.train.episodes.environments import Environments
from counterpoint.train.episodes.episodes import EpisodeLimits, World, run_episodes
from counterpoint.train.episodes.user_model import UserModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.sampling.sample import Sampler, SamplingStoppedError
from counterpoint.train.sampling.scripted import ScriptedEngine

VOCABULARY = load_vocabulary()
RENDERER = Renderer(VOCABULARY, RenderSettings(serving="sampled"))
HEADER = (
    "from counterpoint import Conversation, Done, Environment, ToolError\nimport os, random, signal, time, asyncio\n"
)
COUNTER = '''
class Counter(Environment):
    seconds = 15.0

    def reset(self, row, ctx):
        self.count = 0
        return f"Count to {row['target']}."

    def add(self, number: int = 1) -> int:
        """Adds to the count.

        Not told."""
        self.count += number
        return self.count

    async def later(self, ctx) -> str:
        await asyncio.sleep(0.01)
        return f"turn {ctx.turn}"

    def big(self) -> dict:
        return {"ä": "x" * 100_000}

    def told(self) -> str:
        raise ToolError("two digits at most")

    def fails(self) -> str:
        raise KeyError("no")

    def hangs(self) -> str:
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # its limit comes soon
        time.sleep(60)

    def floods(self) -> list:
        print("x" * 10_000)
        return ["x" * 20_000_000]

    def dies(self) -> str:
        os._exit(3)

    def ends(self) -> str:
        raise Done("enough", reward={"right": 0.25})

    def _private(self): ...

    def reward(self, rollout, ctx):
        return {"count": self.count, "final": float(rollout.final == str(self.count)), "none": None}
'''


def say(final: str) -> str:
    return f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{final}<|return|>"


def use(name: str, arguments: str = "{}") -> str:
    return (
        "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    )


def play(
    environments: Environments, answers: Sequence[str] | Callable[[list[int], int], str], n: int = 1, **options: Any
) -> list[Episode]:
    rows = [{"target": 3, "id": str(k)} for k in range(n)]
    return run_episodes(
        [Conversation(())] * n,
        RENDERER,
        ScriptedEngine(VOCABULARY, answers),
        seed=list(range(n)),
        environments=environments,
        worlds=[World(row, str(k), Facts(seed=11, sample=k, training=True)) for k, row in enumerate(rows)],
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("environments")


@pytest.fixture(scope="module", params=["process", "shared"])
def counter(folder: Path, request: pytest.FixtureRequest) -> Iterator[Environments]:
    with made(folder, COUNTER, "Counter", isolation=request.param) as environments:
        yield environments


def made(folder: Path, code: str, name: str, user: UserSettings | None = None, **settings: Any) -> Environments:
    path = folder / f"{name.lower()}.py"
    path.write_text(HEADER + code)
    return Environments(EnvironmentSettings.model_validate({"class": f"{path}:{name}", **settings}), user)


def test_tools_are_the_public_methods_and_are_declared_in_the_prompt(counter: Environments) -> None:
    tools = {tool.name: tool for tool in counter.described.tools}
    assert list(tools) == ["add", "later", "big", "told", "fails", "hangs", "floods", "dies", "ends"]
    assert tools["add"].description == "Adds to the count."
    assert tools["add"].parameters == {
        "type": "object",
        "properties": {"number": {"type": "integer", "default": 1}},
        "additionalProperties": False,
    }
    assert tools["later"].parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    (episode,) = play(counter, [say("0")])
    assert episode.asked is not None
    assert episode.asked.messages == (Message("user", "Count to 3."),)
    assert episode.prompt_ids == RENDERER.prompt(episode.asked)
    assert "type add = (_: {" in VOCABULARY.decode(episode.prompt_ids)


def test_state_is_a_rollouts_own_and_lasts_for_all_its_calls(counter: Environments) -> None:
    """Two samples, two calls each: 1 2 | 1 2."""

    def script(prompt: list[int], seed: int) -> str:
        calls = VOCABULARY.decode(prompt).count("<|call|>")
        return use("add", '{"number": 1}') if calls < 2 else say("2")

    for episode in play(counter, script, n=2):
        assert [called.result.content for called in episode.called] == ["1", "2"]
        assert episode.earned == {"count": 2.0, "final": 1.0}
        assert [m.get("name") or m["role"] for m in episode.messages] == [
            "user", "assistant", "assistant", "functions.add", "assistant", "assistant", "functions.add", "assistant",
            "assistant",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "content", "fault"),
    [
        ("add", '{"number": "2"}', "2", None),
        ("add", '{"number": "two"}', "error: ValidationError: 1 validation error", "bad_arguments"),
        ("add", "[1]", "error: the arguments are not a JSON object", "bad_arguments"),
        ("later", "{}", "turn 0", None),
        ("big", "{}", '{"ä": "xxx', None),
        ("told", "{}", "error: two digits at most", None),
        ("fails", "{}", "error: KeyError: 'no'", "raised"),
        ("nothing", "{}", "error: there is no tool `functions.nothing`; tools: functions.add", "unknown_tool"),
        ("_private", "{}", "error: there is no tool `functions._private`", "unknown_tool"),
        ("reset", "{}", "error: there is no tool `functions.reset`", "unknown_tool"),
    ],
)
def test_what_a_tool_does_is_read_by_the_model(
    counter: Environments, name: str, arguments: str, content: str, fault: str | None
) -> None:
    (episode,) = play(counter, [use(name, arguments), use("add"), say("1")])
    first, second = episode.called
    assert first.result.content.startswith(content)
    assert len(first.result.content) < 8_100
    assert (first.fault, second.fault, episode.stop, episode.invalid) == (fault, None, "return", None)
    assert ('raise KeyError("no")' in first.result.trace) == (name == "fails")
    assert set(episode.env_mask) == {0, 1}


def test_a_hung_tool_is_interrupted_and_the_instance_lives(folder: Path) -> None:
    with made(folder, COUNTER, "Counter") as counter:
        (episode,) = play(counter, [use("add"), use("hangs"), use("add"), say("2")])
    results = [called.result for called in episode.called]
    assert [result.content for result in results] == ["1", "error: TimeoutError: no answer within 15 s", "2"]
    assert results[1].fault == "hung"
    assert (episode.invalid, episode.earned["final"]) == (None, 1.0)


def test_one_that_hangs_dies_or_floods_harms_no_other(folder: Path) -> None:
    """Of 64 at once; a tool of all others sleeps as well."""
    code = COUNTER.replace("return self.count", "self.began = time.monotonic(); time.sleep(0.5); return self.count")
    code = code.replace("self.count = 0", "self.count = self.began = 0").replace('"none": None', '"began": self.began')
    bad = {7: "dies", 20: "hangs", 33: "floods"}

    def script(prompt: list[int], seed: int) -> str:
        text = VOCABULARY.decode(prompt)
        number = int(text.partition("Number ")[2].partition(".")[0])
        if "<|call|>" in text:
            return say("1")
        return use(bad.get(number, "add"))

    code = code.replace("Count to {row['target']}.", "Number {ctx.sample}.")
    with made(folder, code, "Counter") as counter:
        episodes = play(counter, script, n=64)
    good = [episode for k, episode in enumerate(episodes) if k not in bad]
    assert len(good) == 61
    assert [e.invalid for e in good] == [None] * 61
    assert all((e.earned["count"], e.earned["final"]) == (1, 1) and e.stop == "return" for e in good)
    assert (episodes[7].invalid, episodes[7].earned) == ("dies: its process died", {})
    assert episodes[7].env_mask == [0] * len(episodes[7].completion_ids)
    assert (episodes[20].called[0].fault, episodes[20].invalid) == ("hung", None)
    assert (episodes[33].called[0].result.cut > 19_000_000, episodes[33].invalid) == (True, None)
    began = [e.earned["began"] for e in good]
    assert max(began) - min(began) < 60 * 0.5, "one after the other"


SLEEPER = """
class Sleeper(Environment):
    seconds = 600.0

    def __init__(self):
        self.file = None

    def reset(self, row, ctx):
        self.file = row["file"]
        return "Sleep."

    def sleeps(self) -> str:
        open(self.file, "w").close()
        time.sleep(600)
"""


@pytest.mark.parametrize("isolation", ["process", "shared"])
def test_a_signal_ends_a_call_that_hangs(folder: Path, tmp_path: Path, isolation: str) -> None:
    """Its limit is ten minutes: that the test ends says that it was not waited for."""
    file = tmp_path / "called"
    with made(folder, SLEEPER, "Sleeper", isolation=isolation) as environments, pytest.raises(SamplingStoppedError):
        run_episodes(
            [Conversation(())], RENDERER, ScriptedEngine(VOCABULARY, [use("sleeps")]), environments=environments,
            worlds=[World({"file": str(file)})], stops=file.exists,
        )  # fmt: skip


def test_done_ends_an_episode_with_its_reward(counter: Environments) -> None:
    (episode,) = play(counter, [use("add"), use("ends")])
    assert (episode.stop, episode.earned, len(episode.called)) == ("environment", {"right": 0.25}, 1)
    assert VOCABULARY.decode(episode.completion_ids).endswith(
        "to=functions.ends <|constrain|>json<|message|>{}<|call|>"
    )


FAULTY = """
class Faulty(Environment):
    seconds = 15.0

    def reset(self, row, ctx):
        self.row = row
        if row["at"] == "reset":
            raise ValueError("no world")
        if row["at"] == "reset_type":
            return 3
        if row["at"] == "reset_hung":
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            time.sleep(60)
        return "Hello."

    def respond(self, final, ctx):
        if self.row["at"] == "respond":
            raise ValueError("no user")
        if self.row["at"] == "ask":
            return ctx.ask([{"role": "user", "content": final}])

    def dies(self) -> str:
        os._exit(1)

    def asks(self, ctx) -> str:
        return ctx.ask([{"role": "user", "content": "?"}])

    def reward(self, rollout, ctx):
        return {"nan": float("nan"), "text": "much", "none": None}.get(self.row["at"], 1)
"""


@pytest.fixture(scope="module")
def faulty(folder: Path) -> Iterator[Environments]:
    with made(folder, FAULTY, "Faulty") as environments:
        yield environments


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("reset", "reset: ValueError: no world\nTraceback"),
        ("reset_type", "reset: TypeError: reset returned int"),
        ("reset_hung", "reset: no answer within 15 s"),
        ("respond", "respond: ValueError: no user\nTraceback"),
        ("ask", "the user model: there is none: set `rollout.user.url`"),
        ("asks", "the user model: there is none"),
        ("dies", "dies: its process died"),
        ("nan", "reward: ValueError: a reward of nan"),
        ("text", "reward: TypeError: a reward of type str"),
        ("fine", None),
        ("none", None),
    ],
)
def test_what_makes_a_rollout_invalid(faulty: Environments, at: str, why: str | None) -> None:
    (episode,) = run_episodes(
        [Conversation(())],
        RENDERER,
        ScriptedEngine(VOCABULARY, [use(at) if at in ("dies", "asks") else say("Hi.")]),
        environments=faulty,
        worlds=[World({"at": at})],
    )
    if why is None:
        assert (episode.invalid, episode.stop) == (None, "return")
        assert episode.earned == ({"": 1.0} if at == "fine" else {})
        return
    assert episode.invalid is not None
    assert episode.invalid.startswith(why)
    assert episode.stop == "invalid"
    assert episode.prompt_ids
    assert episode.env_mask == [0] * len(episode.completion_ids) != []


USERS = """
class Users(Environment):
    async def reset(self, row, ctx):
        self.said = []
        return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Hello {ctx.turn}"}]

    def respond(self, final, ctx):
        self.said.append(final)
        if final == "stop":
            raise Done(reward=-7)
        return None if final == "bye" else f"You said {final} in {ctx.turn}"

    def reward(self, rollout, ctx):
        assert rollout.env is self
        assert rollout.finals[: len(self.said)] == self.said
        return len(rollout.turns)
"""


def test_the_user_writes_the_next_turn(folder: Path) -> None:
    with made(folder, USERS, "Users", turns=3) as users:
        (episode,) = play(users, [say("one"), say("two"), say("bye")])
        (stopped,) = play(users, [say("one"), say("stop")])
        (endless,) = play(users, [say("on")])
    assert episode.asked is not None
    assert (episode.turn, len(episode.turns), episode.stop, episode.earned) == (2, 3, "return", {"": 3.0})
    text = VOCABULARY.decode(episode.prompt_ids)
    assert "# Instructions\n\nBe brief." in text
    assert "<|start|>user<|message|>You said two in 2<|end|><|start|>assistant" in text
    assert "Hm." not in text, "earlier thoughts are dropped, as at inference"
    assert [m["content"] for m in episode.messages if m.get("channel") == "analysis"] == ["Hm."] * 3
    assert [turn.completion.final for turn in episode.turns] == ["one", "two", "bye"]
    assert episode.completion_ids == VOCABULARY.encode_with_specials(say("bye"))
    assert (stopped.stop, stopped.earned) == ("environment", {"": -7.0})
    assert (endless.stop, len(endless.turns)) == ("turns", 3)


WORLDS = """
import numpy

class Worlds(Environment):
    def setup(self, settings):
        self.shared = {"of": settings["of"]}
        self.pid = os.getpid()

    def reset(self, row, ctx):
        drawn = [random.random(), numpy.random.random(), ctx.rng.random(), ctx.seed]
        return f"{drawn} {self.shared['of']} {self.pid != os.getpid()}"
"""


def test_all_samples_of_a_row_meet_the_same_world(folder: Path) -> None:
    with made(folder, WORLDS, "Worlds", settings={"of": 5}, workers=2) as worlds:
        episodes = play(worlds, [say("x")], n=4)
    asked = {episode.asked.messages[0].content for episode in episodes if episode.asked}
    assert len(asked) == 1
    assert asked.pop().endswith(", 11] 5 True")


def test_the_worker_loads_no_torch_and_the_import_is_light(folder: Path) -> None:
    code = "class Light(Environment):\n    def reset(self, row, ctx):\n        import sys\n        return str('torch' in sys.modules)\n"
    with made(folder, code, "Light") as light:
        (episode,) = play(light, [say("x")])
    assert episode.asked is not None
    assert episode.asked.messages[0].content == "False"
    code = "import sys; from counterpoint import Environment; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic", "tiktoken"} & set(loaded)


def test_mistakes_in_a_class_are_told_before_anything_is_sampled(folder: Path) -> None:
    with pytest.raises(ConfigError, match="derive the class from"):
        made(folder, "class Other: ...\n", "Other")
    with pytest.raises(ConfigError, match=r"Odd\.tool.*annotate it"):
        made(folder, "class Odd(Environment):\n    def tool(self, x: 'Nowhere'): ...\n", "Odd")
    with pytest.raises(ConfigError, match=r"Broken`: ZeroDivisionError[\s\S]*in setup"):
        made(folder, "class Broken(Environment):\n    def setup(self, settings):\n        1 / 0\n", "Broken")
    with pytest.raises(ConfigError, match="has no attribute 'Nothing'"):
        Environments(EnvironmentSettings.model_validate({"class": f"{folder / 'odd.py'}:Nothing"}))


def test_ids_depend_neither_on_the_batch_nor_on_workers(folder: Path) -> None:
    """A real model, with tools that end at different times."""
    loaded = random_tiny(seed=3)
    renderer = Renderer(loaded.vocabulary, RenderSettings(serving="sampled"))
    code = (
        "class Turns(Environment):\n    def reset(self, row, ctx):\n        return f'Row {ctx.sample}.'\n"
        "    def respond(self, final, ctx):\n        time.sleep(0.3 * (ctx.sample % 2))\n        return 'Go on.'\n"
    )
    found = []
    for batch, workers in ((16, 1), (3, 2)):
        with made(folder, code, "Turns", workers=workers, turns=3) as turns:
            found.append(
                run_episodes(
                    [Conversation(())] * 8,
                    renderer,
                    Sampler(loaded, batch_rows=batch),
                    limits=EpisodeLimits(action_tokens=12),
                    seed=list(range(8)),
                    environments=turns,
                    worlds=[World({}, str(k), Facts(sample=k)) for k in range(8)],
                )
            )
    assert [(e.prompt_ids, e.completion_ids, e.turn) for e in found[0]] == [
        (e.prompt_ids, e.completion_ids, e.turn) for e in found[1]
    ]


class _Chat(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]] = []  # noqa: RUF012
    faults = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if _Chat.faults:
            _Chat.faults -= 1
            self.send_error(503)
            return
        _Chat.asked.append(body)
        text = json.dumps({"choices": [{"message": {"content": f"re: {body['messages'][-1]['content']}"}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


def test_a_user_model_is_asked_once_for_the_same_request(folder: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    user = UserSettings(url=url, model="someone", cache=str(folder / "cache.sqlite"), retries=1)
    code = FAULTY.replace('if self.row["at"] == "ask":', 'if not final.startswith("re"):').replace("1.0", "60.0")
    _Chat.faults = 1
    try:
        for _ in range(2):
            with made(folder, code, "Faulty", user, turns=2) as environments:
                episodes = run_episodes(
                    [Conversation(())] * 2,
                    RENDERER,
                    ScriptedEngine(VOCABULARY, [say("Hi."), say("Hi."), say("re")]),
                    environments=environments,
                    worlds=[World({"at": "-"}), World({"at": "-"})],
                )
            assert [e.invalid for e in episodes] == [None, None]
            assert episodes[0].asked is not None
            assert [m["content"] for m in episodes[0].messages if m["role"] == "user"] == ["Hello.", "re: Hi."]
    finally:
        server.shutdown()
    assert 1 <= len(_Chat.asked) <= 2, "both of the first run at the same time at the most"
    assert _Chat.asked[0] == {
        "model": "someone", "messages": [{"role": "user", "content": "Hi."}], "seed": 0, "max_tokens": 256,
    }  # fmt: skip


def test_a_user_model_that_does_not_answer_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        user = UserModel(UserSettings(url=url, model="someone", timeout=0.2, retries=1), pause=0.01)
        with pytest.raises(RunError, match=f"{url}/chat/completions: TimeoutError"):
            user.ask([], None, 0, 8)
    assert user.requests == 2


def test_the_context_runs_code_in_the_rollouts_sandbox(folder: Path) -> None:
    from counterpoint.train.episodes.toolkit import Toolkit

    code = (
        "class Boxed(Environment):\n    seconds = 60.0\n    def reset(self, row, ctx):\n        return 'Go.'\n"
        "    def reward(self, rollout, ctx):\n        return float(ctx.python('print(x + 1)').output)\n"
    )
    python = "<|channel|>analysis to=python<|message|>x = 41<|call|>"
    with made(folder, code, "Boxed") as boxed, Toolkit(python=True, seconds=60) as toolkit:
        (episode,) = play(boxed, [python, say("done")], toolbox=toolkit.toolbox)
    assert episode.earned == {"": 42.0}
