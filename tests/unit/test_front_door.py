"""The public names of `counterpoint`: their list, their signatures, and the page that shows them."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import counterpoint

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")

SIGNATURES = {
    "Context": "seed sample step effort training turn=0 _asks=None",
    "Conversation": "messages instructions=None tools=() builtin_tools=() response_formats=() effort=None date=None "
    "identity=None opening_ids=None weight=1.0 source='' metadata=<factory> notices=() format=''",
    "Done": "text='' reward=None",
    "Environment": "",
    "LoraSettings": "*enabled *rank *alpha *attention *experts *expert_rank *expert_alpha *router *layers *rslora *dropout *dora",
    "Message": "role content channel=None recipient=None name=None content_type=None weight=1.0 raw_ids=None",
    "ModelSettings": "*name *adapter *revision *init *dtype *base *attention *experts *norms *kernels",
    "Renderer": "vocabulary settings=None",
    "Rollout": "row id effort prompt turns ended seed=0 messages=() env=None",
    "Sampler": "loaded batch_rows=32 batch_tokens=262144 stops=None truncation=Truncation(top_p=1.0, top_k=0, min_p=0.0) "
    "logprobs=False routes=False",
    "Tool": "name description='' parameters=None",
    "ToolError": "text",
    "Truncation": "top_p=1.0 top_k=0 min_p=0.0",
    "attach_lora": "model lora=None",
    "check": "ids *tools *builtin_tools *effort *response_format *vocabulary *finish_reason *policy",
    "explain": "item renderer *effort *max_tokens *turns",
    "export": "checkpoint target folder options=None settings",
    "load_model": "settings device='cpu'",
    "load_vocabulary": "",
    "open_checkpoint": "checkpoint device='cpu'",
    "parse_completion": "ids vocabulary=None *tools *builtin_tools *effort *response_format *finish_reason *policy",
    "read_conversations": "sources options=None",
    "use_implementations": "model settings=None recompute_experts=False",
}
"""Parameters by name, with defaults; those behind a `*` are given by name."""


def signature(value: object) -> str:
    parts = []
    for parameter in inspect.signature(value).parameters.values():  # pyright: ignore[reportArgumentType]
        by_name = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        default = "" if by_name or parameter.default is inspect.Parameter.empty else f"={parameter.default!r}"
        parts.append(f"{'*' * by_name}{parameter.name}{default}")
    return " ".join(parts)


def test_the_list_of_names() -> None:
    assert sorted(counterpoint.__all__) == sorted(["__version__", *SIGNATURES])
    assert set(counterpoint.__all__) <= set(dir(counterpoint))
    assert counterpoint.__version__ == version("counterpoint")
    with pytest.raises(AttributeError, match="has no attribute 'lora'"):
        _ = counterpoint.lora


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_and_docstrings(name: str) -> None:
    value = getattr(counterpoint, name)
    assert value.__name__ == name
    assert signature(value) == SIGNATURES[name]
    assert len(inspect.getdoc(value) or "") > 40


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((ROOT / "counterpoint" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.asname: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }
    assert declared == {name: f"counterpoint.{home}" for name, home in counterpoint._HOMES.items()}


def test_the_import_alone_loads_nothing_heavy() -> None:
    code = "import sys, counterpoint; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "pydantic", "trl", "peft"} & set(loaded)
    assert "counterpoint" in loaded


def test_the_page_shows_every_name_in_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert {name for name in counterpoint.__all__ if f"cp.{name}" in "".join(blocks)} == set(counterpoint.__all__)
    assert names["completion"].final == "43."  # pyright: ignore[reportAttributeAccessIssue]
    assert names["completion"].ok  # pyright: ignore[reportAttributeAccessIssue]
    assert [violation.code for violation in names["broken"].violations] == ["truncated"]  # pyright: ignore[reportAttributeAccessIssue]
    assert (tmp_path / "my-merged" / "model.safetensors").is_file()
