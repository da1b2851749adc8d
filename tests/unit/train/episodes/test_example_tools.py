from __future__ import annotations

import pytest

from counterpoint.train.episodes.example_tools import calculator
from counterpoint.train.episodes.tools import LoadedFunctions


@pytest.mark.parametrize(
    ("expression", "value"), [("12 * 7", "84"), ("-(2 + 3) * 4", "-20"), (" 1/3 ", "1/3"), ("6 / 2", "3")]
)
def test_calculator(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression", ["", "2 ** 9999", "__import__('os')", "a", "1 +", "True", "1/0", "1+" * 200 + "1"]
)
def test_calculator_refuses_everything_else(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError, ZeroDivisionError)):
        calculator(expression)


def test_its_declaration_is_that_of_the_example_data() -> None:
    (tool,) = LoadedFunctions(["counterpoint.train.episodes.example_tools:calculator"]).tools
    assert (tool.name, tool.description) == ("calculator", "Works out an expression.")
    assert tool.parameters is not None
    assert tool.parameters["properties"] == {"expression": {"type": "string"}}
    assert tool.parameters["required"] == ["expression"]
