"""Makes the golden prompts: the ids that real servers put before the model for the requests of requests.jsonl.

    python tests/golden/served/make.py vllm --python ENV/bin/python                # starts `vllm launch render`
    python tests/golden/served/make.py vllm --url http://localhost:8000            # asks one that runs
    python tests/golden/served/make.py vllm --url ... --generated 200              # random ones against our writer
    python tests/golden/served/make.py vllm --url ... --compare                    # writes nothing, fails on a difference
    python tests/golden/served/make.py reference --python ENV/bin/python           # and transformers, sglang, llama_cpp

ENV is an environment of its own that has the server; this script runs in the project's. Each answer file is gzipped
JSON lines: a head (server, version, harmony, api, date), then `{"id", "ids"}` or `{"id", "error"}` for every request.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from checkpoint_folder import write_checkpoint_folder, write_o200k  # noqa: E402
from requests_of_apis import DATE, Request, as_responses, read_requests, with_thoughts_in  # noqa: E402

Answer = dict[str, Any]
"""`ids`: of the prompt, or `error`: what the server said."""

OFFICIAL_TEMPLATE = str(Path(importlib.util.find_spec("trl").origin).with_name("chat_templates") / "gptoss.jinja")
"""TRL ships a copy of gpt-oss's template."""

_STARTS_WITHIN = 900.0


@dataclass(frozen=True, slots=True)
class Made:
    """Answers of one API of one server. form: the value of `data.serving` that claims to write the same."""

    server: str
    version: str
    harmony: str
    api: str
    form: str
    answers: dict[str, Answer]
    template: str | None = None
    """SHA-256 of the chat template, where one writes the prompt."""

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.server}-{self.version}-{self.api}.jsonl.gz"

    def write(self) -> None:
        head = {"server": self.server, "version": self.version, "harmony": self.harmony, "api": self.api}
        head |= {"form": self.form, "date": DATE} | ({"template": self.template} if self.template else {})
        lines: list[dict[str, Any]] = [head]
        lines += [{"id": id_, **answer} for id_, answer in self.answers.items()]
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        self.path.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(f"{self.path.name}: {sum('ids' in a for a in self.answers.values())} prompts of {len(self.answers)}")


def read_answers(path: Path) -> tuple[dict[str, str], dict[str, Answer]]:
    """The head of an answer file, and its answers by request."""
    head, *lines = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
    return head, {line.pop("id"): line for line in lines}


def vllm(args: argparse.Namespace, requests: Mapping[str, Request]) -> Iterator[Made]:
    """`vllm launch render`, chat and Responses; it needs neither weights nor a GPU."""
    with contextlib.ExitStack() as stack:
        url = args.url or stack.enter_context(vllm_server(args.python))
        version = _get(f"{url}/version")["version"]
        model = _get(f"{url}/v1/models")["data"][0]["id"]
        old = tuple(map(int, version.split(".")[:2])) < (0, 31)
        harmony = args.harmony or _distribution(args.python, "openai-harmony" if old else "oss-harmony")
        apis: list[tuple[str, str, str, Callable[[Request], Request]]] = [
            ("chat", "chat/completions", "vllm_0_30" if old else "vllm", dict)
        ]
        if not old:
            apis.append(("responses", "responses", "vllm_responses", as_responses))
        for api, path, form, shape in apis:
            answers = {
                id_: _posted(f"{url}/v1/{path}/render", {"model": model, **shape(request)}, _token_ids)
                for id_, request in requests.items()
            }
            yield Made("vllm", version, harmony, api, form, answers)


def llama_cpp(args: argparse.Namespace, requests: Mapping[str, Request]) -> Iterator[Made]:
    """A running `llama-server --jinja` (any gpt-oss GGUF, see tiny_gguf.py): its template, then its tokenizer."""
    if not args.url or not args.version:
        raise SystemExit("llama_cpp: give --url of a running llama-server, and --version of llama.cpp")
    template = _get(f"{args.url}/props")["chat_template"]

    def ids(answer: Any) -> list[int]:
        prompt = re.sub(r"(?<=^Current date: )[0-9-]{10}$", DATE, answer["prompt"], count=1, flags=re.MULTILINE)
        body = {"content": prompt, "add_special": False, "parse_special": True}
        found = _posted(f"{args.url}/tokenize", body, lambda tokens: tokens["tokens"])
        return found["ids"]

    answers = {
        id_: _posted(f"{args.url}/apply-template", with_thoughts_in(request, "reasoning_content"), ids)
        for id_, request in requests.items()
    }
    sha = hashlib.sha256(template.encode()).hexdigest()
    yield Made("llama_cpp", args.version, "", "chat", "llama_cpp", answers, sha)


