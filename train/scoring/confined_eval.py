"""Foreign scorers read answers with Python's `eval`, and both a model's answer and a row's truth could hold code.

In the guarded process, reasoning-gym gets an `eval` of plain values and arithmetic, and sympy one of mathematics.
"""

from __future__ import annotations

import ast
import sys
from types import CodeType
from typing import Any

_PLAIN = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp, ast.unaryop,
    ast.operator, ast.expr_context,
)  # fmt: skip
_FUNCTIONS = frozenset({"sqrt", "cbrt", "root"})


def confine() -> None:
    """Replace `eval` where the loaded packages use it on answers; for a process that does nothing but score."""
    from sympy.parsing import sympy_parser

    sympy_parser.eval_expr = mathematics  # pyright: ignore[reportAttributeAccessIssue]
    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym."):
            module.eval = plain_value  # pyright: ignore[reportAttributeAccessIssue]


def plain_value(text: str, *_: Any) -> Any:
    """The value of a Python expression of numbers, strings, containers and arithmetic. ValueError for any other."""
    tree = ast.parse(text.strip(), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, _PLAIN):
            raise ValueError(f"an answer is no code: {type(node).__name__}")
    return eval(compile(tree, "<answer>", "eval"), {"__builtins__": {}})


def mathematics(code: str | CodeType, local_dict: dict[str, Any], global_dict: dict[str, Any]) -> Any:
    """sympy's `eval_expr` for expressions that name nothing but sympy's own mathematics. ValueError for any other."""
    from sympy import Basic

    compiled = compile(code, "<answer>", "eval") if isinstance(code, str) else code
    for name in compiled.co_names:
        named = local_dict.get(name, global_dict.get(name))
        known = issubclass(named, Basic) if isinstance(named, type) else isinstance(named, Basic)
        if not known and name not in _FUNCTIONS:
            raise ValueError(f"an answer is no code: {name}")
    if any(isinstance(constant, CodeType) for constant in compiled.co_consts):
        raise ValueError("an answer is no code: a function")
    return eval(compiled, global_dict, local_dict)
