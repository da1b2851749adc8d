"""Counterpoint inside inspect_ai: tasks of inspect's own, on a scripted engine and on a random tiny model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ResponseSchema,
    get_model,
    get_model_info,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, system_message, use_tools
from inspect_ai.tool import ToolCall, ToolInfo, tool
from inspect_ai.util import JSONSchema

from counterpoint.configs.errors import DataError
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import RETURN, load_vocabulary
from counterpoint.train.evals.inspect_messages import METADATA, conversation_of, effort_of
from counterpoint.train.evals.inspect_provider import answer, channels
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.scripted import ScriptedEngine

VOCABULARY = load_vocabulary()
THINK = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
CALL = THINK + '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"x":2,"y":3}<|call|>'


def final(text: str) -> str:
    return f"{THINK}<|channel|>final<|message|>{text}<|return|>"


@tool
def add() -> Any:
    async def execute(x: int, y: int) -> str:
        """Add two numbers.

        Args:
            x: First number.
            y: Second number.
        """
        return str(x + y)

    return execute


def evaluate(tmp_path: Path, answers: Sequence[str], task: Task, **options: Any) -> tuple[EvalLog, ScriptedEngine]:
    engine = ScriptedEngine(VOCABULARY, answers)
    model = get_model("counterpoint/scripted", engine=engine, memoize=False)
    (log,) = eval(task, model=model, display="none", log_dir=str(tmp_path), **options)
    assert log.status == "success", log.error
    return log, engine


def metrics(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    return {f"{s.name} {name}": metric.value for s in log.results.scores for name, metric in s.metrics.items()}


def test_channels_are_kept(tmp_path: Path) -> None:
    task = Task(
        dataset=[Sample(input="2+3?", target="5"), Sample(input="2+2?", target="4")],
        solver=[system_message("Be brief."), generate()],
        scorer=[includes(), channels(), answer("number")],
    )
    log, engine = evaluate(tmp_path, [final("It is 5.")], task, reasoning_effort="high")
    assert metrics(log) == {
        "includes accuracy": 0.5, "includes stderr": 0.5, "correct mean": 1, "correct stderr": 0,
        "with_analysis mean": 1, "with_analysis stderr": 0, "finished mean": 1, "finished stderr": 0,
        "answer accuracy": 0.5, "answer stderr": 0.5,
    }  # fmt: skip
    prompt = VOCABULARY.decode(engine.asked[0][0])
    assert "Reasoning: high" in prompt
    assert "# Instructions\n\nBe brief." in prompt
    assert prompt.endswith("<|end|><|start|>assistant")
    assert log.samples is not None
    output = log.samples[0].output
    reasoning, text = output.message.content
    assert isinstance(reasoning, ContentReasoning)
    assert isinstance(text, ContentText)
    assert (reasoning.reasoning, text.text, output.stop_reason, output.completion) == (
        "Hm.",
        "It is 5.",
        "stop",
        "It is 5.",
    )
    told = read_eval_log(log.location).samples[0].output.metadata[METADATA]  # type: ignore[index]
    assert told["text"] == final("It is 5.")
    assert told["ids"][-1] == RETURN
    assert (told["effort"], told["violations"]) == ("high", [])
    assert output.usage is not None
    assert (output.usage.reasoning_tokens, output.usage.output_tokens) == (2, len(told["ids"]))


def test_a_provider_that_is_asked_for_its_name_alone_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """inspect makes a second one for the model's information: it would hold another copy of the weights."""
    loads: list[object] = []
    monkeypatch.setattr("counterpoint.train.checkpoints.find.open_checkpoint", lambda *a: loads.append(a))
    model = get_model("counterpoint/tiny", memoize=False)
    assert (get_model_info("counterpoint/tiny"), model.name, loads) == (None, "tiny", [])


