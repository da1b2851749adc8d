"""The site: the reference has every setting, command, metric, notice and code, every link leads somewhere, and every
page is in the navigation. Without the generator, which `make docs` runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import script

import counterpoint
from counterpoint.configs import builtin
from counterpoint.configs.load import load_run
from counterpoint.configs.schema import RECIPES
from counterpoint.data.harmony.codes import CODES
from counterpoint.data.notices import NOTICES, REASONS
from counterpoint.recipes.cli import COMMANDS
from counterpoint.train.run.contents import EVALUATION_METRICS, FILES, METRICS, ROUTING_METRICS

ROOT = Path(__file__).parents[3]
FENCED = re.compile(r"^```.*?^```|^    .*?$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Path of a page -> its Markdown, as the generator gets it."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    site = script(str(ROOT / "docs" / "_site" / "make_site.py"))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in site.assemble(folder)}


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("notices", [*NOTICES, *REASONS]),
        ("codes", CODES),
        ("run-folder", FILES),
        ("metrics", [*METRICS, *EVALUATION_METRICS, *ROUTING_METRICS]),
    ],
)
def test_a_page_has_every_word_of_its_tables(pages: dict[str, str], page: str, names: Any) -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|$", pages[f"reference/{page}.md"], re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(names)
    assert all(len(meaning) > 3 for _, meaning in rows)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_page_of_a_recipe_has_every_setting(pages: dict[str, str], recipe: str) -> None:
    rows = re.findall(r"^\| `(.+?)` \| .+ \| .* \| (.*) \|$", pages[f"reference/settings-{recipe}.md"], re.MULTILINE)
    told = dict(rows)
    assert not [name for name, meaning in told.items() if not meaning]
    for name in builtin.names():
        run = load_run(name)
        if run.recipe == recipe:
            given = [path for path in paths_of(run.model_dump(exclude_unset=True)) if path not in told]
            assert not [path for path in given if not any(is_of(path, known) for known in told)], name
    leaves = set(fields_of(RECIPES[recipe]))
    assert {re.sub(r"\[\w+\]", "", name).rpartition(".")[2] for name in told} >= leaves


def paths_of(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict) and value:
        return [each for key, inner in value.items() for each in paths_of(inner, f"{path}.{key}" if path else key)]
    return [path]


def is_of(path: str, known: str) -> bool:
    """Whether a path is in a list, a mapping or one of several kinds that a row tells of."""
    return re.sub(r"\[\w+\]", "", known) == path or path.startswith(f"{known}.")


def fields_of(settings: Any) -> set[str]:
    """Every name of the schema that is a value, of whatever section."""
    schema = settings.model_json_schema()
    sections = [schema, *schema.get("$defs", {}).values()]
    values = [(name, each) for section in sections for name, each in section.get("properties", {}).items()]
    return {name for name, each in values if "const" not in each and not is_section(each)}


def is_section(each: dict[str, Any]) -> bool:
    return "$ref" in str(each)


@pytest.mark.parametrize(("recipe", "rate"), [("sft", "0.0002"), ("dpo", "5e-05"), ("grpo", "1e-05")])
def test_a_default_is_the_one_of_the_recipe(pages: dict[str, str], recipe: str, rate: str) -> None:
    page = pages[f"reference/settings-{recipe}.md"]
    assert f"| `train.learning_rate` | number > 0 | `{rate}` |" in page


def test_the_commands_have_all_their_options(pages: dict[str, str]) -> None:
    page = pages["reference/commands.md"]
    assert re.findall(r"^## counterpoint (\w+)$", page, re.MULTILINE) == list(COMMANDS)
    assert "--measure" in page.partition("## counterpoint plan")[2].partition("\n## ")[0]


def test_the_api_has_every_public_name(pages: dict[str, str]) -> None:
    headings = re.findall(r"^## (\w+)$", pages["reference/api.md"], re.MULTILINE)
    public = {name for name in counterpoint.__all__ if not isinstance(getattr(counterpoint, name), str)}
    assert set(headings) == public


def test_every_run_file_is_shown(pages: dict[str, str]) -> None:
    assert re.findall(r"^## (.+)$", pages["reference/run-files.md"], re.MULTILINE) == builtin.names()


def test_every_link_leads_to_a_page_and_to_a_heading_of_it(pages: dict[str, str]) -> None:
    anchors = {page: {slug(heading) for heading in headings(text)} for page, text in pages.items()}
    dead = []
    for page, text in pages.items():
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", FENCED.sub("", text)):
            if target.startswith(("http", "mailto:")):
                continue
            path, _, anchor = target.partition("#")
            other = (Path("/", page).parent / path).resolve().relative_to("/").as_posix() if path else page
            if other not in pages or (anchor and anchor not in anchors[other]):
                dead.append(f"{page}: {target}")
    assert not dead


def test_every_picture_is_there(pages: dict[str, str]) -> None:
    for page, text in pages.items():
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", FENCED.sub("", text)):
            assert (ROOT / "docs" / Path(page).parent / target).is_file(), f"{page}: {target}"


def test_a_page_that_a_text_of_ours_names_is_there() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.yaml")]
    files += [path for top in ("configs", "data", "train", "recipes") for path in ROOT.glob(f"{top}/**/*.py")]
    for file in files:
        for name in re.findall(r"(?<![\w/])docs/[\w./-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{file}: {name}"


def test_every_page_is_in_the_navigation_once(pages: dict[str, str]) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = list(leaves_of(nav))
    assert len(listed) == len(set(listed))
    assert set(listed) == set(pages)


def leaves_of(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [leaf for inner in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves_of(inner)]


def headings(text: str) -> list[str]:
    return re.findall(r"^#{1,6} (.+)$", FENCED.sub("", text), re.MULTILINE)


def slug(heading: str) -> str:
    """As Python-Markdown makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_cells_name_their_column_but_for_the_first_of_a_row() -> None:
    table = (
        '<table><thead><tr><th>a</th><th><code>b</code> "c"</th></tr></thead>'
        '<tbody><tr><td>1</td><td class="x">2</td></tr></tbody></table>'
    )
    labelled = script(str(ROOT / "docs" / "_site" / "make_site.py")).labelled
    found = re.sub(r"<table>.*?</table>", labelled, table, flags=re.DOTALL)
    assert found == table.replace('<td class="x">', '<td data-column="b &quot;c&quot;" class="x">')
