"""Recipes over pairs, ratings and rewards: two processes learn what one learns of the same rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import CLI, TINY_RUN, Forks, wait_for
from json_server import serving
from safetensors.torch import load_file
from sampling_server import SamplingServer

from counterpoint.configs.model_section import ModelSettings
from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint
from counterpoint.train.export.exporter import export
from counterpoint.train.export.layer_files import LayerFiles
from counterpoint.train.export.mxfp4 import How, write_mxfp4
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import load_model

SETTINGS = (
    "model.init=random", "lora.enabled=true", "train.steps=3", "train.device=cpu", "train.log_every=1",
    "train.warmup_steps=0", "train.schedule=constant", "eval.at_start=false", "eval.at_end=false", "tracking.wandb=off",
)  # fmt: skip
REWARD = "def odd(completion, reference):\n    return sum(i % 2 for i in completion.ids) / len(completion.ids)\n"
REWARDS = '[{type: function, function: "reward.py:odd"}]'
SHORT = ("rollout.completion_tokens=10", "rollout.action_tokens=10", f"rewards={REWARDS}")
PROMPTS = "data.train={type: file, path: example:sums, size: 16}"
SHARDED = f"{TINY_RUN}:sharded_command"
ROWS = "data.train={path: example:quickstart, rows: 96}"


def run(
    forks: Forks, config: str, folder: Path, rows: int, processes: int, *settings: str, function: str = CLI
) -> Path:
    """Trains by the real command; the run folder."""
    command = ["train", config, *SETTINGS, *settings, f"train.batch_rows={rows}", f"launch.processes={processes}"]
    group = forks.group(function, [*command, f"output={folder.name}"], folder=folder.parent, processes=processes)
    assert wait_for(group) == [0] * processes, "".join(fork.told() for fork in group)
    return next(path.parent for path in folder.glob("*/metrics.jsonl"))


def mxfp4_base(folder: Path) -> Path:
    """The embedded model as an original checkpoint has it, its experts in MXFP4."""
    tiny = load_model("tiny")
    files = LayerFiles(folder, {}, 3)
    write_mxfp4(files, tiny, How("nearest"), lambda _: None)
    files.finish()
    tiny.vocabulary_map.save(folder)
    return folder


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("config", "rows", "settings", "keys"),
    [
        pytest.param(
            "dpo/tiny_format",
            8,
            ("dpo.losses=[sigmoid, sft]", "dpo.loss_weights=[1.0, 0.5]", ROWS),
            ("rewards/margins", "logps/chosen"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "dpo/tiny_rated",
            8,
            ("dpo.losses=kto", ROWS),
            ("rewards/margins", "logps/chosen"),
            marks=pytest.mark.slow,
        ),
        ("grpo/tiny_sums", 32, (*SHORT, PROMPTS), ("reward", "rewards/function/zero_variance", "channel_correct")),
    ],
    ids=["dpo", "kto", "grpo"],
)
def test_two_processes_learn_as_one(
    forks: Forks, tmp_path: Path, config: str, rows: int, settings: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    one = run(forks, config, tmp_path / "one", rows, 1, *settings)
    two = run(forks, config, tmp_path / "two", rows // 2, 2, *settings)
    assert len(steps(one)) == len(steps(two)) == 3
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        assert ours["grad_norm"] > 0
        close = 1e-5 if config.startswith("grpo") else 1e-4
        for key in ("loss", "grad_norm", *keys):
            assert ours[key] == pytest.approx(theirs[key], rel=10 * close, abs=close), key
    first, second = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (one, two))
    assert max(float(tensor.abs().max()) for name, tensor in first.items() if "lora_B" in name) > 1e-3
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-4)
    if config.startswith("grpo"):
        assert (two / "rollouts.jsonl").read_text() == (one / "rollouts.jsonl").read_text()


@pytest.mark.slow
def test_rewards_on_an_mxfp4_base_are_learned_from_in_two_processes_as_in_one(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    settings = (
        f"rewards={REWARDS}", "rollout.completion_tokens=40", "rollout.action_tokens=40", "train.adam_epsilon=1e-4",
        PROMPTS, f"model.name={mxfp4_base(tmp_path / 'base')}", "model.init=pretrained", "model.base=mxfp4",
    )  # fmt: skip
    one = run(forks, "grpo/tiny_sums", tmp_path / "one", 32, 1, *settings)
    two = run(forks, "grpo/tiny_sums", tmp_path / "two", 16, 2, *settings)
    assert (two / "rollouts.jsonl").read_text() == (one / "rollouts.jsonl").read_text()
    assert len(steps(one)) == len(steps(two)) == 3
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        assert ours["grad_norm"] > 0
        for key in ("loss", "grad_norm", "reward", "entropy"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-5), key
    first, second = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (one, two))
    assert max(float(tensor.abs().max()) for name, tensor in first.items() if "experts" in name and "lora_B" in name)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bf16", "mxfp4"])
def test_rewards_are_learned_from_in_sharded_processes_as_in_one(forks: Forks, tmp_path: Path, base: str) -> None:
    """FSDP2: no process has the whole model, and a server samples, which is given the gathered adapter of every step."""
    adapters: list[dict[str, torch.Tensor]] = []

    class Keeping(SamplingServer):
        def load(self, name: str, folder: Path) -> None:
            adapters.append(load_file(folder / "adapter_model.safetensors"))
            super().load(name, folder)

    (tmp_path / "reward.py").write_text(REWARD)
    name = mxfp4_base(tmp_path / "base") if base == "mxfp4" else tiny_folder()
    with serving(Keeping()) as server:
        server.loaded = load_model(ModelSettings(name=str(name), base=base))  # pyright: ignore[reportArgumentType]
        server.model = server.loaded.model
        settings = (
            "rollout.engine=server", f"rollout.server.url={server.url}", f"model.name={name}", PROMPTS,
            f"rewards={REWARDS}", "rollout.action_tokens=60", "rollout.completion_tokens=60", "model.init=pretrained",
            f"model.base={base}", "grpo.row_tokens=400", "rollout.correction=token_truncate", "train.checkpoint_every=2",
        )  # fmt: skip
        one = run(forks, "grpo/tiny_sums", tmp_path / "one", 32, 1, *settings)
        first, adapters[:] = list(adapters), []
        server.forget()
        two = run(
            forks, "grpo/tiny_sums", tmp_path / "two", 16, 2, *settings, "launch.strategy=fsdp2", function=SHARDED
        )
    assert len(steps(one)) == len(steps(two)) == 3
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        assert ours["grad_norm"] > 0
        for key in ("loss", "grad_norm", "reward", "entropy", "sampling/sampling_logp_difference/mean"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key
    assert len(first) == len(adapters) == 3
    for given, wanted in zip(adapters, first, strict=True):
        assert given.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(given[name], tensor, rtol=1e-3, atol=1e-5)
    assert any(bool(tensor.any()) for name, tensor in adapters[-1].items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "settings", "keys"),
    [
        ("quickstart", (), ("loss_final", "loss_analysis")),
        ("dpo/tiny_format", (ROWS, "dpo.beta=0.1", "eval.tasks=[]"), ("rewards/margins", "logps/chosen", "entropy")),
        ("dpo/tiny_rated", (ROWS, "dpo.beta=0.1", "eval.tasks=[]"), ("rewards/margins", "logps/chosen", "kl")),
    ],
    ids=["sft", "dpo", "kto"],
)
def test_all_weights_are_trained_in_shards_as_in_one_process(
    forks: Forks, tmp_path: Path, config: str, settings: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    # A gradient of nothing but rounding is a whole step to Adam; beside an epsilon it is none.
    full = (*settings, "lora.enabled=false", "train.learning_rate=1e-3", "train.adam_epsilon=1e-2")
    one = run(forks, config, tmp_path / "one", 8, 1, *full)
    parts = (*full, "launch.strategy=fsdp2", "train.checkpoint_every=1", "train.keep_checkpoints=3")
    two = run(forks, config, tmp_path / "two", 4, 2, *parts, function=SHARDED)
    assert len(steps(one)) == len(steps(two)) == 3
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        assert ours["grad_norm"] > 0
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-5), key
        for key in keys:  # differences of sums over hundreds of tokens, in float32
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-4), key
    whole, result = (load_file(path / "model" / "model.safetensors") for path in (one, two))
    assert whole.keys() == result.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(result[name], tensor, rtol=0, atol=1e-5)

    last = find_checkpoint(str(two / "checkpoints" / "step-000003"))
    opened = open_checkpoint(last).model.state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in result.items())
    export(last, "bf16", tmp_path / "merged")
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(written[name], tensor.bfloat16()) for name, tensor in result.items())

    told = steps(two)
    shutil.rmtree(two / "checkpoints" / "step-000003")
    shutil.rmtree(two / "model")
    resumed = run(forks, config, tmp_path / "two", 4, 2, *parts, "--resume", function=SHARDED)
    assert resumed == two
    assert steps(two)[-1]["loss"] == told[-1]["loss"]
    again = load_file(two / "model" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in result.items())
