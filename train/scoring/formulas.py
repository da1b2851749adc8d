"""Formulas over named numbers, as `calculate_output` of OpenAI's `multi` graders: a few operators and functions."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.train.scoring.asking import UnjudgedError

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_SEVERAL = ("min", "max")
_LONGEST = 2_000


@dataclass(frozen=True, slots=True)
class Formula:
    """Called with the numbers by name. UnjudgedError where it has no value for them."""

    text: str
    tree: ast.expr

    @classmethod
    def read(cls, text: str, names: Collection[str], where: str) -> Formula:
        """ConfigError for anything but numbers, `names`, `+ - * / ^`, brackets and a few functions."""
        try:
            # OpenAI writes a power as `^`, which in Python binds weaker than `+`.
            tree = ast.parse(text.strip().replace("^", "**")[: _LONGEST + 1], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            tree = None
        if tree is None or len(text) > _LONGEST:
            raise ConfigError(f"{where}: calculate_output: `{text[:80]}` is no formula")
        _check(tree, names, f"{where}: calculate_output")
        return cls(text, tree)

    def __call__(self, values: Mapping[str, float]) -> float:
        try:
            found = float(_value(self.tree, values))
        except (ArithmeticError, ValueError) as error:
            raise UnjudgedError(f"calculate_output `{self.text}`: {error}") from None
        if not math.isfinite(found):
            raise UnjudgedError(f"calculate_output `{self.text}`: no finite number")
        return found


def _check(node: ast.expr, names: Collection[str], where: str) -> None:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise ConfigError(f"{where}: unknown name `{node.id}`: take one of {', '.join(names)}")
        return
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        inner = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        inner = [node.operand]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        if node.keywords or not node.args or (len(node.args) > 1 and node.func.id not in _SEVERAL):
            raise ConfigError(f"{where}: `{node.func.id}` takes one number")
        inner = node.args
    else:
        raise ConfigError(
            f"{where}: `{ast.unparse(node)[:60]}` is not allowed: take numbers, names, + - * / ^ and "
            f"{', '.join(_FUNCTIONS)}"
        )
    for each in inner:
        _check(each, names, where)


def _value(node: Any, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)  # pyright: ignore[reportArgumentType]
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand, values))
    return _FUNCTIONS[node.func.id](*(_value(each, values) for each in node.args))
