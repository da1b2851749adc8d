"""Compare a wheel with the tree: every file of the package folders is in it, and nothing else is importable."""

import subprocess
import sys
import zipfile

FOLDERS = ("counterpoint", "configs", "data", "train", "recipes", "conformance")
LEFT_OUT = "conformance/results/"

names = set(zipfile.ZipFile(sys.argv[1]).namelist())
command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS]
tracked = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
expected = {
    f"counterpoint/{name.removeprefix('counterpoint/')}" for name in tracked if name and not name.startswith(LEFT_OUT)
}
packaged = {name for name in names if ".dist-info/" not in name}
missing, foreign = sorted(expected - packaged), sorted(packaged - expected)
if missing or foreign:
    sys.exit(f"wheel: lacks {missing or 'nothing'}, holds what is not in the tree: {foreign or 'nothing'}")
licences = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
if licences != {"LICENSE", "NOTICE"}:
    sys.exit(f"wheel: licence files are {sorted(licences)}")
