"""Ollama's request handling and template engine. Arguments: the checkpoint's folder, the program, its version, a file
that holds the library's template of gpt-oss.

The program is ollama_writer.go, built in a checkout of Ollama: `mkdir cmd/served && cp ollama_writer.go cmd/served/main.go
&& go build -o PROGRAM ./cmd/served`. The file is unsloth's ollama_template_mappers.py, which has a copy of the template;
it is read, not imported. The ids are those of the text, in which typed control tokens are control tokens.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from worker import answer_requests  # isort: skip

from requests_of_apis import DATE
from tokenizers import Tokenizer

folder, program, version, mappers = sys.argv[1:]
NAME = "gptoss_ollama"


def library_template(source: str) -> str:
    """What stands behind TEMPLATE in the Modelfile that is assigned to `gptoss_ollama`."""
    modelfiles = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == NAME for t in node.targets)
    ]
    found = re.search(r'TEMPLATE """(.*?)"""', modelfiles[0], re.DOTALL) if modelfiles else None
    if found is None:
        raise SystemExit(f"{mappers}: no TEMPLATE in {NAME}")
    return found[1]


tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
template = library_template(Path(mappers).read_text(encoding="utf-8"))


def ids(request: dict[str, Any]) -> list[int]:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(template)
        file.flush()
        line = json.dumps({"id": "", "request": request})
        done = subprocess.run([program, file.name], input=line, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(answer["error"])
    text = re.sub(r"(?<=^Current date: )[0-9-]{10}$", DATE, answer["text"], count=1, flags=re.MULTILINE)
    return tokenizer.encode(text, add_special_tokens=False).ids


sha = hashlib.sha256(template.encode()).hexdigest()
answer_requests({"chat": ({"version": version, "harmony": "", "form": "ollama", "template": sha}, ids)})