@contextlib.contextmanager
def vllm_server(python: str, date: str = DATE) -> Iterator[str]:
    """vLLM's render server while the context is open: its URL."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint_folder(Path(folder, "m"))
        write_o200k(Path(folder, "encodings"))
        command = [str(Path(python).with_name("vllm")), "launch", "render", f"{folder}/m", "--served-model-name", "m"]
        variables = {
            "TIKTOKEN_ENCODINGS_BASE": f"{folder}/encodings",
            "VLLM_SYSTEM_START_DATE": date,
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with running(command, variables, "/health") as url:
            yield url


@contextlib.contextmanager
def running(command: list[str], variables: Mapping[str, str], health: str) -> Iterator[str]:
    """A server that runs while the context is open: its URL. RuntimeError where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env={**os.environ, **variables}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + _STARTS_WITHIN
            while not _answers(url + health):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read()[-4000:]}")
                time.sleep(1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _worker(server: str, *options: str) -> Callable[[argparse.Namespace, Mapping[str, Request]], Iterator[Made]]:
    """A server whose writer runs in a process of its environment: NAME_worker.py reads requests and writes answers."""

    def run(args: argparse.Namespace, requests: Mapping[str, Request]) -> Iterator[Made]:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint_folder(Path(folder, "m"))
            write_o200k(Path(folder, "encodings"))
            lines = "".join(json.dumps({"id": id_, "request": request}) + "\n" for id_, request in requests.items())
            done = subprocess.run(
                [args.python, str(FOLDER / f"{server}_worker.py"), f"{folder}/m", *(args.options or options)],
                input=lines,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={**os.environ, "TIKTOKEN_ENCODINGS_BASE": f"{folder}/encodings", "HF_HUB_OFFLINE": "1"},
            )
        made: dict[str, Made] = {}
        for line in map(json.loads, done.stdout.splitlines()):
            if "version" in line:
                made[line["api"]] = Made(server=server, answers={}, **line)
            else:
                made[line.pop("api")].answers[line.pop("id")] = line
        yield from made.values()

    return run


SERVERS: Mapping[str, Callable[[argparse.Namespace, Mapping[str, Request]], Iterator[Made]]] = {
    "vllm": vllm,
    "llama_cpp": llama_cpp,
    "reference": _worker("reference"),
    "transformers": _worker("transformers", OFFICIAL_TEMPLATE),
    "sglang": _worker("sglang", OFFICIAL_TEMPLATE),
    "ollama": _worker("ollama"),
}


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def _posted(url: str, body: Request, ids_of: Callable[[Any], list[int]]) -> Answer:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return {"ids": ids_of(json.load(answer))}
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]["message"]
        return {"error": f"{error.code}: {' '.join(text.split())[:200]}"}


def _token_ids(answer: Any) -> list[int]:
    return answer["token_ids"]


def _distribution(python: str, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return f"{name} {subprocess.run([python, '-c', code], capture_output=True, text=True, check=True).stdout.strip()}"


def _differences(made: Made) -> list[str]:
    """What differs from the answers of the file of the same form that is there, of whichever version."""
    found: list[str] = []
    stored = [read_answers(path) for path in sorted(FOLDER.glob(f"{made.server}-*-{made.api}.jsonl.gz"))]
    for head, answers in stored:
        if head["form"] != made.form:
            continue
        for id_, answer in made.answers.items():
            if id_ in answers and answers[id_].get("ids") != answer.get("ids"):
                found.append(f"{made.server} {made.version} {made.api} differs from {head['version']} on {id_}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("--python", default=sys.executable, help="of the environment that has the server")
    parser.add_argument("--url", help="of a render server that runs with VLLM_SYSTEM_START_DATE=" + DATE)
    parser.add_argument("--harmony", help="with --url and no --python: the module of that server and its version")
    parser.add_argument("--version", help="of llama.cpp")
    parser.add_argument("--generated", type=int, metavar="N", help="compare N random conversations with our writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="fail where answers differ from the stored ones")
    parser.add_argument("options", nargs="*", help="passed on to the server's script")
    args = parser.parse_args()
    requests = read_requests()
    if args.generated:
        from generated import compare, generate

        requests = {f"generated_{i}": request for i, request in enumerate(generate(args.generated, args.seed))}
        equal = [compare(made.form, requests, made.answers) for made in SERVERS[args.server](args, requests)]
        return int(not all(equal))
    differences: list[str] = []
    for made in SERVERS[args.server](args, requests):
        if args.compare:
            differences += _differences(made)
        else:
            made.write()
    for line in differences:
        print(line)
    return int(bool(differences))


if __name__ == "__main__":
    raise SystemExit(main())
