"""Rendering and `prepare` of this checkout beside those of another one, in turns in one run.

    git worktree add ../before COMMIT
    python benchmarks/data_against.py ../before [--rounds N] [--megabytes N]

CPU seconds, the least of several rounds. Rendering: conversations in memory, to their examples. Rows of training: a
file, read, rendered, judged where the checkout does so, and laid out as tree rows. prepare: the command on a file of
mixed rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RENDER = """
import json, sys, time
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
made = [c for c in map(convert, map(json.loads, open(sys.argv[1], encoding="utf-8"))) if isinstance(c, Conversation)]
renderer, least = Renderer(load_vocabulary()), []
for _ in range(3):
    began = time.process_time()
    for conversation in made:
        list(renderer.examples(conversation))
    least.append(time.process_time() - began)
print(min(least))
"""
ROWS = """
import sys, time
from counterpoint.configs.data_section import DataSettings
try:
    from counterpoint.data.dataset.build import build_training_rows
except ImportError:
    from counterpoint.data.dataset.training_rows import build_training_rows
from counterpoint.data.harmony.vocabulary import load_vocabulary
data, vocabulary = DataSettings(train=[sys.argv[1]], max_tokens=131072), load_vocabulary()
began = time.process_time()
rows = build_training_rows(data.train, data, vocabulary).rows
sum(len(row) for row in rows)
print(time.process_time() - began)
"""
PREPARE = "import sys; from counterpoint.recipes.cli import main; sys.exit(main())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = {"before": _package(args.before.resolve(), folder), "now": _package(HERE.parent, folder)}
        for kind, count in {"mixed": 1500, "short": 3000, "turns": 150}.items():
            rows = _rows(folder / f"{kind}.jsonl", kind, count)
            for what, code in (("rendering", RENDER), ("rows of training", ROWS)):
                found = {side: [] for side in sides}
                for _ in range(args.rounds):
                    for side, path in sides.items():
                        found[side].append(float(_python(path, code, str(rows)).split()[-1]))
                _told(f"{what}, {count:,} {kind} rows", found)
        rows = _rows(folder / "rows.jsonl", "mixed", None, args.megabytes)
        found = {side: [] for side in sides}
        for number in range(args.rounds):
            for side, path in sides.items():
                began = os.times()
                _python(path, PREPARE, "prepare", str(rows), "--out", str(folder / f"{side}{number}"), "--workers", "1")
                ended = os.times()
                found[side].append(ended[2] + ended[3] - began[2] - began[3])
        _told(f"prepare, {args.megabytes} MB of mixed rows", found)


def _package(checkout: Path, folder: Path) -> Path:
    """A folder for PYTHONPATH in which `counterpoint` is that checkout's."""
    root = folder / f"package{len(list(folder.glob('package*')))}"
    (root / "counterpoint").mkdir(parents=True)
    for part in ("configs", "data", "train", "recipes"):
        (root / "counterpoint" / part).symlink_to(checkout / part)
    for file in (checkout / "counterpoint").glob("*.py*"):
        (root / "counterpoint" / file.name).symlink_to(file)
    return root


def _rows(path: Path, kind: str, count: int | None, megabytes: int = 1 << 20) -> Path:
    import workload

    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(workload.rows(kind, 1 << 40)):  # pyright: ignore[reportArgumentType]
            if number == count or file.tell() > megabytes * 1_000_000:
                break
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def _python(package: Path, code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _told(what: str, found: dict[str, list[float]]) -> None:
    before, now = (min(found[side]) for side in ("before", "now"))
    print(f"{what:<40}before {before:7.2f} s   now {now:7.2f} s   ratio {now / before:.2f}", flush=True)


if __name__ == "__main__":
    main()
