"""How long an adapter takes over HTTP on this machine: serving, downloading, hashing, writing.

    python benchmarks/adapter_files.py [--mb 555] [--rounds 3]

A link is a bound of its own: 555 MB take 4.4 s at 1 Gbit/s.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from counterpoint.train.sampling.adapter_files import AdapterFiles
from counterpoint.train.sampling.vllm_resolver import FILES, digest_of, fetch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=555)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "adapter"
        folder.mkdir()
        (folder / FILES[0]).write_text("{}")
        with (folder / FILES[1]).open("wb") as file:
            for _ in range(args.mb):
                file.write(os.urandom(1_000_000))
        began = time.perf_counter()
        name = f"counterpoint-{'0' * 8}-0-{digest_of(folder)}"
        print(f"hashing      {time.perf_counter() - began:5.2f} s")
        files = AdapterFiles(lambda: {name: folder}, "benchmark", 0, "127.0.0.1")
        for _ in range(args.rounds):
            cache = Path(root) / "cache"
            began = time.perf_counter()
            assert fetch(name, [f"http://127.0.0.1:{files.port}"], "benchmark", cache) is not None
            seconds = time.perf_counter() - began
            print(f"downloading  {seconds:5.2f} s, {args.mb * 8 / 1000 / seconds:.1f} Gbit/s")
            shutil.rmtree(cache)
        files.close()


if __name__ == "__main__":
    main()
