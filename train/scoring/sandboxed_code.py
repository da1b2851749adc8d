"""Runs inside a sandbox: one side of a test of a program. Only the standard library, and no import of Counterpoint.

The judged program and an assert never share a process: the asserts run in a sandbox of their own, where the program's
names are proxies whose calls travel as text to the sandbox of the program. What comes back is plain data, or the number
of an object that stays there; it is compared here, where the program reaches neither the asserts nor what they expect.
"""

import ast
import atexit
import builtins
import datetime
import decimal
import fractions
import importlib
import json
import operator
import os
import queue
import sys
import threading
import types
from collections import deque
from typing import Any

_STACK = 64 << 20
builtins.exit = builtins.quit = sys.exit  # which `python -S` leaves out
_MADE = {
    decimal.Decimal: lambda value: [str(value)],
    fractions.Fraction: lambda value: [value.numerator, value.denominator],
    complex: lambda value: [value.real, value.imag],
    datetime.datetime: lambda value: [*value.timetuple()[:6], value.microsecond],
    datetime.date: lambda value: [value.year, value.month, value.day],
    datetime.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    range: lambda value: [value.start, value.stop, value.step],
}
"""What is sent as the arguments that make it."""
_BY_NAME = {kind.__name__: kind for kind in _MADE}
_MANY = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
_FOREIGN = ("gi_", "cr_", "ag_", "f_", "tb_", "co_")
_UNARY = ("len", "iter", "next", "bool", "str", "repr", "abs", "hash", "int", "float", "round")
_BINARY = (
    *(
        "getitem",
        "setitem",
        "delitem",
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and_",
        "or_",
        "xor",
    ),
    *("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "invert"),
)


class Peer:
    """What both sides are: each sends a message and waits for the next, its work in a thread of its own.

    hidden: whether the other side may read no name with an underscore, and call only what it was given.
    """

    def __init__(self, hidden):
        self.hidden, self.held, self.errors, self.raised = hidden, [], {}, []
        self.inbox, self.outbox = queue.Queue(), queue.Queue()

    def start(self, work):
        threading.stack_size(_STACK)
        threading.Thread(target=work, daemon=True).start()

    def exchange(self, text=None):
        """Give the thread a message, and print the next that it sends."""
        if text is not None:
            self.inbox.put(json.loads(text))
        print("\n" + json.dumps(self.outbox.get()))

    def request(self, *message):
        """Ask the other side, and answer what it asks meanwhile."""
        self.outbox.put(["ask", *message])
        while True:
            kind, *rest = self.inbox.get()
            if kind == "ask":
                self.outbox.put(self.answer(rest))
            elif kind == "value":
                return rest
            else:
                raise self.error(rest, ends=message[:2] == ("operator", "next"))

    def serve(self):
        while True:
            _, *asked = self.inbox.get()
            self.outbox.put(self.answer(asked))

    def answer(self, asked):
        try:
            return ["value", *getattr(self, f"do_{asked[0]}")(*asked[1:])]
        except BaseException as error:
            return ["error", [kind.__name__ for kind in type(error).__mro__], str(error)[:500]]

    def error(self, told, ends):
        """The other side's exception as the first class of its line that is known here. ends: it may end a loop."""
        names, text = told
        names = [name for name in names if ends or name != "StopIteration"]
        known = [self.errors[name] for name in names if name in self.errors]
        kinds = [getattr(builtins, name, None) for name in names]
        kinds = known + [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseException)]
        try:
            found = kinds[0](text)
        except Exception:
            found = RuntimeError(text)
        self.raised.append(found)
        return found

    def do_call(self, target, arguments, named):
        function = self.decoded(target)
        values, more = [self.decoded(each) for each in arguments], {k: self.decoded(v) for k, v in named.items()}
        result = self.encoded(function(*values, **more))
        after = [
            self.encoded(value) if isinstance(value, (list, dict, set, bytearray, deque)) else None for value in values
        ]
        return result, [None if now == before else now for now, before in zip(after, arguments, strict=True)]

    def do_attribute(self, target, name):
        self.allow(name)
        return [self.encoded(getattr(self.decoded(target), name))]

    def do_set(self, target, name, value):
        self.allow(name)
        setattr(self.decoded(target), name, self.decoded(value))
        return [None]

    def do_operator(self, name, arguments):
        values = [self.decoded(each) for each in arguments]
        if name == "isinstance":
            return [self.encoded(isinstance(*values))]
        if name in _UNARY:
            return [self.encoded(getattr(builtins, name)(*values))]
        if name not in _BINARY:
            raise TypeError(f"no operator {name}")
        return [self.encoded(getattr(operator, name)(*values))]

    def allow(self, name):
        if self.hidden and name.startswith(("_", *_FOREIGN)):
            raise AttributeError(name)

    def encoded(self, value):
        """A value as JSON: plain data by what it is built on, whatever its class says, and the rest by number."""
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Proxy):
            return {"yours": object.__getattribute__(value, "_number")}
        kind = type(value)
        if kind in _MADE:
            return {"made": kind.__name__, "of": _MADE[kind](value)}
        if isinstance(value, int):
            return {"int": str(int.__add__(value, 0))}
        if isinstance(value, float):
            return {"float": float.hex(value)}
        if isinstance(value, str):
            return {"str": str.__getitem__(value, slice(None))}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value).hex(), "fixed": isinstance(value, bytes)}
        if isinstance(value, dict):
            return {"dict": [[self.encoded(key), self.encoded(each)] for key, each in dict.items(value)]}
        for name, many in _MANY.items():
            if isinstance(value, many):
                return {name: [self.encoded(each) for each in many.__iter__(value)]}
        self.held.append(value)
        return {"mine": len(self.held) - 1}

    def decoded(self, sent) -> Any:
        if sent is None or sent is True or sent is False:
            return sent
        (kind, of), *rest = sent.items()
        if kind == "mine":
            return Proxy(self, of)
        if kind == "yours":
            return self.held[of]
        if kind == "int":
            return int(of)
        if kind == "float":
            return float.fromhex(of)
        if kind == "str":
            return str(of)
        if kind == "bytes":
            return (bytes if rest[0][1] else bytearray).fromhex(of)
        if kind == "made":
            return _BY_NAME[of](*rest[0][1])
        if kind == "dict":
            return {self.decoded(key): self.decoded(each) for key, each in of}
        return _MANY[kind](self.decoded(each) for each in of)


