"""Makes the pictures of README.md that no run draws: `show` in colour, and the top of a report.

python docs/_site/pictures.py runs/support-...    # a run whose report is shown; needs Chromium
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from chrome import Chrome  # noqa: E402

COLUMNS = 100


def shown() -> None:
    """A row with a call, as `counterpoint show` colours it."""
    command = [sys.executable, "-m", "counterpoint.recipes.cli", "show", "example:quickstart", "--row", "3"]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    lines = told.splitlines()
    first = next(n for n, line in enumerate(lines) if re.match(r"\s+1 user ", Text.from_ansi(line).plain))
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    for line in lines[first : first + 24]:
        console.print(Text.from_ansi(line))
    svg = console.export_svg(title="counterpoint show", unique_id="show")
    # The font that it asks a host for; monospace of the reader's machine does.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code,", "")
    (FIGURES / "show.svg").write_text(svg, encoding="utf-8")


def report(run: Path) -> None:
    """The first screen of a run's report."""
    with Chrome() as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=1100, height=760, deviceScaleFactor=1, mobile=False)
        browser.open((run / "report.html").resolve().as_uri())
        shot = browser.call("Page.captureScreenshot", format="png")["data"]
    (FIGURES / "report.png").write_bytes(base64.b64decode(shot))


if __name__ == "__main__":
    shown()
    report(Path(sys.argv[1]))
