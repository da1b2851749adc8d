"""Notebooks of tutorials: their cells are what the page says, and run in a shell and an interpreter as Jupyter has them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import script

TUTORIALS = Path(__file__).parents[3] / "docs" / "tutorials"
notebooks = script(str(TUTORIALS.parent / "_site" / "notebooks.py"))
SHORT = "train.steps=1 train.batch_rows=2 eval.max_new_tokens=4 eval.every=1"


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_every_file_and_command_of_the_page_is_a_cell(name: str) -> None:
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    made = notebooks.notebook(page)
    code = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "code"]
    files = re.findall(r"^```(?:python|yaml)\n# (\w+\.(?:py|yaml))$", page, re.MULTILINE)
    assert [cell.split()[1] for cell in code if cell.startswith("%%writefile")] == files
    commands = re.findall(r"^    \$ (.*)$", page, re.MULTILINE)
    assert [cell[1:].split()[:2] for cell in code if cell.startswith("!")] == [each.split()[:2] for each in commands]
    assert not [cell for cell in made["cells"] if cell["cell_type"] == "markdown" and "    $ " in cell["source"]]
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])


@pytest.mark.slow
def test_the_cells_of_the_first_report_run(tmp_path: Path) -> None:
    page = (TUTORIALS / "first-report.md").read_text(encoding="utf-8")
    program = f'"{sys.executable}" -P -m counterpoint.recipes.cli'
    for cell in notebooks.cells(page):
        source = cell["source"]
        if source.startswith("%%writefile "):
            first, _, text = source.partition("\n")
            (tmp_path / first.split()[1]).write_text(text, encoding="utf-8")
        elif source.startswith("!"):
            short = f" {SHORT}" if source.startswith("!counterpoint train") else ""
            line = source[1:].replace("counterpoint ", f"{program} ").replace("python make", f'"{sys.executable}" make')
            ran = subprocess.run(line + short, shell=True, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
            assert ran.returncode == 0, (source, ran.stderr)
    assert list(tmp_path.glob("runs/support-*/report.html"))
