"""Look over this machine: versions, devices, vocabulary, and whether the lean path gives the reference's numbers here.

counterpoint doctor
counterpoint doctor --device cuda

Exit code 1 where something does not fit; each such line says what to do."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from counterpoint.recipes.commands.allocator import GROWING, set_otherwise

Status = Literal["ok", "note", "FAIL"]
GIB = 1 << 30
LOW_DISK = 5 * GIB


@dataclass(frozen=True)
class Finding:
    """One line: `what` was found, and what to do where the status is not ok."""

    section: str
    status: Status
    what: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compare the paths")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    failed = total = 0
    section = None
    for finding in findings(args.device):
        total += 1
        failed += finding.status == "FAIL"
        if args.json:
            print(json.dumps(asdict(finding), ensure_ascii=False), flush=True)
            continue
        if finding.section != section:
            section = finding.section
            print(section)
        print(f"  {finding.status:4}  {finding.what}" + (f": {finding.fix}" if finding.fix else ""), flush=True)
    if not args.json:
        print(f"{failed} of {total} checks failed" if failed else f"all {total} checks passed")
    return 1 if failed else 0


def findings(device: str = "auto") -> Iterator[Finding]:
    """All checks, each as soon as it is known."""
    yield from machine()
    packages = list(versions())
    yield from packages
    if any(finding.status == "FAIL" for finding in packages):
        yield Finding("paths", "note", "not compared", "bring the versions in order first")
        return
    yield from prices()
    yield from devices(device)
    yield from vocabulary()
    yield from paths(device)


def machine() -> Iterator[Finding]:
    memory = _memory()
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores" + (f", {memory}" if memory else "")
    yield Finding("machine", "ok", system)
    free = shutil.disk_usage(Path.cwd()).free
    low = "checkpoints may not fit: free some, or set `output` to another disk" if free < LOW_DISK else ""
    yield Finding("machine", "note" if low else "ok", f"{free / GIB:.0f} GiB free on this disk", low)


def versions() -> Iterator[Finding]:
    """Python and every required package against the range that this version of the package was tested with."""
    from packaging.requirements import Requirement

    python = sys.version_info
    fix = "" if python >= (3, 11) else "install Python 3.11 or newer"
    yield Finding("versions", "FAIL" if fix else "ok", f"python {platform.python_version()}", fix)
    for line in metadata.requires("counterpoint") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding("versions", "FAIL", f"{requirement.name} is not installed", wanted)
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        text = f"{requirement.name} {found}" + (f" ({requirement.specifier})" if str(requirement.specifier) else "")
        yield Finding("versions", "ok" if fits else "FAIL", text, "" if fits else f"outside the tested range: {wanted}")


def prices() -> Iterator[Finding]:
    """What an installed version of a library costs."""
    from counterpoint.train.model.library_versions import costs

    for package, found, cost in costs():
        yield Finding("versions", "note", f"{package} {found}", cost)


def devices(wanted: str) -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if wanted == "cuda":
            yield Finding("devices", "FAIL", "no CUDA device", "check the driver, and that torch is a CUDA build")
        elif shutil.which("nvidia-smi"):
            fix = f"torch {torch.__version__} cannot use it: install a CUDA build of torch, or a newer driver"
            yield Finding("devices", "note", "there is an NVIDIA GPU", fix)
        else:
            yield Finding("devices", "ok", "no GPU: training runs on the CPU, for models of the embedded one's size")
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        text = f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute capability {about.major}.{about.minor}"
        old = "too old for the fused paths: set model.attention and model.experts to reference"
        yield Finding("devices", "note" if about.major < 8 else "ok", text, old if about.major < 8 else "")
    yield allocator()


def allocator(environment: Mapping[str, str] = os.environ) -> Finding:
    """Whether torch's CUDA allocator will grow its segments in `counterpoint train`."""
    other = set_otherwise(environment)
    if other is None:
        return Finding("devices", "ok", f"the allocator grows its segments ({GROWING})")
    return Finding("devices", "note", other, f"add {GROWING} to it, or unset it: changing lengths would leave gaps")


def vocabulary() -> Iterator[Finding]:
    from counterpoint.configs.errors import CounterpointError
    from counterpoint.data.harmony.vocabulary import load_vocabulary
    from counterpoint.train.model.embedded import tiny_folder
    from counterpoint.train.model.tiny import WEIGHTS_FILE

    try:
        encoder = load_vocabulary().encoder
        yield Finding("vocabulary", "ok", f"o200k is here, its hash is right; {encoder} encodes text")
    except (CounterpointError, OSError) as error:
        yield Finding("vocabulary", "FAIL", f"cannot be loaded ({error})", "install counterpoint again")
    yield from _harmony()
    there = (tiny_folder() / WEIGHTS_FILE).is_file()
    fix = "" if there else "install counterpoint again, or train it by `counterpoint train configs/sft/tiny_base.yaml`"
    yield Finding("vocabulary", "ok" if there else "FAIL", f"embedded model {'' if there else 'not '}present", fix)


def _harmony() -> Iterator[Finding]:
    """Which package the module `openai_harmony` is: vLLM 0.31 and later brings a fork of the same module name."""
    from counterpoint.configs.errors import CounterpointError
    from counterpoint.data.harmony.official import is_fork

    try:
        fork = is_fork()
    except CounterpointError as error:
        yield Finding("vocabulary", "FAIL", f"openai-harmony cannot be loaded ({error})", "install it again")
        return
    if not fork:
        yield Finding("vocabulary", "ok", "the module openai_harmony is openai-harmony's")
        return
    fix = (
        "training and evaluation write the same ids with it; keep vLLM in an environment of its own for what needs "
        "openai-harmony (pip uninstall oss-harmony, then pip install --force-reinstall openai-harmony==0.0.8)"
    )
    yield Finding("vocabulary", "note", "the module openai_harmony is oss-harmony's, as vLLM installs it", fix)


def paths(wanted: str) -> Iterator[Finding]:
    """The lean path against the reference: outputs and gradients, relative errors."""
    import torch

    from counterpoint.train.parity import parity, parity_parts

    places = [(torch.device("cpu"), torch.float32), (torch.device("cpu"), torch.bfloat16)]
    if wanted != "cpu" and torch.cuda.is_available():
        places = [*places[: 0 if wanted == "cuda" else 1], (torch.device("cuda"), torch.bfloat16)]
    switch = "set model.attention, model.experts, model.norms and model.loss to reference, and report it"
    for device, dtype in places:
        section = f"lean path on {device.type}, {str(dtype).removeprefix('torch.')}"
        for name in parity_parts():
            try:
                found = parity(name, device, dtype)
            except Exception as error:
                first = (str(error).splitlines() or [""])[0][:160]
                yield Finding(section, "FAIL", f"{name} raised {type(error).__name__} ({first})", switch)
                continue
            yield Finding(section, "ok" if found.passes else "FAIL", found.text, "" if found.passes else switch)


def _memory() -> str:
    """Memory of the machine, where the system reports it."""
    try:
        page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return ""
    return f"{page * pages / GIB:.0f} GiB memory ({page * free / GIB:.0f} unused)"
