"""`recipe: grpo` through the real command line on a tiny model: deterministic, resumable, verbatim, with tools."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from json_server import serving
from safetensors.torch import load_file
from sampling_server import SamplingServer

from counterpoint.recipes.cli import main
from counterpoint.train.checkpoints.save import checkpoint_name
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.sampling.vllm_resolver import digest_of

# A random model that is rewarded by its tokens: something to learn from the first step on.
REWARD = """
def many_high_ids(completion, reference):
    return sum(i % 2 for i in completion.ids) / max(1, len(completion.ids))
"""
RUN = """
recipe: grpo
extends: grpo/tiny_sums
model: {init: random}
output: .
rollout: {action_tokens: 10, completion_tokens: 10}
rewards:
  - {type: function, function: "reward.py:many_high_ids", name: odd}
  - {type: channel, weight: 0.5}
grpo: {group: 4}
train: {steps: 3, batch_rows: 4, accumulation: 2, checkpoint_every: 1}
eval: {at_start: false, at_end: false, samples: 1, max_new_tokens: 2, efforts: low}
tracking: {wandb: "off"}
"""
TIMELESS = ("loss", "grad_norm", "reward", "rewards/odd/mean", "rewards/odd/zero_variance", "channel_correct")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)


def train(*settings: str, code: int = 0) -> Path:
    """code 1: a run that learned nothing, whose folder is there all the same."""
    before = set(Path().iterdir())
    assert main(["train", "run.yaml", *settings]) == code
    return next(path for path in Path().iterdir() if path not in before and (path / "metrics.jsonl").is_file())


def curve(run: Path, *keys: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line["step"], *(line[key] for key in keys or TIMELESS)] for line in lines if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next(run.glob("*/*model.safetensors")))


def test_the_same_seed_gives_the_same_run_and_a_resume_goes_on_alike() -> None:
    first, second, other = train("name=a"), train("name=b"), train("name=c", "seed=1")
    assert curve(first) == curve(second) != curve(other)
    assert [line[0] for line in curve(first)] == [1, 2, 3]
    assert any(line[2] > 0 for line in curve(first)), "no gradient"
    end = weights(first)
    assert all(bool((end[name] == tensor).all()) for name, tensor in weights(second).items())

    rolled = [json.loads(line) for line in (first / "rollouts.jsonl").read_text().splitlines()]
    assert len(rolled) == 3 * 8
    assert [row["id"] for row in rolled[:4]] == [rolled[0]["id"]] * 4

    shutil.rmtree(first / "checkpoints" / checkpoint_name(3))
    shutil.rmtree(first / "model")
    assert main(["train", str(first / "config.yaml"), "--resume", str(first)]) == 0
    assert curve(first) == curve(second)
    again = [json.loads(line) for line in (first / "rollouts.jsonl").read_text().splitlines()]
    assert again == rolled, "what was sampled again is there once"
    assert all(bool((end[name] == tensor).all()) for name, tensor in weights(first).items())


@pytest.mark.slow
@pytest.mark.parametrize("more", [("grpo.epsilon=0.01",), ("lora.enabled=true", "grpo.beta=0.1", "grpo.oversample=2")])
def test_a_run_goes_on_in_the_middle_of_its_steps_on_the_same_rollouts(more: tuple[str, ...]) -> None:
    settings = ("grpo.iterations=2", "train.steps=4", "train.keep_checkpoints=9", *more)
    run = train(*settings)
    before, end = curve(run, "loss", "grad_norm"), weights(run)
    assert any(line[2] > 0 for line in before), "no gradient"
    rolled = (run / "rollouts.jsonl").read_text()
    for step in (2, 3, 4):
        shutil.rmtree(run / "checkpoints" / checkpoint_name(step))
    shutil.rmtree(next(run.glob("*/*model.safetensors")).parent)
    assert (run / "checkpoints" / checkpoint_name(1) / "rollouts_0.safetensors").is_file()
    assert main(["train", str(run / "config.yaml"), "--resume", str(run)]) == 0
    assert curve(run, "loss", "grad_norm") == before
    assert (run / "rollouts.jsonl").read_text() == rolled
    assert all(bool((end[name] == tensor).all()) for name, tensor in weights(run).items())


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "cispo"])
def test_loss_variants_with_an_adapter_and_groups_at_each_effort(loss: str) -> None:
    run = train(f"grpo.loss={loss}", "grpo.efforts=[low, high]", "lora.enabled=true", "grpo.beta=0.01", "train.steps=1")
    rolled = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert [row["effort"] for row in rolled[:4]] == [rolled[0]["effort"]] * 4
    assert not any(".ref." in name for name in weights(run))


def test_a_step_without_a_lesson_does_not_stop_a_run_with_an_adapter() -> None:
    run = train("lora.enabled=true", "rewards=[{type: json}]", "train.steps=2", code=1)
    assert [line[1:3] for line in curve(run, "loss", "grad_norm")] == [[0, 0]] * 2
    untouched = [tensor for name, tensor in weights(run).items() if "lora_B" in name]
    assert untouched
    assert not any(bool(tensor.any()) for tensor in untouched)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ('return reference["no_such_key"]', "raised"),
        ('return float("nan")', "ValueError: a reward of nan: return a finite number"),
    ],
)
def test_a_reward_that_fails_ends_the_run_in_its_first_step(
    code: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.py").write_text(f"def reward(completion, reference):\n    {code}\n")
    rewards = "rewards=[{type: function, function: 'bad.py:reward'}, {type: channel}]"
    assert main(["train", "run.yaml", "train.steps=2", rewards]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("step 1: reward function failed in its first step (8 of 8 rollouts): ")
    assert ("TypeError: 'Reference' object is not subscriptable" if told == "raised" else told) in err
    assert err.count("\n") == 1
    assert "step 1: reward function failed and makes its rollout invalid: 8 of 8, the first: " in out
    assert "\nTraceback (most recent call last):\n" in out
    assert told != "raised" or 'bad.py", line 2, in reward\n' in out


def test_a_reward_that_fails_later_leaves_its_rollout_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.py").write_text(
        "calls = 0\n\ndef reward(rollout):\n    global calls\n    calls += 1\n"
        "    if calls == 10:\n        raise KeyError('once')\n    return 100 + len(rollout.row) + calls % 3\n"
    )
    rewards = "rewards=[{type: function, function: 'bad.py:reward', workers: 1}]"
    run = train("train.steps=2", rewards)
    out = capsys.readouterr().out
    told = "warning: step 2: reward function failed and makes its rollout invalid: 1 of 8, the first: KeyError: 'once'"
    assert told in out
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert [row["invalid"].partition("\n")[0] for row in rows if "invalid" in row] == [
        "reward function: KeyError: 'once'"
    ]
    (first, second) = curve(run, "reward", "invalid")
    assert first[1] > 100, "not clamped"
    paid = [row["rewards"]["function"] for row in rows if row["step"] == 1 and "invalid" not in row]
    assert (len(paid), second[2]) == (7, 1 / 8)
    assert second[1] == pytest.approx(sum(paid) / 7), "the mean of what is valid"


def test_rewards_that_teach_nothing_are_told_and_end_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.py").write_text("def reward(completion, reference):\n    return 1.0\n")
    rewards = "rewards=[{type: function, function: 'bad.py:reward'}]"
    assert main(["train", "run.yaml", "train.steps=2", rewards]) == 1
    out, err = capsys.readouterr()
    assert (
        "the gradient was 0 in the last 2 steps at a rate above 0: nothing was learned; the rewards of no group" in err
    )
    assert "next  " not in out
    assert main(["train", "run.yaml", "train.steps=9", "train.no_learning_steps=3", rewards, "name=b"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("step 3: the gradient was 0 in the last 3 steps at a rate above 0: nothing is learned; ")


def test_a_run_that_no_longer_learns_ends_with_what_it_learned(capsys: pytest.CaptureFixture[str]) -> None:
    Path("solved.py").write_text(
        "calls = 0\n\ndef reward(completion, reference):\n    global calls\n    calls += 1\n"
        "    return float(calls % 2) if calls <= 8 else 1.0\n"
    )
    rewards = "rewards=[{type: function, function: 'solved.py:reward', workers: 1}]"
    steps = ("train.steps=9", "train.no_learning_steps=3", "train.checkpoint_every=null")
    assert main(["train", "run.yaml", *steps, rewards]) == 1
    err = capsys.readouterr().err
    assert "step 4: the gradient was 0 in the last 3 steps at a rate above 0: nothing more is learned; " in err
    (run,) = Path().glob("run-*")
    assert f"there is a checkpoint, `counterpoint train --resume {run} " in err
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == [checkpoint_name(4)]


def test_held_out_prompts_are_rewarded_and_do_not_change_the_run() -> None:
    off = ("train.steps=2", "eval.every=1")
    plain = curve(train(*off))
    tasks = "data.valid=[{type: arithmetic, size: 3, seed: 9}, {type: arithmetic, size: 2, seed: 5, name: more}]"
    run = train(*off, tasks, "name=held")
    assert curve(run) == plain
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = {line["step"]: line for line in lines if "valid_reward" in line}
    assert list(held_out) == [1, 2]
    last = held_out[2]
    assert last["valid_reward"] == pytest.approx(last["valid_rewards/odd"] + 0.5 * last["valid_rewards/channel"])
    assert last["valid_reward"] == pytest.approx(
        (3 * last["valid_arithmetic_reward"] + 2 * last["valid_more_reward"]) / 5
    )
    assert "held-out: 5 prompts" in (run / "log.txt").read_text()


@pytest.mark.slow
def test_the_best_step_by_the_figure_of_a_single_task_or_reward() -> None:
    """A task and a reward with names have figures of their own, also where there is one of each."""
    task = "data.valid={type: arithmetic, size: 2, seed: 5, name: sums}"
    for figure in ("valid_sums_reward", "valid_rewards/odd"):
        run = train("train.steps=2", "eval.every=1", task, f"train.keep_best={figure}", f"name={figure[6:10]}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        measured = {line["step"]: line[figure] for line in lines if figure in line}
        assert list(measured) == [1, 2]
        best = max(measured, key=lambda step: (measured[step], -step))
        assert json.loads((run / "run.json").read_text())["result_step"] == best
        assert f"best        step {best} of 2: {figure}" in (run / "log.txt").read_text()
    assert main(["train", "run.yaml", "eval.every=1", task, "train.keep_best=valid_other_reward"]) == 2


@pytest.mark.parametrize("name", ["samples: 2", "temperature: 0.5", "max_new_tokens: 9", "efforts: [low]"])
def test_a_task_s_own_sampling_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.yaml", f"data.train=[{{type: arithmetic, {name}}}]"]) == 2
    assert f"`{name.partition(':')[0]}` of a task is for evaluations" in capsys.readouterr().err


def test_settings_that_cannot_be_are_told_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.yaml", "grpo.group=3"]) == 2
    assert "does not hold whole groups of `grpo.group` (3)" in capsys.readouterr().err
    assert main(["train", "run.yaml", "launch.processes=2", "launch.strategy=fsdp2"]) == 2
    assert "has no process with the whole model" in capsys.readouterr().err
    assert main(["train", "run.yaml", "grpo.beta=0.1"]) == 2
    assert main(["train", "run.yaml", "tools.functions=reward.py:missing"]) == 2
    assert "has no attribute 'missing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ('{type: function, function: "nofile.py:f"}', "reward function: .*nofile.py"),
        ('{type: function, function: "reward.py:nothing"}', "reward function: .*nothing"),
        ("{type: function, function: number}", "write module:function or file.py:function"),
        ("{type: answer, scorer: numbr}", "scorer `numbr` is unknown"),
        ("{type: answer, scorer: schema}", "reward answer: no row has a truth for it"),
    ],
)
def test_a_reward_that_can_judge_nothing_is_told_before_the_model_loads(
    capsys: pytest.CaptureFixture[str], reward: str, told: str
) -> None:
    assert main(["train", "run.yaml", f"rewards=[{reward}]"]) == 2
    out, err = capsys.readouterr()
    assert re.search(told, err)
    assert len(err.splitlines()) == 1
    assert "parameters train" not in out


def test_turns_without_a_truth_are_counted_and_earn_nothing() -> None:
    rows = [{"prompt": "1 + 1?", "answer": 2, "follow_ups": ["Thanks."]}, {"prompt": "2 + 2?", "answer": 4}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train("data.train=[{type: file, path: rows.jsonl}]", "rewards=[{type: answer}, {type: channel}]", code=1)
    log = (run / "log.txt").read_text()
    assert "reward answer: 1 of 3 turns have no truth for it and earn nothing there, the first: rows.jsonl:1" in log
    rolled = list(map(json.loads, (run / "rollouts.jsonl").open()))
    assert {row["turn"] for row in rolled if "turn" in row} <= {0, 1}
    early = [row for row in rolled if row.get("turn", 0) < row.get("of_turn", 0)]
    assert early, "a random model ends no turn with a final"
    assert f"rollouts that ended before the turn they were for: {len(early)} of {len(rolled)}" in log or len(early) > 1


def test_kinds_of_failed_rollouts_are_told_at_first_sight() -> None:
    run = train("train.steps=2", "grpo.efforts=[low, high]", "train.batch_rows=8", "rewards=[{type: length, budgets: {low: [0, 9]}}, {type: function, function: 'reward.py:many_high_ids'}]")  # fmt: skip
    log = (run / "log.txt").read_text()
    stops = [json.loads(line)["stop"] for line in (run / "rollouts.jsonl").read_text().splitlines()]
    for stop, told in (
        ("length", "rollouts cut for their length"),
        ("malformed", "rollouts that broke the format"),
        ("calls", "rollouts with a call, which nothing runs (section tools)"),
    ):
        assert log.count(f"{told}: ") == (stop in stops), (stop, stops)
    assert "length" in stops
    assert re.search(
        r"reward length: \d+ of \d+ turns at their effort earn nothing, since `budgets` has none for it", log
    )


@pytest.mark.parametrize("name", ["grpo/tiny_calculator", "grpo/tiny_effort"])
def test_the_other_run_files_take_a_step(name: str) -> None:
    small = ("model.init=random", "output=.", "train.steps=1", "train.batch_rows=16", "rollout.action_tokens=6")
    quiet = ("eval.at_start=false", "eval.at_end=false", "tracking.wandb=off")
    # Random weights earn nothing in one step, so there was nothing to learn from.
    assert main(["train", name, *small, *quiet]) == 1
    (run,) = Path().glob("tiny_*")
    rolled = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(rolled) == 16
    if name == "grpo/tiny_calculator":
        assert set(rolled[0]["rewards"]) == {"answer", "calls", "channel"}


def test_a_teacher_alone_teaches_and_a_resume_goes_on_alike() -> None:
    small = ("model.init=random", "output=.", "train.steps=3", "train.batch_rows=8", "rollout.action_tokens=6")
    quiet = ("eval.at_start=false", "eval.at_end=false", "tracking.wandb=off", "train.checkpoint_every=1")
    assert main(["train", "grpo/tiny_teacher", *small, *quiet]) == 0
    (run,) = Path().glob("tiny_teacher-*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["teacher/reverse_kl"] for line in lines if "loss" in line]
    assert len(gaps) == 3
    assert gaps[0] > 1, "a random model is far from its teacher"
    end = weights(run)
    shutil.rmtree(run / "checkpoints" / checkpoint_name(3))
    shutil.rmtree(run / "model")
    assert main(["train", str(run / "config.yaml"), "--resume", str(run)]) == 0
    assert all(bool((end[name] == tensor).all()) for name, tensor in weights(run).items())


@pytest.fixture
def server() -> Iterator[SamplingServer]:
    with serving(SamplingServer()) as made:
        yield made


SERVED = (
    f"model={{name: '{tiny_folder()}'}}", "lora.enabled=true", "lora.rank=4", "rollout.engine=server",
    "rollout.action_tokens=12", "rollout.completion_tokens=12", "train.learning_rate=0.01", "rollout.temperature=2",
)  # fmt: skip


def test_rollouts_by_a_server_that_is_given_every_step_s_adapter(server: SamplingServer) -> None:
    run = train(*SERVED, f"rollout.server.url={server.url}", "rollout.correction=token_truncate")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-4 for line in steps), "the server has the weights"
    assert all(line["sampling/capped"] == 0 for line in steps)
    rolled = [body for body in server.asked if "logprobs" in body]
    assert {body["model"] for body in rolled} == set(server.loads)
    run8 = hashlib.sha256(run.name.encode()).hexdigest()[:8]
    assert [name.rpartition("-")[0] for name in server.loads] == [f"counterpoint-{run8}-{n}" for n in range(3)]
    assert (list(server.names), server.unloads) == (server.loads[2:], server.loads[:2])
    kept = {path.name: f"counterpoint-{run8}-{path.name[-1]}-{digest_of(path)}" for path in (run / "engine").iterdir()}
    assert kept == {"adapter-1": server.loads[1], "adapter-2": server.loads[2]}, "files stay one version longer"


@pytest.mark.slow
def test_a_run_without_servers_ends_with_a_checkpoint_and_goes_on_from_it(
    server: SamplingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*SERVED, f"rollout.server.url={server.url}", "rollout.server.wait=0.2", "rollout.server.retries=0")
    whole = train(*settings, "name=whole")
    server.dies_after = sum("logprobs" in body for body in server.asked) // 3 + 3
    server.asked.clear()
    assert main(["train", "run.yaml", *settings, "name=cut", "train.checkpoint_every=9"]) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"no server is left, for 0\.2 s .*there is a checkpoint of step 1, `counterpoint train .*--resume", said
    )
    cut = next(Path().glob("cut-*"))
    assert json.loads((cut / "run.json").read_text())["step"] == 1
    assert [path.name for path in (cut / "checkpoints").iterdir()] == [checkpoint_name(1)]
    server.dies_after = None
    assert main(["train", "run.yaml", *settings, "name=cut", "train.checkpoint_every=9", "--resume"]) == 0
    assert curve(cut) == curve(whole)


@pytest.mark.slow
def test_rollouts_ahead_of_the_step_are_sampled_by_older_weights(server: SamplingServer) -> None:
    ahead = (*SERVED, f"rollout.server.url={server.url}", "rollout.staleness=2", "train.steps=5")
    run = train(*ahead, "rollout.correction=token_truncate", "train.checkpoint_every=2", "name=whole")
    steps = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert [line["rollouts/age/max"] for line in steps] == [0, 1, 2, 2, 2]
    differs = [line["sampling/sampling_logp_difference/mean"] for line in steps]
    assert differs[0] < 1e-4 < differs[2], "the first step is sampled by its own weights"
    run8 = hashlib.sha256(run.name.encode()).hexdigest()[:8]
    rolled = [body["model"].rpartition("-")[0] for body in server.asked if "logprobs" in body]
    assert set(rolled) == {f"counterpoint-{run8}-{n}" for n in range(3)}, "of steps 0 to 4, sampled two steps before"
    assert not list((run / "journal").glob("*"))
    newest = run / "checkpoints" / checkpoint_name(4)
    assert {path.name for path in (newest / "adapters").iterdir()} == {"2", "3"}
    shutil.rmtree(run / "checkpoints" / checkpoint_name(5))
    shutil.rmtree(run / "adapter")
    end = curve(run)
    assert main(["train", str(run / "config.yaml"), "--resume", str(run)]) == 0
    assert curve(run) == end
