"""How faithfully frameworks write Harmony: the public conformance suite, for Counterpoint and its peers.

counterpoint conformance
counterpoint conformance --peer all --install
counterpoint conformance --peer trl --case tool_loop-004
counterpoint conformance --remake vllm --install

Every peer runs in an environment of its own, in a process of its own; `--install` makes those that are missing. The
suite is the folder `conformance`, which needs nothing of this package. Exit code 1 where a peer could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError, DataError

OURS = "counterpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", nargs="+", metavar="NAME", default=[OURS], help=f"peers, or all ({OURS})")
    parser.add_argument("--reference", nargs="+", metavar="NAME", help="compare with these references only")
    parser.add_argument("--case", nargs="+", metavar="ID", help="only these cases, each with what differs, decoded")
    parser.add_argument("--json", action="store_true", help="one JSON object a run: what passed, by category")
    parser.add_argument("--install", action="store_true", help="make the environments that are missing")
    parser.add_argument("--newest", action="store_true", help="with --install: the newest versions, anew")
    parser.add_argument("--environments", metavar="DIR", help="where they are (~/.cache/counterpoint/conformance)")
    parser.add_argument("--out", metavar="DIR", help="write DIR/DATE/NAME.json for each run")
    parser.add_argument("--results", metavar="DIR", help="run nothing: show what --out wrote into DIR/DATE")
    parser.add_argument("--page", metavar="FILE.md", help="write the page of results, as docs/conformance.md")
    parser.add_argument("--remake", nargs="+", metavar="NAME", help="ask these references again, and write their files")


def run(arguments: argparse.Namespace) -> int:
    suite_folder = _suite_folder()
    modules = {name: _load(suite_folder / f"{name}.py") for name in ("run", "score", "report", "tokenizer")}
    return _Session(arguments, suite_folder, modules).main()


def _suite_folder() -> Path:
    """The folder of the suite: in the wheel, or at the root of a checkout."""
    import counterpoint

    package = Path(counterpoint.__file__).resolve().parent
    for folder in (package / "conformance", package.parent / "conformance"):
        if (folder / "score.py").is_file():
            return folder
    raise DataError("the conformance suite is not installed: run from a checkout, or install the wheel again")


def _load(path: Path) -> Any:
    name = f"conformance_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Session:
    """One call of the command."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, modules: dict[str, Any]) -> None:
        self.arguments = arguments
        self.folder = folder
        self.runner, self.scorer, self.report = modules["run"], modules["score"], modules["report"]
        self.tokenizer = modules["tokenizer"]
        self.suite = self.scorer.Suite(folder)
        default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "counterpoint" / "conformance"
        self.environments = Path(arguments.environments) if arguments.environments else default
        self.failed = False

    def main(self) -> int:
        known = self.runner.peers(self.folder)
        servers = {entry["peer"] for entry in self._references().values() if not entry["reads"]}
        every = [OURS, *(name for name in known if name != OURS and name not in servers)]
        wanted = every if self.arguments.peer == ["all"] else self.arguments.peer
        _check_names("--peer", wanted, known)
        if self.arguments.remake:
            return self._remake(self.arguments.remake)
        references = self.arguments.reference or list(self.suite.references)
        _check_names("--reference", references, list(self.suite.references))
        self.suite.references = {name: self.suite.references[name] for name in references}
        if self.arguments.case:
            _check_names("--case", self.arguments.case, list(self.suite.cases))
            self.suite.cases = {name: self.suite.cases[name] for name in self.arguments.case}
        about = {"date": datetime.now(UTC).date().isoformat(), "command": " ".join(["counterpoint", *_command()])}
        if self.arguments.results:
            results, about = self._stored(Path(self.arguments.results))
        else:
            results = [result for peer in wanted for result in self._results(peer)]
        book = self.report.Book(self.suite, results, self.scorer.passes)
        if self.arguments.case:
            return int(self.failed)
        if self.arguments.out:
            folder = Path(self.arguments.out) / about["date"]
            folder.mkdir(parents=True, exist_ok=True)
            for result in results:
                text = self.report.result_json(result, about, references)
                (folder / f"{result.file}.json").write_text(text, "utf-8")
        if self.arguments.page:
            intro = (self.folder / "page.md").read_text("utf-8")
            Path(self.arguments.page).write_text(self.report.page(book, about, intro), "utf-8")
        if self.arguments.json:
            for result in results:
                print(json.dumps({**about, **self.report.totals(book, result)}, ensure_ascii=False))
        elif results:
            print(self.report.terminal(book))
        return int(self.failed)

    def _results(self, peer: str) -> list[Any]:
        """The scored runs of a peer: one, or one a form."""
        results: list[Any] = []
        for form, settings in self._forms(peer).items():
            if form in self._references() and form not in self.suite.references:
                continue
            try:
                self._prepare(peer)
                done = self.runner.ask(
                    peer,
                    self.suite.cases,
                    environments=self.environments,
                    checkpoint=self._checkpoint(),
                    arguments=settings,
                )
            except self.runner.RunError as error:
                print(" ".join(str(error).split()), file=sys.stderr)
                self.failed = True
                break
            if all("unsupported" in answer for answer in done.answers.values()) and not self.arguments.case:
                continue
            found = self.scorer.score_all(done.answers, self.suite)
            results.append(self.report.Result(peer, form, done.versions, done.seconds, found))
            if self.arguments.case:
                self._show(results[-1], done.answers)
        return results

    def _forms(self, peer: str) -> dict[str, list[str]]:
        """The arguments of an adapter by the name of the run; one run without any where a peer names none."""
        file = self.folder / "peers" / peer / "forms.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else {"": []}

    def _stored(self, folder: Path) -> tuple[list[Any], dict[str, str]]:
        """The runs that a folder holds, ours first, of which every case is one of the suite."""
        read = [self.report.read_result(path.read_text("utf-8")) for path in folder.glob("*.json")]
        read.sort(
            key=lambda pair: (pair[0].peer != OURS, pair[0].peer, [*self._forms(pair[0].peer)].index(pair[0].form))
        )
        if not read or any(set(result.found) != set(self.suite.cases) for result, _ in read):
            raise DataError(f"--results {folder}: holds no results of this suite: name a folder that --out wrote")
        return [result for result, _ in read], read[0][1]

    def _references(self) -> dict[str, Any]:
        """How each reference is made: its peer, its arguments, and whether that peer reads completions too."""
        return json.loads((self.folder / "references.json").read_text("utf-8"))

    def _prepare(self, peer: str) -> None:
        """Makes the environment of a peer where it is wanted and missing."""
        python = self.environments / peer / "bin" / "python"
        if self.arguments.install and (self.arguments.newest or not python.exists()):
            seconds = self.runner.install(peer, self.environments, self.arguments.newest)
            if seconds:
                print(f"{peer}: installed in {seconds:.0f} s", file=sys.stderr)

    def _checkpoint(self) -> Path:
        """A folder with gpt-oss's tokenizer, written once."""
        from counterpoint.data.harmony.vocabulary import RANKS_FILE, vocabulary_folder

        folder = self.environments / "gpt-oss"
        if not (folder / "tokenizer.json").is_file():
            try:
                self.tokenizer.write_folder(vocabulary_folder() / RANKS_FILE, folder)
            except OSError as error:
                raise DataError(
                    f"{folder}: cannot be written ({error.strerror}): name another --environments"
                ) from None
        return folder

    def _remake(self, names: list[str]) -> int:
        """Asks references again; their files show what changed."""
        listed = self._references()
        _check_names("--remake", names, list(listed))
        cases = {name: case for name, case in self.suite.cases.items() if "actions" in case}
        for name in names:
            peer, settings = listed[name]["peer"], listed[name]["arguments"]
            try:
                self._prepare(peer)
                done = self.runner.ask(
                    peer,
                    cases,
                    environments=self.environments,
                    checkpoint=self._checkpoint(),
                    arguments=settings,
                    prompts=True,
                )
            except self.runner.RunError as error:
                print(" ".join(str(error).split()), file=sys.stderr)
                self.failed = True
                continue
            stored = self.runner.reference(name, done, cases)
            before, now = self.suite.references.get(name), self.scorer.Reference(stored)
            changed = [
                f"{id_} action {action}"
                for id_, case in cases.items()
                for action in range(len(case["actions"]))
                if before is None or before.prompt(id_, action) != now.prompt(id_, action)
            ]
            (self.folder / "references" / f"{name}.json").write_text(self.runner.reference_text(stored), "utf-8")
            what = f"{len(changed)} prompts changed" + (f", the first is {changed[0]}" if changed else "")
            print(f"{name}: {done.versions}, {done.seconds:.1f} s, {what}")
        return int(self.failed)

    def _show(self, result: Any, answers: dict[str, Any]) -> None:
        """What differs, case by case, decoded."""
        from counterpoint.data.harmony.vocabulary import load_vocabulary

        vocabulary = load_vocabulary()
        for name, found in result.found.items():
            print(f"{result.name}, {name}: {self.suite.cases[name]['property']}")
            print("  " + json.dumps(found, ensure_ascii=False))
            for line in self.report.differences(
                self.suite, name, answers.get(name, {}), self.scorer, vocabulary.decode
            ):
                print(f"  {line}")


def _check_names(option: str, names: list[str], known: list[str]) -> None:
    import difflib

    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            listed = known if len(known) < 20 else [*known[:3], "..."]
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(listed)}"
            raise ConfigError(f"{option} {name}: {hint}")


def _command() -> list[str]:
    """The command line without the options that name places of this machine."""
    kept: list[str] = []
    words = iter(sys.argv[1:])
    for word in words:
        if word in ("--environments", "--out", "--page"):
            next(words, None)
        elif not word.startswith(("--environments=", "--out=", "--page=")):
            kept.append(word)
    return kept
