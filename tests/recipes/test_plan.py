"""counterpoint plan: figures of a run file before anything is loaded, checked against what a run then does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs import builtin
from counterpoint.configs.load import load_run
from counterpoint.recipes import cli

TRAINING = [name for name in builtin.names() if load_run(name).recipe in ("sft", "dpo", "grpo")]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


NAMED = re.compile(r"(one|eight) GPUs? of (\d+) GB")
GPUS = {"one": 1, "eight": 8}


VARIANTS = (
    "_second_stage", "_multi_gpu", "_kto", "_repair", "_vllm", "_servers", "120b_tools", "120b_environment",
    "120b_judge", "_one_gpu",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith(VARIANTS) else ()) for name in TRAINING]
)
def test_every_shipped_run_file_is_planned(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """One that names GPUs, for so many of that size; it fits."""
    run, path = load_run(name), builtin.find(name)
    assert path is not None
    named = NAMED.search(builtin.description(path))
    assert (named is None) == (run.model.name == "tiny")
    on = [] if named is None else ["--device", "cuda", "--memory", named[2]]
    assert cli.main(["plan", name, *on]) == 0
    launch = run.launch  # type: ignore[union-attr]
    serve = getattr(launch, "serve", None)
    served = serve.servers * serve.gpus if serve is not None else 0
    assert named is None or GPUS[named[1]] == launch.processes * launch.nodes + served
    lines = capsys.readouterr().out.splitlines()
    titles = [line[:9].strip() for line in lines if line[:9].strip()]
    full = not run.lora.enabled  # type: ignore[union-attr]
    assert titles == ["model", "full" if full else "lora", "data", "memory", "fits", "disk", "time"]


@pytest.mark.parametrize("name", [name for name in builtin.names() if load_run(name).recipe == "distill"])
def test_every_shipped_run_file_that_distils_is_planned(capsys: pytest.CaptureFixture[str], name: str) -> None:
    run, path = load_run(name), builtin.find(name)
    assert path is not None
    named = NAMED.search(builtin.description(path))
    assert (named is None) == (run.model.name == "tiny")
    on = [] if named is None else ["--device", "cuda", "--memory", named[2]]
    assert cli.main(["plan", name, *on]) == 0
    titles = [line[:9].strip() for line in capsys.readouterr().out.splitlines() if line[:9].strip()]
    assert titles == ["model", "data", "memory", "fits"]


def test_what_samples_for_distillation_is_bounded_by_keys_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    gpu = ("distill/gpt_oss_120b", "--device", "cuda", "--memory", "80")
    code, plan = planned(capsys, *gpu, "distill.batch=10")
    # 36 layers of 8 heads of 64, a half of them with a window of 128; the pool of the others grows by half, and one of
    # them gathers its keys and values and has the scores of 64 heads twice in float32
    columns = 18 * (1024 + 4096) * 3 // 2 + 18 * 128 + (1024 + 4096)
    scores = (1024 + 4096) * 64 * 8
    assert code == 0
    assert plan["memory"]["activations"] == 10 * (2 * columns * 8 * 64 * 2 + scores + 201_088 * 8)
    most = plan["largest_batch"]
    assert planned(capsys, *gpu, f"distill.batch={most}")[0] == 0
    assert planned(capsys, *gpu, f"distill.batch={most + 1}")[0] == 1
    assert cli.main(["plan", *gpu, f"distill.batch={most + 1}"]) == 1
    assert f"no; distill.batch={most} would" in capsys.readouterr().out
    assert cli.main(["plan", "distill/tiny_sums", "--measure"]) == 2
    assert "trains nothing" in capsys.readouterr().err


def test_questions_that_are_there_are_read_for_the_plan_of_distillation(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = planned(capsys, "distill/tiny_sums", "--memory", "1")
    assert code == 0
    assert plan["width"] == 98 + 96
    assert cli.main(["plan", "distill/tiny_sums"]) == 0
    assert "300 questions, the longest of 98 tokens; up to 8 samples each" in capsys.readouterr().out


def test_what_is_planned_is_what_happens(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = [
        "train.steps=2", "train.batch_rows=2", "train.log_every=1", "eval.at_start=false", "eval.base=false",
        "eval.max_new_tokens=2", "tracking.wandb=off", f"output={tmp_path}",
        "data.train={path: 'example:quickstart', rows: 20}",
    ]  # fmt: skip
    code, plan = planned(capsys, "quickstart", *settings)
    assert code == 0
    assert cli.main(["train", "quickstart", *settings]) == 0
    folder = next(tmp_path.iterdir())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = {key: value for line in metrics for key, value in line.items()}
    assert sum(plan["trainable"].values()) == 110_592
    assert plan["steps"] == max(line["step"] for line in metrics) == 2
    assert plan["tokens"] == pytest.approx(numbers["tokens"], rel=0.5)
    checkpoint = folder / "checkpoints" / "step-000002"
    written = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert plan["checkpoint_bytes"] == pytest.approx(written, rel=0.15)


def test_a_packed_copy_of_the_experts_is_counted_where_training_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    _, without = planned(capsys, "sft/gpt_oss_20b_lora")
    _, counted = planned(capsys, "sft/gpt_oss_20b_lora", "train.quantization_aware=mxfp4")
    experts = 24 * 32 * 3 * 2880 * 2880
    assert counted["memory"]["weights"] - without["memory"]["weights"] == experts * 17 // 32


def test_held_out_rows_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "n " * 900}, {"role": "assistant", "content": "n"}]}
    (tmp_path / "valid.jsonl").write_text(f"{json.dumps(long)}\n" * 2)
    settings = ["train.steps=20", "eval.every=5", "data.max_tokens=2000", f"data.valid={tmp_path}/valid.jsonl"]
    _, without = planned(capsys, "quickstart", *settings[:-1])
    _, counted = planned(capsys, "quickstart", *settings)
    assert counted["largest_batch"]["width"] > 900 > without["largest_batch"]["width"]
    assert counted["memory"]["peak"] > without["memory"]["peak"]
    cli.main(["plan", "quickstart", *settings])
    width = counted["largest_batch"]["width"]
    told = f"held-out: 2 rows of {2 * width:,} tokens (the longest {width:,}), measured 5 times: {10 * width:,} tokens"
    assert told in capsys.readouterr().out


def test_a_plan_of_rollouts_counts_the_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "grpo/tiny_teacher", "--json"])
    with_teacher = json.loads(capsys.readouterr().out)["memory"]["other"]
    assert with_teacher == 4 * 305_744  # the tiny model, in float32


def test_rollout_processes_take_main_memory(capsys: pytest.CaptureFixture[str]) -> None:
    served = ("grpo/tiny_sums", "model.name=openai/gpt-oss-20b", "lora.enabled=true", "rollout.engine=server")
    _, synchronous = planned(capsys, *served)
    _, ahead = planned(capsys, *served, "rollout.staleness=2", "launch.processes=2")
    assert (synchronous["host_bytes"], ahead["host_bytes"]) == (0, 2 * 680 << 20)
    cli.main(["plan", *served, "rollout.staleness=2"])
    assert "680.0 MiB of a machine's main memory: the rollout process (rollout.staleness)" in capsys.readouterr().out


def test_a_stated_rate_gives_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    _, plan = planned(capsys, "quickstart", "--tokens-per-second", "1000")
    assert plan["seconds"] == plan["tokens"] / 1000


@pytest.mark.slow
def test_a_measured_rate_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    _, plan = planned(capsys, "quickstart", "data.train={path: 'example:quickstart', rows: 40}", "--measure")
    assert plan["measured"]["tokens_per_second"] > 0
    memory = plan["memory"]
    above = memory["peak"] - memory["weights"] - memory["adapter"]
    assert above == pytest.approx(plan["measured"]["above"], rel=0.15)


def test_what_does_not_fit_is_told_with_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["plan", "sft/gpt_oss_20b_lora", "--memory", "40"])
    out = capsys.readouterr().out
    assert code == 1
    assert "no; model.base=mxfp4 makes it" in out
    assert "my_conversations.jsonl" in out
    code, plan = planned(capsys, "sft/gpt_oss_20b_lora", "--memory", "40")
    assert code == 1
    assert plan["fits"] == {"24 GB": False, "48 GB": False, "80 GB": True, "here": False}
    fixed = [f"{key}={str(value).lower()}" for key, value in plan["changes"]["here"].items()]
    code, plan = planned(capsys, "sft/gpt_oss_20b_lora", "--memory", "40", *fixed)
    assert code == 0


@pytest.mark.parametrize(
    ("rows", "why"), [("", "row: the file holds no rows"), ('{"messages": 3}\n', "row: no format")]
)
def test_data_that_is_there_and_cannot_train_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rows: str, why: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows)
    assert cli.main(["plan", "quickstart", f"data.train={tmp_path / 'rows.jsonl'}"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert (
        f"1 of 1 rows are bad, more than data.bad_rows_limit (5%) allows: {tmp_path}/rows.jsonl:1: {why}"
        in captured.err
    )


def test_data_that_is_not_there_is_planned_at_its_longest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "quickstart", "data.train=nowhere.jsonl", "train.steps=1"]) == 0
    told = capsys.readouterr().out
    assert "not read (nowhere.jsonl: no such file or folder: check the path)" in told
    assert "planned for full rows of 512 tokens" in told


def test_one_step_is_one_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "quickstart", "train.steps=1"]) == 0
    assert "a step: 1 step, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["eval/channels"], "trains nothing"),
        (["sft/gpt_oss_20b_lora", "--measure"], "--measure: only a run of recipe sft whose data is there"),
        (["quickstart", "model.name=some/where/else"], "there is no folder"),
        (["nothing"], "no such run file"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert cli.main(["plan", *arguments]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert told in captured.err
    assert captured.out == ""