def test_a_tool_is_called_and_its_result_read(tmp_path: Path) -> None:
    task = Task(
        dataset=[Sample(input="Add 2 and 3.", target="5")],
        solver=[use_tools(add()), generate()],
        scorer=[includes(), channels()],
    )
    log, engine = evaluate(tmp_path, [CALL, final("5")], task)
    assert metrics(log)["includes accuracy"] == 1
    assert metrics(log)["correct mean"] == 1
    (first,), (second,) = engine.asked
    assert "type add = (_:" in VOCABULARY.decode(first)
    assert second[: len(first)] == first
    assert VOCABULARY.decode(second[len(first) :]) == (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.add<|channel|>"
        'commentary json<|message|>{"x":2,"y":3}<|call|>'
        "<|start|>functions.add<|channel|>commentary to=assistant<|message|>5<|end|><|start|>assistant"
    )


@pytest.mark.parametrize(
    ("said", "stop", "code"),
    [
        ("<|channel|>analysis<|message|>The answer is 5, so", "max_tokens", "truncated"),
        (THINK + "<|channel|>commentary<|message|>5<|end|>", "max_tokens", "truncated"),
        (final("5") + "<|end|>", "stop", None),
        (
            "<|channel|>final<|message|>4<|end|><|start|>assistant<|channel|>final<|message|>5<|return|>",
            "stop",
            "second_final",
        ),
        ("<|message|>5<|return|>", "stop", "no_channel"),
    ],
)
def test_only_a_finished_final_is_an_answer(tmp_path: Path, said: str, stop: str, code: str | None) -> None:
    task = Task(dataset=[Sample(input="2+3?", target="5")], solver=generate(), scorer=[includes(), channels()])
    log, _ = evaluate(tmp_path, [said], task)
    assert log.samples is not None
    assert log.samples[0].output.stop_reason in (stop, "unknown")
    assert metrics(log)["includes accuracy"] == (0 if code else 1)
    assert metrics(log)["correct mean"] == (0 if code else 1)
    if code:
        assert log.samples[0].scores is not None
        assert code in str(log.samples[0].scores["channels"].explanation)


def test_broken_arguments_are_told_to_the_task(tmp_path: Path) -> None:
    broken = CALL.replace('{"x":2,"y":3}', "x=2")
    task = Task(dataset=[Sample(input="Add.", target="5")], solver=[use_tools(add()), generate()], scorer=channels())
    log, engine = evaluate(tmp_path, [broken, final("5")], task)
    assert "not a JSON object" in VOCABULARY.decode(engine.asked[1][0])
    assert metrics(log)["correct mean"] == 0


@pytest.mark.slow
def test_epochs_draw_different_samples_and_the_same_ones_again(tmp_path: Path) -> None:
    def said(prompt: list[int], seed: int) -> str:
        return final(str(seed))

    task = Task(dataset=[Sample(input="Say.", target="x")], solver=generate(), scorer=channels(), epochs=4)
    found = []
    for n in range(2):
        model = get_model("counterpoint/s", engine=ScriptedEngine(VOCABULARY, said), memoize=False)
        (log,) = eval(task, model=model, display="none", log_dir=str(tmp_path / str(n)))
        assert log.samples is not None
        found.append({sample.output.completion for sample in log.samples})
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_a_checkpoint_by_its_folder(tmp_path: Path) -> None:
    loaded = random_tiny(seed=2)
    loaded.model.save_pretrained(str(tmp_path / "model"))
    loaded.vocabulary_map.save(tmp_path / "model")
    task = Task(
        dataset=[Sample(input=f"{n}?", target="x") for n in range(3)],
        solver=generate(),
        scorer=[channels(), answer("exact")],
    )
    (log,) = eval(
        task,
        model=f"counterpoint/{tmp_path}/model",
        model_args={"device": "cpu", "batch": 2},
        display="none",
        log_dir=str(tmp_path / "logs"),
        max_tokens=9,
        temperature=0,
    )
    assert log.status == "success", log.error
    assert log.samples is not None
    assert all(len(sample.output.metadata[METADATA]["ids"]) <= 9 for sample in log.samples)  # type: ignore[index]
    assert metrics(log)["answer accuracy"] == 0


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate

@task
def sums():
    return Task(dataset=[Sample(input=f"{n} + 1?", target=str(n + 1)) for n in range(3)], solver=generate(), scorer=match())
"""


@pytest.mark.slow
def test_inspect_s_own_command_finds_the_provider(tmp_path: Path) -> None:
    loaded = random_tiny(seed=2)
    loaded.model.save_pretrained(str(tmp_path / "model"))
    loaded.vocabulary_map.save(tmp_path / "model")
    (tmp_path / "sums.py").write_text(TASK)
    command = [str(Path(sys.executable).with_name("inspect")), "eval", "sums.py", "--model", "counterpoint/model"]
    command += ["-M", "effort=high", "-M", "device=cpu", "--max-tokens", "7", "--log-dir", "logs", "--display", "plain"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    [place] = (tmp_path / "logs").glob("*.eval")
    log = read_eval_log(str(place))
    assert log.status == "success"
    assert log.samples is not None
    turns = [sample.output.metadata[METADATA] for sample in log.samples]  # type: ignore[index]
    assert [turn["effort"] for turn in turns] == ["high"] * 3
    assert all(len(turn["ids"]) <= 7 and turn["text"] for turn in turns)


def test_a_wrong_model_argument_is_told() -> None:
    with pytest.raises(TypeError, match="-M efort"):
        get_model("counterpoint/x", efort="low", engine=ScriptedEngine(VOCABULARY, [""]), memoize=False)


def prompt_of(messages: list[Any], **options: Any) -> str:
    conversation = conversation_of(messages, options.pop("tools", []), VOCABULARY, **options)
    return VOCABULARY.decode(Renderer(VOCABULARY).prompt(conversation))


def test_a_history_from_elsewhere_is_written_as_the_server_writes_it() -> None:
    call = ToolCall(id="1", function="add", arguments={"x": 1})
    text = prompt_of(
        [
            ChatMessageSystem(content="One."),
            ChatMessageUser(content="a"),
            ChatMessageAssistant(content=[ContentReasoning(reasoning="dropped"), ContentText(text="b")]),
            ChatMessageSystem(content="Two."),
            ChatMessageUser(content="c"),
            ChatMessageAssistant(
                content=[ContentReasoning(reasoning="kept"), ContentText(text="d")], tool_calls=[call]
            ),
            ChatMessageTool(content="7", tool_call_id="1", function="add"),
        ]
    )
    assert text.endswith(
        "<|start|>developer<|message|># Instructions\n\nOne.<|end|><|start|>user<|message|>a<|end|>"
        "<|start|>assistant<|channel|>final<|message|>b<|end|>"
        "<|start|>developer<|message|># Instructions\n\nTwo.<|end|><|start|>user<|message|>c<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>d<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>kept<|end|>"
        '<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{"x": 1}<|call|>'
        "<|start|>functions.add<|channel|>commentary to=assistant<|message|>7<|end|><|start|>assistant"
    )


def test_schemas_efforts_and_images() -> None:
    schema = ResponseSchema(
        name="out", json_schema=JSONSchema(type="object", properties={"a": JSONSchema(type="integer")})
    )
    text = prompt_of(
        [ChatMessageUser(content="a")], response_schema=schema, tools=[ToolInfo(name="f", description="F.")]
    )
    assert "# Response Formats" not in text
    assert "type f = () => any;" in text
    assert [effort_of(GenerateConfig(reasoning_effort=e), "medium") for e in ("minimal", "xhigh", None)] == [  # type: ignore[arg-type]
        "low", "high", "medium",
    ]  # fmt: skip
    with pytest.raises(DataError, match="image"):
        prompt_of([ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])])
