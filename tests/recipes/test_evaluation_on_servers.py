"""Evaluations inside of a run that has servers: sampled there, as the model in memory would, through the command line."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import CLI, TINY_RUN, Forks, wait_for
from json_server import serving
from peft import PeftModel
from sampling_server import SamplingServer

from counterpoint.configs.load import load_run
from counterpoint.configs.model_section import ModelSettings
from counterpoint.configs.schema import GrpoRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.cli import main
from counterpoint.recipes.steps import evaluation_tasks
from counterpoint.train.checkpoints.save import checkpoint_name
from counterpoint.train.evals.hook import ChannelEval
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import load_model
from counterpoint.train.sampling.server import KEY_VARIABLE
from counterpoint.train.scoring.prompts import load_prompts

SERVER = f"{Path(__file__).parents[1] / 'sampling_server.py'}:main"
RUN = f"""
recipe: grpo
extends: grpo/tiny_sums
model: {{name: '{tiny_folder()}'}}
output: .
lora: {{enabled: true, rank: 4, experts: false}}
data: {{train: {{type: arithmetic, size: 16}}}}
rollout: {{engine: server, action_tokens: 10, completion_tokens: 10}}
rewards: [{{type: function, function: "reward.py:odd"}}]
grpo: {{group: 4}}
train: {{steps: 2, batch_rows: 8, checkpoint_every: 1, learning_rate: 0.02, device: cpu, threads: 1}}
eval:
  every: 1
  prompts: prompts.jsonl
  samples: 2
  efforts: [low, high]
  max_new_tokens: 12
  temperature: 0.8
  top_p: 0.9
  top_k: 40
  min_p: 0.01
  tasks:
    - {{type: arithmetic, size: 3, samples: 1, temperature: 0, max_new_tokens: 8, efforts: [low]}}
    - {{type: arithmetic, name: own, size: 3, samples: 1, temperature: 0.6, top_k: 0, top_p: 0.7, efforts: [low]}}
tracking: {{wandb: "off"}}
"""
REWARD = "def odd(completion, reference):\n    return sum(i % 2 for i in completion.ids) / len(completion.ids)\n"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "run.yaml").write_text(RUN)
    rows = [{"messages": [{"role": "user", "content": f"{n} + 1?"}], "answer": n + 1} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> Iterator[SamplingServer]:
    with serving(SamplingServer()) as made:
        yield made


def train(*settings: str, code: int = 0) -> Path:
    before = set(Path().iterdir())
    assert main(["train", "run.yaml", *settings]) == code
    return next(path for path in Path().iterdir() if path not in before and (path / "metrics.jsonl").is_file())


def evaluated(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Step and who -> every sample."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((run / "eval").glob("step-*.jsonl"))
    }


def in_memory(run: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The same of the model in memory, with the adapters of the run's checkpoints."""
    settings = load_run(run / "config.yaml")
    assert isinstance(settings, GrpoRun)
    base = load_model(ModelSettings(name=str(tiny_folder())))
    _, tasks = evaluation_tasks(settings)
    for step in (1, 2):
        adapted = PeftModel.from_pretrained(base.model, str(run / "checkpoints" / checkpoint_name(step)))
        hook = ChannelEval(
            base.with_model(adapted), Renderer(base.vocabulary, settings.data), load_prompts(settings.eval.prompts),
            settings.eval, folder / "eval", seed=settings.seed, tasks=tasks,
        )  # fmt: skip
        if step == 1:
            assert hook.measure(0, "base") is not None
        assert hook.measure(step, "tuned") is not None
        base = base.with_model(adapted.unload())
    return evaluated(folder)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def of_evaluations(server: SamplingServer) -> list[dict[str, Any]]:
    """Requests for samples without log-probabilities, which rollouts have, and which score no fixed text."""
    return [body for body in server.asked if "logprobs" not in body and "prompt_logprobs" not in body]


