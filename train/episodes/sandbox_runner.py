"""Runs inside the sandbox: reads `{"code": ...}` lines, answers `{"output": ..., "raised": ...}` lines.

Only the standard library, and no import of Counterpoint: the sandbox has neither.
"""

import ast
import contextlib
import json
import os
import resource
import sys
import traceback


def main() -> None:
    limits = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"], limits["file"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    capture = os.memfd_create("output")  # not in the scratch folder: it must take a traceback when that is full
    os.dup2(capture, 1)
    os.dup2(capture, 2)
    names = {"__name__": "__main__"}
    for line in requests:
        os.ftruncate(capture, 0)
        os.lseek(capture, 0, os.SEEK_SET)
        raised = _run(json.loads(line)["code"], names)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os.lseek(capture, 0, os.SEEK_SET)
        output = os.read(capture, 4 * limits["chars"] + 4).decode("utf-8", "replace")
        answers.write(json.dumps({"output": output, "raised": raised}).encode() + b"\n")
        answers.flush()


def _run(code: str, names: dict) -> bool:
    try:
        tree = ast.parse(code, "<python>")
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = tree.body.pop()
        exec(compile(tree, "<python>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<python>", "eval"), names)
            if value is not None:
                print(repr(value))
    except BaseException:
        kind, error, trace = sys.exc_info()
        # Without the frame of this runner, which the code's author cannot know.
        with contextlib.suppress(OSError):  # the output is full
            print("".join(traceback.format_exception(kind, error, trace.tb_next if trace else None)), end="")
        return True
    return False


main()
