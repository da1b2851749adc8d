"""Scores what an adapter answered. The standard library alone, no tokenizer: `python score.py ANSWERS.jsonl`.

A training case passes under a reference when, for every action, the prompt holds the ids that the reference makes
(`exact`) or the same messages with headers spelled otherwise (`equivalent`), the target holds its messages, each ended
by its own token, and the mask trains the target and nothing else.

    mask strict  from the channel or recipient to the terminator, and the `<|start|>assistant` between two messages of
                 one action; the first `<|start|>assistant` is free, everything else is 0
    mask mild    the `<|start|>assistant` between messages is free too

A completion passes when a valid one is read as it is, and a malformed one refused. What a peer cannot express is
`unsupported`: neither a pass nor a failure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Ids = Sequence[int]

RETURN, CHANNEL, START, END, MESSAGE, CALL = 200002, 200005, 200006, 200007, 200008, 200012
ASSISTANT, FINAL, TO = 173781, 17196, (316, 28)
_STOPS = (END, CALL, RETURN)
_LONGEST_HEADER = 64


class Suite:
    """The cases, their header spellings, and the prompts of each reference, read from a folder."""

    def __init__(self, folder: Path) -> None:
        self.cases: dict[str, Json] = {}
        self.categories: dict[str, list[str]] = {}
        for path in sorted((folder / "cases").glob("*.json")):
            category = json.loads(path.read_text("utf-8"))
            self.categories[category["category"]] = [case["id"] for case in category["cases"]]
            self.cases |= {case["id"]: case for case in category["cases"]}
        table = json.loads((folder / "headers.json").read_text("utf-8"))
        self.headers = {tuple(ids): name for name, spelled in table.items() for ids in spelled}
        references = sorted((folder / "references").glob("*.json"))
        self.references = {path.stem: Reference(json.loads(path.read_text("utf-8"))) for path in references}


class Reference:
    """Prompts that one server of one version made: of a case, ids for each action, None where it refused."""

    def __init__(self, stored: Json) -> None:
        self.name: str = stored["name"]
        self.versions: Json = stored["versions"]
        self._messages: list[list[int]] = stored["messages"]
        self._prompts: Json = stored["prompts"]

    def prompt(self, case: str, action: int) -> list[int] | None:
        """The prompt of the action with this index, `<|start|>assistant` included."""
        stored = self._prompts.get(case)
        parts = None if stored is None else stored[action]
        return None if parts is None else [id_ for part in parts for id_ in self._messages[part]]


@dataclass
class Action:
    """A run of assistant messages in an example. start: of the first `<|start|>`; stop: after the last token."""

    example: int
    start: int
    stop: int
    messages: list[Json]
    trained: bool


def messages_of(ids: Ids) -> Iterator[Json]:
    """Messages of a sequence: role, the positions of header, body and end, and the terminator (None where none is)."""
    starts = [at for at, id_ in enumerate(ids) if id_ == START]
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        body = next((at + 1 for at in range(start, stop) if ids[at] == MESSAGE), stop)
        end = next((at for at in range(body, stop) if ids[at] in _STOPS), None)
        yield {
            "role": ids[start + 1] if start + 1 < stop else None,
            "start": start,
            "header": list(ids[start + 2 : body]),
            "body": list(ids[body : stop if end is None else end]),
            "end": None if end is None else ids[end],
            "stop": stop if end is None else end + 1,
        }


def actions_of(examples: Sequence[Json]) -> Iterator[Action]:
    """Every run of assistant messages that ends in a call, an answer, or before another role."""
    for number, example in enumerate(examples):
        run: list[Json] = []
        for message in [*messages_of(example["ids"]), None]:
            if run and (message is None or message["role"] != ASSISTANT or _ends(run[-1])):
                start, stop = run[0]["start"], run[-1]["stop"]
                yield Action(number, start, stop, run, any(example["mask"][start:stop]))
                run = []
            if message is not None and message["role"] == ASSISTANT:
                run.append(message)


def _ends(message: Json) -> bool:
    header = message["header"]
    called = any(tuple(header[at : at + 2]) == TO for at in range(len(header)))
    answers = any(header[at : at + 2] == [CHANNEL, FINAL] for at in range(len(header)))
    return called or answers or message["end"] in (CALL, RETURN)


def canonical(ids: Ids, headers: Mapping[tuple[int, ...], str]) -> list[int | str]:
    """The ids with each header that has several spellings replaced by its name."""
    found: list[int | str] = []
    at = 0
    while at < len(ids):
        if ids[at] == START:
            stop = next((i + 1 for i in range(at, min(at + _LONGEST_HEADER, len(ids))) if ids[i] == MESSAGE), at)
            name = headers.get(tuple(ids[at:stop]))
            if name is not None:
                found.append(name)
                at = stop
                continue
        found.append(ids[at])
        at += 1
    return found


def compare_prompts(ids: Ids, wanted: Ids, headers: Mapping[tuple[int, ...], str]) -> str:
    """`exact`, `equivalent` or `different`."""
    if list(ids) == list(wanted):
        return "exact"
    return "equivalent" if canonical(ids, headers) == canonical(wanted, headers) else "different"


def target_fault(action: Action, target: Sequence[Json]) -> str | None:
    """What differs first between an action and its target; None where nothing does."""
    for number, wanted in enumerate(target):
        if number == len(action.messages):
            return f"message {number}: missing ({wanted['channel']})"
        got = action.messages[number]
        for part, right in (
            ("header", got["header"] in wanted["headers"]),
            ("content", got["body"] == wanted["body_ids"]),
            ("terminator", got["end"] == wanted["end"]),
        ):
            if not right:
                return f"message {number} ({wanted['channel']}): {part}"
    if len(action.messages) > len(target):
        return f"message {len(target)}: one too many"
    return None


def mask_of(action: Action, mask: Sequence[float]) -> str:
    """`strict`, `mild` or `wrong`, by the messages as the example has them."""
    inner_trained = True
    for number, message in enumerate(action.messages):
        free = message["start"] + 2
        if not all(mask[free : message["stop"]]):
            return "wrong"
        if number:
            inner_trained = inner_trained and all(mask[message["start"] : free])
            if any(mask[action.messages[number - 1]["stop"] : message["start"]]):
                return "wrong"
    return "strict" if inner_trained else "mild"


def score_training(case: Json, examples: Sequence[Json], suite: Suite) -> Json:
    """A training case: `target`, `mask` (strict, mild, wrong), `prompts` by reference, and the faults found."""
    faults: list[str] = []
    for number, example in enumerate(examples):
        if len(example["ids"]) != len(example["mask"]):
            return {"target": False, "mask": "wrong", "prompts": {}, "faults": [f"example {number}: mask length"]}
    trained = [action for action in actions_of(examples) if action.trained]
    pairs = _paired(case["actions"], trained, examples, suite, case["id"])
    target, mask = True, "strict"
    prompts: dict[str, str] = {}
    for number, wanted in enumerate(case["actions"]):
        action = pairs.get(number)
        if action is None:
            if not wanted["optional"]:
                target, mask = False, "wrong"
                faults.append(f"action {number}: not trained")
                prompts |= {
                    name: "different"
                    for name, r in suite.references.items()
                    if r.prompt(case["id"], number) is not None
                }
            continue
        fault = target_fault(action, wanted["target"])
        if fault is not None:
            target = False
            faults.append(f"action {number}, {fault}")
        grade = mask_of(action, examples[action.example]["mask"])
        if grade != "strict":
            mask = min(mask, grade, key=["wrong", "mild", "strict"].index)
            faults.append(f"action {number}: mask {grade}")
        if wanted["optional"]:
            continue
        ids = examples[action.example]["ids"][: action.start + 2]
        for name, reference in suite.references.items():
            expected = reference.prompt(case["id"], number)
            if expected is not None:
                grade = compare_prompts(ids, expected, suite.headers)
                prompts[name] = max(prompts.get(name, "exact"), grade, key=["exact", "equivalent", "different"].index)
    stray = _stray(examples, list(pairs.values())) or _twice(examples, list(pairs.values()))
    if stray is not None:
        mask = "wrong"
        faults.append(stray)
    return {"target": target, "mask": mask, "prompts": prompts, "faults": faults}


def _paired(
    wanted: Sequence[Json], trained: Sequence[Action], examples: Sequence[Json], suite: Suite, case: str
) -> dict[int, Action]:
    """The trained action that stands for each wanted one: the most alike first, none for two of them."""
    ranked: list[tuple[Any, int, int]] = []
    for w, action in enumerate(wanted):
        for t, found in enumerate(trained):
            bodies = [message["body"] for message in found.messages]
            same = sum(message["body_ids"] in bodies for message in action["target"])
            ids = examples[found.example]["ids"][: found.start + 2]
            known = (r.prompt(case, w) for r in suite.references.values())
            exact = any(prompt is not None and list(prompt) == list(ids) for prompt in known)
            right = target_fault(found, action["target"]) is None
            ranked.append(((right, exact, same, -abs(w - t)), w, t))
    pairs: dict[int, Action] = {}
    used: set[int] = set()
    for _, w, t in sorted(ranked, key=lambda entry: entry[0], reverse=True):
        if w not in pairs and t not in used:
            pairs[w] = trained[t]
            used.add(t)
    return pairs


def _stray(examples: Sequence[Json], actions: Sequence[Action]) -> str | None:
    """Where an example trains a token that belongs to no action that is wanted."""
    for number, example in enumerate(examples):
        allowed = bytearray(len(example["ids"]))
        for action in actions:
            if action.example == number:
                allowed[action.start : action.stop] = b"\1" * (action.stop - action.start)
        for at, weight in enumerate(example["mask"]):
            if weight and not allowed[at]:
                return f"example {number}: token {at} is trained and belongs to no action"
    return None


def _twice(examples: Sequence[Json], actions: Sequence[Action]) -> str | None:
    """Where two actions are trained behind the same prompt: the same one twice."""
    prompts = [tuple(examples[action.example]["ids"][: action.start]) for action in actions]
    again = next((number for number, prompt in enumerate(prompts) if prompt in prompts[:number]), None)
    return None if again is None else f"example {actions[again].example}: an action is trained twice"


def score_completion(case: Json, answer: Json) -> Json:
    """A completion: `read` or `refused`, and whether that is right."""
    refused = bool(answer.get("refused"))
    if not case["valid"]:
        return {"right": refused, "faults": [] if refused else [f"accepted ({case['code']})"]}
    if refused:
        return {"right": False, "faults": [f"refused: {answer.get('code', 'no reason given')}"]}
    fault = _reading_fault(case["expect"], answer)
    return {"right": fault is None, "faults": [] if fault is None else [fault]}


def _reading_fault(expect: Sequence[Json], answer: Json) -> str | None:
    if "messages" in answer:
        got = [{key: message.get(key) for key in ("channel", "recipient", "text")} for message in answer["messages"]]
        return None if got == list(expect) else "other messages"
    message = answer["message"]
    thoughts = [m["text"] for m in expect if m["channel"] == "analysis" and m["recipient"] is None]
    made = [m for m in expect if m["recipient"] is not None]
    shown = [m["text"] for m in expect if m["recipient"] is None and m["channel"] != "analysis"]
    if "thinking" in message and (message["thinking"] or "") not in _joined(thoughts):
        return "another thought"
    if "content" in message and (message["content"] or "") not in (*_joined(shown), *_joined(shown[-1:])):
        return "another text"
    calls = message.get("tool_calls") or []
    if [(_name(m["recipient"]), _value(m["text"])) for m in made] != [
        (_name(call["name"]), _value(call["arguments"])) for call in calls
    ]:
        return "another call"
    return None


def _joined(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(separator.join(texts) for separator in ("", "\n", "\n\n"))


def _name(recipient: str) -> str:
    return recipient.removeprefix("functions.")


def _value(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def score(case: Json, answer: Json, suite: Suite) -> Json:
    """One case: `outcome` (scored, unsupported, error) and what was found."""
    if "unsupported" in answer:
        return {"outcome": "unsupported", "faults": [answer["unsupported"]]}
    if "error" in answer:
        return {"outcome": "error", "faults": [answer["error"]]}
    try:
        found = score_completion(case, answer) if "valid" in case else score_training(case, answer["examples"], suite)
    except (KeyError, TypeError, IndexError) as error:
        return {"outcome": "error", "faults": [f"an answer of another form: {error!r}"]}
    return {"outcome": "scored", **found}


def passes(case: Json, found: Json, reference: str, mild: bool = False, exact: bool = False) -> bool | None:
    """Whether a scored case passes under a reference; None where it cannot be said (unsupported, or no prompt of the
    reference). mild: the mild mask. exact: equivalent prompts do not count."""
    if found["outcome"] == "unsupported":
        return None
    if found["outcome"] == "error":
        return False
    if "valid" in case:
        return found["right"]
    prompt = found["prompts"].get(reference)
    if prompt is None:
        return None
    good = found["target"] and found["mask"] in (("strict", "mild") if mild else ("strict",))
    return bool(good and prompt in (("exact",) if exact else ("exact", "equivalent")))


def score_all(answers: Mapping[str, Json], suite: Suite, cases: Iterable[str] | None = None) -> dict[str, Json]:
    """Every case of the suite (or those named): one that was not answered is an error."""
    missing = {"error": "no answer"}
    return {
        name: score(suite.cases[name], answers.get(name, missing), suite)
        for name in (suite.cases if cases is None else cases)
    }


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python score.py ANSWERS.jsonl", file=sys.stderr)
        return 2
    suite = Suite(Path(__file__).parent)
    answers = [json.loads(line) for line in Path(arguments[0]).read_text("utf-8").splitlines() if line.strip()]
    found = score_all({answer["id"]: answer for answer in answers if "id" in answer}, suite)
    for name, result in found.items():
        print(json.dumps({"id": name, **result}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