def test_an_evaluation_on_a_server_is_that_of_the_model_in_memory(server: SamplingServer, tmp_path: Path) -> None:
    url = f"rollout.server.url={server.url}"
    run = train(url, "name=served")
    found = evaluated(run)
    assert list(found) == ["step-000000-base", "step-000001-tuned", "step-000002-tuned"]
    assert found == in_memory(run, tmp_path / "memory")
    assert [row["ids"] for row in found["step-000001-tuned"]] != [row["ids"] for row in found["step-000002-tuned"]]
    asked = of_evaluations(server)
    versions = [server.loads[1], server.loads[2]]
    assert {body["model"] for body in asked} == {"base", *versions}
    for model in ("base", *versions):
        own = [body for body in asked if body["model"] == model]
        assert len(own) == 3 * 2 * 2 + 3 + 3
        greedy = [body for body in own if body["temperature"] == 0]
        assert {body["max_tokens"] for body in greedy} == {8}
        assert len(greedy) == 3
        names = ("temperature", "max_tokens", "top_p", "top_k", "min_p")
        assert {tuple(body[name] for name in names) for body in own} == {
            (0.8, 12, 0.9, 40, 0.01), (0, 8, 0.9, 40, 0.01), (0.6, 12, 0.7, -1, 0.01)
        }  # fmt: skip
    rolled = [body for body in server.asked if "logprobs" in body]
    assert {(body["top_p"], body["top_k"], body["min_p"]) for body in rolled} == {(1.0, -1, 0.0)}
    points = [json.loads(line) for line in (run / "eval" / "metrics.jsonl").read_text().splitlines()]
    assert [(point["step"], point["who"], point["engine"]) for point in points] == [
        (0, "base", "server"), (1, "tuned", "server"), (2, "tuned", "server")
    ]  # fmt: skip
    assert json.loads((run / "report.json").read_text())["facts"]["engine"] == "server"
    without = train(url, "name=without", "eval.every=null", "eval.at_start=false", "eval.at_end=false")
    assert losses(without) == losses(run), "an evaluation changes no run"


