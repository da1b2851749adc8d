"""Runs inside the sandbox: reads frames of code, answers frames of a flag (whether it raised) and what was printed.

A frame is eight bytes that the request drew, the number of bytes that follow, and those. Only the standard library, and
no import of Counterpoint: the sandbox has neither.
"""

import ast
import contextlib
import json
import os
import resource
import struct
import sys
import traceback

HEAD = struct.Struct("<8sI")


def main() -> None:
    limits = json.loads(sys.argv[1])
    for name, most in {
        "AS": limits["memory"],
        "NPROC": limits["threads"],
        "FSIZE": limits["file"],
        "CPU": limits["cpu"],
        "NOFILE": 64,
        "CORE": 0,
        "MSGQUEUE": 0,
    }.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    # Not in the scratch folder: it must take a traceback when that is full.
    capture = os.open("/output/printed", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.unlink("/output/printed")
    os.dup2(capture, 1)
    os.dup2(capture, 2)
    names = {"__name__": "__main__"}
    while head := requests.read(HEAD.size):
        drawn, size = HEAD.unpack(head)
        os.ftruncate(capture, 0)
        raised = _run(requests.read(size).decode(), names)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        printed = os.pread(capture, 4 * limits["chars"] + 4, 0)
        answers.write(HEAD.pack(drawn, 1 + len(printed)) + bytes([raised]) + printed)
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
