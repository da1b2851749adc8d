"""Tools that raise, hang, flood or do not exist give the model a result; nothing they do reaches the caller."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.data.harmony.completion import ToolCall, parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes.mcp_tools import McpTools
from counterpoint.train.episodes.tools import FunctionTools, LoadedFunctions, Toolbox
from counterpoint.train.sampling.rollout import MAX_RESULT_CHARS

FUNCTIONS = '''
import signal, time

def add(a: float, b: float = 2) -> float:
    """Adds two numbers,
    exactly.

    Not part of the description.
    """
    return a + b

def raises(text: str) -> str:
    """Raises."""
    raise KeyError(text)

def hangs() -> str:
    """Hangs."""
    signal.setitimer(signal.ITIMER_REAL, 0.2)  # its limit comes soon
    time.sleep(60)

def floods() -> str:
    """Floods."""
    return "x" * 100_000

def table() -> dict:
    """A table."""
    return {"ä": [1]}

def vague(a):
    """Takes anything."""
    return str(a)
'''


def call(recipient: str, arguments: str) -> ToolCall:
    text = f"<|channel|>commentary to={recipient} <|constrain|>json<|message|>{arguments}<|call|>"
    return parse_completion(load_vocabulary().encode_with_specials(text)).calls[0]


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture(scope="module")
def toolbox(functions: Path) -> Iterator[Toolbox]:
    names = ("add", "raises", "hangs", "floods", "table", "vague")
    tools = FunctionTools([f"{functions}:{name}" for name in names], seconds=15)
    with Toolbox([tools.session()]) as made:
        yield made
    tools.close()


def test_a_function_is_declared_by_its_signature(functions: Path) -> None:
    (tool,) = LoadedFunctions([f"{functions}:add"]).tools
    assert (tool.name, tool.description) == ("add", "Adds two numbers, exactly.")
    assert tool.parameters == {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number", "default": 2}},
        "required": ["a"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("recipient", "arguments", "content", "fault"),
    [
        ("functions.add", '{"a": 40}', "42.0", None),
        ("functions.add", '{"a": "40", "b": 1}', "41.0", None),
        ("functions.add", '{"a": "forty"}', "error: ValidationError: 1 validation error", "bad_arguments"),
        ("functions.add", '{"c": 1}', "error: ValidationError: 2 validation errors", "bad_arguments"),
        ("functions.add", "nonsense", "error: the arguments are not a JSON object", "bad_arguments"),
        ("functions.raises", '{"text": "x"}', "error: KeyError: 'x'", "raised"),
        ("functions.hangs", "{}", "error: no answer within 15 s", "hung"),
        ("functions.table", "{}", '{"ä": [1]}', None),
        (
            "functions.nothing",
            "{}",
            "error: there is no tool `functions.nothing`; tools: functions.add",
            "unknown_tool",
        ),
        ("python", "1", "error: there is no tool `python`", "unknown_tool"),
    ],
)
def test_every_call_gets_a_result(
    toolbox: Toolbox, recipient: str, arguments: str, content: str, fault: str | None
) -> None:
    result = toolbox.call(call(recipient, arguments))
    assert result.content.startswith(content)
    assert result.fault == fault


def test_a_flood_is_cut_and_says_so(toolbox: Toolbox) -> None:
    result = toolbox.call(call("functions.floods", "{}"))
    assert result.cut == 100_000 - MAX_RESULT_CHARS
    assert result.content.endswith(f"[{result.cut} more characters cut]")


def test_mistakes_in_the_run_file_are_told(functions: Path) -> None:
    with pytest.raises(ConfigError, match="write module:function"):
        FunctionTools([f"{functions}:nothing"])
    with pytest.raises(ConfigError, match="two functions are named `add`"):
        FunctionTools([f"{functions}:add", f"{functions}:add"])


SERVER = """
from mcp.server import MCPServer

server = MCPServer("test")

@server.tool()
def weather(city: str) -> str:
    \"\"\"Weather of a city.\"\"\"
    if city == "Nowhere":
        raise ValueError("no such city")
    return f"sunny in {city}"

server.run("stdio")
"""


def test_an_mcp_server_over_stdio(tmp_path: Path) -> None:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    tools = McpTools(f"{sys.executable} {path}", seconds=60)
    with Toolbox([tools]) as toolbox:
        assert [(tool.name, tool.description) for tool in toolbox.tools] == [("weather", "Weather of a city.")]
        assert toolbox.call(call("functions.weather", '{"city": "Ulm"}')).content == "sunny in Ulm"
        assert toolbox.call(call("functions.weather", '{"city": "Nowhere"}')).fault == "raised"
        assert toolbox.call(call("functions.weather", "x")).fault == "bad_arguments"
    assert not tools._thread.is_alive()


def test_an_mcp_server_that_does_not_start_is_told() -> None:
    with pytest.raises(ConfigError, match="did not start"):
        McpTools("/nonexistent/server", seconds=20)


def test_an_mcp_server_by_its_address(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    path = tmp_path / "server.py"
    path.write_text(SERVER.replace('server.run("stdio")', f'server.run("streamable-http", port={port})'))
    with subprocess.Popen([sys.executable, str(path)], stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            with Toolbox([McpTools(f"http://127.0.0.1:{port}/mcp", seconds=60)]) as toolbox:
                assert [tool.name for tool in toolbox.tools] == ["weather"]
                assert toolbox.call(call("functions.weather", '{"city": "Ulm"}')).content == "sunny in Ulm"
                assert toolbox.call(call("functions.weather", '{"city": "Nowhere"}')).fault == "raised"
        finally:
            process.kill()
    address = f"http://127.0.0.1:{port}/mcp"
    with pytest.raises(ConfigError, match=rf"`{address}` did not answer .*: look whether it runs at this address"):
        McpTools(address, seconds=20)


def test_a_file_of_tools_is_loaded_once(tmp_path: Path) -> None:
    path, loads = tmp_path / "mine.py", tmp_path / "loads.txt"
    path.write_text(
        f"with open({str(loads)!r}, 'a') as file:\n    file.write('x')\n\ndef one() -> int:\n    return 1\n"
    )
    tools = FunctionTools([f"{path}:one"], seconds=60)
    for _ in range(2):
        with Toolbox([tools.session()]) as toolbox:
            assert [toolbox.call(call("functions.one", "{}")).content for _ in range(3)] == ["1", "1", "1"]
    tools.close()
    assert len(loads.read_text()) == 1, "once in the worker, not in a rollout or at a call"