@pytest.mark.slow
def test_counterpoint_serve_samples_an_evaluation(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    port = free_port()
    command = ["serve", str(tiny_folder()), "--enable-lora", "--port", str(port)]
    serve = forks.start(CLI, command, folder=tmp_path, COUNTERPOINT_SERVE_KEY="sesame")
    try:
        serve.until("/v1  model")
        run = train(f"rollout.server.url=http://127.0.0.1:{port}/v1")
    finally:
        serve.send(signal.SIGKILL)
    assert evaluated(run) == in_memory(run, tmp_path / "memory")


@pytest.mark.slow
def test_rollouts_ahead_and_an_evaluation_share_the_servers(server: SamplingServer, tmp_path: Path) -> None:
    """Each with its own version: the evaluation with that of its step, whatever is sampled ahead meanwhile."""
    run = train(f"rollout.server.url={server.url}", "rollout.staleness=1")
    assert evaluated(run) == in_memory(run, tmp_path / "memory")
    rolled = [body["model"].split("-")[2] for body in server.asked if "logprobs" in body]
    assert sorted(rolled) == ["0"] * 16, "both steps are sampled by the first weights"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_server_is_killed_in_an_evaluation(server: SamplingServer, forks: Forks, tmp_path: Path) -> None:
    """Its prompts go to the other, and every sample is as it would have been."""
    port = free_port()
    other = forks.start(SERVER, port, folder=tmp_path)
    settings = (f"rollout.server.url=[{server.url}, 'http://127.0.0.1:{port}/v1']", "rollout.server.parallel=1")
    run = forks.start(CLI, ["train", "run.yaml", *settings, "eval.samples=20"], folder=tmp_path)
    try:
        run.until("counts (2 of 2)")
        until(lambda: len([body for body in of_evaluations(server) if "-1-" in body["model"]]) > 5)
        other.send(signal.SIGKILL)
        assert run.wait() == 0, run.told()
    finally:
        other.send(signal.SIGKILL)
    (folder,) = tmp_path.glob("run-*")
    sent = len([body for body in of_evaluations(server) if "-1-" in body["model"]])
    assert 20 < sent < 3 * 2 * 20 + 6, "both had a share of the evaluation of step 1"
    assert len([line for line in run.told().splitlines() if f"{port}/v1 is out, 1 left" in line]) == 1
    assert evaluated(folder) == in_memory(folder, tmp_path / "memory")


def test_without_a_server_an_evaluation_fails_and_the_run_ends_with_a_checkpoint(
    server: SamplingServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = server.answer

    def answer(body: dict[str, Any]) -> dict[str, Any] | None:
        """Nothing any more from the fifth sample of step 1's evaluation on."""
        if sum("-1-" in each["model"] for each in of_evaluations(server)) > 4:
            raise OSError
        return real(body)

    monkeypatch.setattr(server, "answer", answer)
    train(f"rollout.server.url={server.url}", "rollout.server.wait=0.2", "rollout.server.retries=0", code=1)
    out, err = capsys.readouterr()
    assert re.search(r"the evaluation at step 1 failed \(NoServerError: no server is left, for 0\.2 s", out + err)
    last = err.splitlines()[-1]
    assert re.search(r"no server is left.*there is a checkpoint of step 1, `counterpoint train .*--resume", last), last


def test_a_signal_in_an_evaluation_waits_for_no_request(server: SamplingServer, forks: Forks, tmp_path: Path) -> None:
    command = ["train", "run.yaml", f"rollout.server.url={server.url}", "eval.samples=40"]
    run = forks.start(CLI, command, folder=tmp_path)
    until(lambda: any("-1-" in body["model"] for body in of_evaluations(server)))
    server.working.clear()  # it answers nothing but which models it has
    time.sleep(1)
    began = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.wait() == 143, run.told()
    assert time.monotonic() - began < 30, "a request may take ten minutes"
    server.working.set()
    assert "the evaluation at step 1 is left out: a signal came" in run.told()
    assert "stopped after step 1, with a checkpoint" in run.told()


@pytest.mark.slow
def test_sharded_processes_share_an_evaluation_with_tools(server: SamplingServer, forks: Forks, tmp_path: Path) -> None:
    """FSDP2: no process has the whole model; tasks and tools are evaluated all the same, each process its share."""
    told = {"type": "file", "name": "sums", "path": "prompts.jsonl", "samples": 2}
    command = [
        "train", "run.yaml", f"rollout.server.url={server.url}", "launch.processes=2", "train.batch_rows=4",
        "launch.strategy=fsdp2", "eval.prompts=null", f"eval.tasks=[{json.dumps(told)}, {{type: arithmetic, size: 3}}]",
        "tools.functions=tools.py:add", "eval.max_new_tokens=20",
    ]  # fmt: skip
    (tmp_path / "tools.py").write_text('def add(a: int, b: int) -> int:\n    """The sum."""\n    return a + b\n')
    group = forks.group(f"{TINY_RUN}:sharded_command", command, folder=tmp_path)
    assert wait_for(group) == [0, 0], "".join(fork.told() for fork in group)
    (run,) = tmp_path.glob("run-*")
    found = evaluated(run)
    assert list(found) == ["step-000000-base", "step-000001-tuned", "step-000002-tuned"]
    assert found == in_memory(run, tmp_path / "memory")
    assert {row["task"] for row in found["step-000002-tuned"]} >= {"sums", "arithmetic"}
    assert all("turns" in row for row in found["step-000002-tuned"] if row["task"] == "sums")


def test_a_server_that_names_no_experts_is_refused_before_anything_loads(
    server: SamplingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (f"rollout.server.url={server.url}", "rollout.routes=replay")
    assert main(["train", "run.yaml", *settings]) == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert re.search(r"does not name the experts of its tokens .*--enable-return-routed-experts", err)
    assert "parameters train" not in out
    assert [body for body in server.asked if "logprobs" in body] == []
    server.routes = True
    run = train(*settings, "eval.every=null")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("routes/differing" in line for line in lines)
    assert list(evaluated(run)) == ["step-000000-base", "step-000002-tuned"]