class Proxy:
    """An object of the other side. It equals another of its objects if that side says so, and never plain data."""

    def __init__(self, peer, number):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def _do(self, *message):
        peer = object.__getattribute__(self, "_peer")
        return peer.decoded(peer.request(*message)[0])

    def _operator(self, name, *more):
        peer = object.__getattribute__(self, "_peer")
        return Proxy._do(self, "operator", name, [peer.encoded(each) for each in (self, *more)])

    def __call__(self, *arguments, **named):
        peer = object.__getattribute__(self, "_peer")
        sent = [peer.encoded(each) for each in arguments]
        result, after = peer.request(
            "call", peer.encoded(self), sent, {key: peer.encoded(value) for key, value in named.items()}
        )
        for argument, now in zip(arguments, after, strict=True):
            if now is not None:
                _rewrite(argument, peer.decoded(now))
        return peer.decoded(result)

    def __getattr__(self, name):
        peer = object.__getattribute__(self, "_peer")
        return Proxy._do(self, "attribute", peer.encoded(self), name)

    def __setattr__(self, name, value):
        peer = object.__getattribute__(self, "_peer")
        peer.request("set", peer.encoded(self), name, peer.encoded(value))

    def __eq__(self, other):
        return self is other or (isinstance(other, Proxy) and Proxy._operator(self, "eq", other) is True)

    def __ne__(self, other):
        return not self == other

    def __instancecheck__(self, other):
        return isinstance(other, Proxy) and Proxy._do(
            self, "operator", "isinstance", [object.__getattribute__(self, "_peer").encoded(v) for v in (other, self)]
        )

    def __enter__(self):
        return self.__getattr__("__enter__")()

    def __exit__(self, *told):
        return self.__getattr__("__exit__")(None, None, None)


def _forward(name):
    def operate(self, *others):
        if name in ("lt", "le", "gt", "ge") and not isinstance(others[0], Proxy):
            return NotImplemented  # what the program says of plain data decides nothing
        return Proxy._operator(self, name, *others)

    return operate


for _name in (*_BINARY, *_UNARY):
    if _name not in ("eq", "ne"):
        setattr(Proxy, f"__{_name.rstrip('_')}__", _forward(_name))


def _rewrite(old, new):
    """What the other side did to its copy of an argument."""
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)
    elif isinstance(old, deque):
        old.clear()
        old.extend(new)


def run_program(code, given):
    """A whole program that reads its standard input; what it prints is what the sandbox captures."""
    with open("/tmp/.given", "w", encoding="utf-8", newline="") as file:
        file.write(given)
    for target, source in ((0, os.open("/tmp/.given", os.O_RDONLY)), (2, os.open(os.devnull, os.O_WRONLY))):
        os.dup2(source, target)
    os.unlink("/tmp/.given")
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        exec(compile(code, "<program>", "exec"), main.__dict__)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()


def load(code, stub, entry):
    """The module of a program: after the row's stub, and as its continuation where it alone lacks what is asked."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    for text in (stub, code):
        exec(compile(text, "<program>", "exec"), module.__dict__)
    root = (entry or "").partition("(")[0].partition(".")[0]
    return module, entry and entered(module.__dict__, entry, root)


def entered(names, entry, root):
    """The function that a row means, which may be a method of the class `Solution`."""
    if root not in names and hasattr(names.get("Solution"), entry):
        return getattr(names["Solution"](), entry)
    return eval(entry, names)


def called(function, sent):
    """The result of a call, as it is sent."""
    peer = Peer(False)
    result = function(*[peer.decoded(each) for each in json.loads(sent)])
    print("\n" + json.dumps(peer.encoded(result)))


def serve_module(code, stub, entry):
    """The side of the judged program: its names, then whatever the tests ask."""
    peer = Peer(False)

    def work():
        try:
            module, function = load(code, stub, entry)
            names = {name: value for name, value in vars(module).items() if not name.startswith("__")}
            peer.outbox.put(
                [
                    "names",
                    {
                        name: peer.encoded(value)
                        for name, value in names.items()
                        if not isinstance(value, types.ModuleType)
                    },
                    [name for name, value in names.items() if isinstance(value, types.ModuleType)],
                    {
                        name: [kind.__name__ for kind in value.__mro__]
                        for name, value in names.items()
                        if isinstance(value, type) and issubclass(value, BaseException)
                    },
                    peer.encoded(function) if entry else None,
                ]
            )
        except BaseException as error:
            peer.outbox.put(["failed", f"{type(error).__name__}: {error}"[:500]])
            return
        peer.serve()

    peer.start(work)
    return peer


def serve_tests(code, told, entry, own):
    """The side of the asserts: `done`, `failed` with why, or `broken` where they cannot be run here. own: names of
    Python's that are the program's here."""
    peer = Peer(True)
    _, names, modules, errors, function = json.loads(told)

    def work():
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            peer.outbox.put(["broken", f"SyntaxError: {error}"])
            return
        space = types.ModuleType("__main__")
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        solution = types.ModuleType("solution")
        for name, line in errors.items():
            base = next((getattr(builtins, kind) for kind in line if hasattr(builtins, kind)), Exception)
            peer.errors[name] = type(name, (base,), {})
        for name, sent in names.items():
            value = peer.errors.get(name) or peer.decoded(sent)
            setattr(solution, name, value)
            # What asserts are written with is never the program's.
            if name in used and (name in own or not (hasattr(builtins, name) or name in sys.stdlib_module_names)):
                setattr(space, name, value)
        for name in set(modules) & used & set(sys.stdlib_module_names):
            setattr(space, name, importlib.import_module(name))
        if entry:
            setattr(space, "candidate", peer.decoded(function))  # noqa: B010
        sys.modules["solution"], sys.modules["__main__"] = solution, space
        try:
            exec(compile(tree, "<tests>", "exec"), space.__dict__)
        except ImportError as error:
            theirs = error in peer.raised or error.name == "solution"
            peer.outbox.put(["failed" if theirs else "broken", f"ImportError: {error}"])
        except BaseException as error:
            peer.outbox.put(["failed", f"{type(error).__name__}: {error}"[:500]])
        else:
            peer.outbox.put(["done"])

    peer.start(work)
    return peer
