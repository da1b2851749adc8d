"""The estimate of a step's memory against what torch really allocates in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.configs.model_section import LoraSettings, SupervisedModelSettings
from counterpoint.configs.schema import SftRun, SupervisedTrainSettings
from counterpoint.data.layout.collate import padding
from counterpoint.data.layout.tree import TreeRow
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.model.attention_plan import flash_sequences
from counterpoint.train.plan.estimate import Estimate, changes_to_fit
from counterpoint.train.plan.memory import Batch, flash_scratch
from counterpoint.train.plan.trial_steps import allocated_peak

TINY = {
    "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64,
    "intermediate_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1408,
}  # fmt: skip
MIDDLE = {
    "num_hidden_layers": 2, "num_local_experts": 32, "num_experts_per_tok": 4, "hidden_size": 512,
    "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 201088,
}  # fmt: skip


def run_of(folder: Path, shape: dict[str, int], **train: Any) -> SftRun:
    """A run whose model is only a config.json."""
    GptOssConfig(**shape).save_pretrained(folder)
    model = SupervisedModelSettings(name=str(folder), **train.pop("model", {}))
    lora = train.pop("lora", LoraSettings())
    return SftRun.model_validate(
        {
            "recipe": "sft",
            "model": model,
            "lora": lora,
            "data": {"train": "x.jsonl"},
            "train": SupervisedTrainSettings(**train),
        }
    )


def rows_of(shape: dict[str, int], rows: int, width: int) -> list[TreeRow]:
    random, position = np.random.default_rng(0), np.arange(width, dtype=np.int32)
    source = np.flatnonzero(position[1:] // 64 % 2 == 1).astype(np.int32)
    out = []
    for n in range(rows):
        ids = random.integers(2, shape["vocab_size"], width).astype(np.int32)
        weight, channel = np.ones(len(source), np.float32), np.full(len(source), 3, np.uint8)
        end = np.full(width, width, np.int32)
        out.append(TreeRow(ids, position, end, source, ids[source + 1], weight, channel, (f"{n}#0",), width))
    return out


def measured(tiny_run: Any, folder: Path, run: SftRun, shape: dict[str, int], rows: list[TreeRow]) -> tuple[int, int]:
    """(bytes of the model with its adapter, the most above them in two steps)."""
    torch.manual_seed(0)
    config = GptOssConfig(**shape, router_aux_loss_coef=0.0)
    config._attn_implementation = "eager"
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[run.model.dtype]
    model: Any = GptOssForCausalLM(config).to(dtype)
    if run.lora.enabled:
        model = attach_lora(model, run.lora)
    use_implementations(model, run.model, run.train.activation_checkpointing == "experts")
    if run.train.activation_checkpointing is True:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loop = {"lean_loss": run.model.loss == "lean"}
    count = len(rows) // 2
    trainer = tiny_run.make(folder, model=model, rows=rows, steps=2, batch=count, accumulation=1, every=100, loop=loop)
    trainer._save_checkpoint = lambda *_: None
    size = sum(p.nbytes for p in model.parameters())
    return size, allocated_peak(trainer.train, torch.device("cpu"))


def compare(tiny_run: Any, folder: Path, shape: dict[str, int], rows: int, width: int, **settings: Any) -> None:
    run = run_of(folder, shape, **settings)
    made = rows_of(shape, 2 * rows, width)
    batch = Batch(rows, width, sum(len(row.target_id) for row in made[:rows]))
    estimate = Estimate.of(run, batch, "cpu").memory
    size, above = measured(tiny_run, folder, run, shape, made)
    assert estimate.weights + estimate.adapter == size
    assert estimate.total == pytest.approx(size + above, rel=0.15)
    # On the tiny model the weights are nothing; on the larger one they must not hide an error.
    assert estimate.total - size == pytest.approx(above, rel=0.2)


@pytest.fixture(params=[False, True], ids=["widens", "amx"])
def any_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs that multiply bfloat16 themselves, and those that had better widen it: both, whatever this one does."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: request.param)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"dtype": "float32"}},
        {"model": {"dtype": "float32"}, "activation_checkpointing": True},
        {"model": {"dtype": "float32"}, "activation_checkpointing": "experts"},
        {"model": {"dtype": "float32"}, "lora": LoraSettings(enabled=False)},
        {"model": {"dtype": "float32", "loss": "reference"}},
        {"model": {"dtype": "float32", "attention": "reference"}},
        {"model": {"dtype": "float32", "experts": "reference"}},
    ],
    ids=["plain", "checkpointed", "recomputed", "full", "loss", "attention", "experts"],
)
def test_the_tiny_model(tiny_run: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    compare(tiny_run, tmp_path, TINY, 16, 256, **settings)


@pytest.mark.usefixtures("any_cpu")
@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"dtype": "bfloat16"}},
        {"model": {"dtype": "bfloat16"}, "activation_checkpointing": True},
        {"model": {"dtype": "bfloat16"}, "activation_checkpointing": "experts"},
        {"model": {"dtype": "bfloat16", "norms": "reference"}},
    ],
    ids=["plain", "checkpointed", "recomputed", "norms"],
)
@pytest.mark.slow
def test_the_tiny_model_in_bfloat16(tiny_run: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    compare(tiny_run, tmp_path, TINY, 16, 256, **settings)


@pytest.mark.slow
def test_the_model_of_middle_size(tiny_run: Any, tmp_path: Path) -> None:
    compare(tiny_run, tmp_path, MIDDLE, 1, 2048, model={"dtype": "float32"})


@pytest.mark.slow
@pytest.mark.usefixtures("any_cpu")
@pytest.mark.parametrize("checkpointing", [False, "experts"])
def test_the_model_of_middle_size_in_bfloat16(tiny_run: Any, tmp_path: Path, checkpointing: bool | str) -> None:
    compare(tiny_run, tmp_path, MIDDLE, 1, 2048, model={"dtype": "bfloat16"}, activation_checkpointing=checkpointing)


def released(name: str, **changes: Any) -> SftRun:
    values = {"recipe": "sft", "model": {"name": f"openai/{name}"}, "data": {"train": "x.jsonl"}, **changes}
    return SftRun.model_validate(values)


def test_the_released_models_need_no_download() -> None:
    estimate = Estimate.of(released("gpt-oss-20b"), Batch(1, 8192, 8192), "cuda")
    assert estimate.shape.base == 20_914_757_184
    assert estimate.memory.weights == 2 * 20_914_757_184
    packed = Estimate.of(
        released("gpt-oss-20b", model={"name": "openai/gpt-oss-20b", "base": "mxfp4"}), estimate.batch, "cuda"
    )
    assert packed.memory.weights == pytest.approx(13.7e9, rel=0.01)
    large = Estimate.of(released("gpt-oss-120b"), estimate.batch, "cuda")
    assert large.shape.base == pytest.approx(116.8e9, rel=1e-3)


def test_changes_make_it_fit_and_none_is_superfluous() -> None:
    estimate = Estimate.of(released("gpt-oss-20b"), Batch(4, 8192, 8192), "cuda")
    budget = 24 * 2**30
    assert not estimate.fits(budget)
    changes = changes_to_fit(estimate, budget)
    assert changes
    assert estimate.changed(changes).fits(budget)
    for one in changes:
        if one[0] not in ("train.accumulation", "data.pack_tokens", "launch.strategy"):
            assert not estimate.changed([change for change in changes if change != one]).fits(budget)
    assert changes_to_fit(estimate, 2**30) is None


def test_the_cheapest_of_several_values_is_taken() -> None:
    estimate = Estimate.of(released("gpt-oss-20b"), Batch(1, 8192, 8192), "cuda")
    found = {size: dict(changes_to_fit(estimate, size * 2**30) or []) for size in (24, 32, 60)}
    assert found[60] == {"train.activation_checkpointing": "experts"}
    assert found[32] == {"train.activation_checkpointing": "experts", "model.base": "mxfp4"}
    assert found[24] == {"train.activation_checkpointing": True, "model.base": "mxfp4"}


def test_changes_for_a_sharded_run_are_a_run_file_that_loads() -> None:
    run = released("gpt-oss-120b", model={"name": "openai/gpt-oss-120b", "experts": "reference"})
    found = []
    for size in (24, 32, 40, 48, 80):
        for strategy in ("ddp", "fsdp2"):
            start = run.model_copy(update={"launch": run.launch.model_copy(update={"strategy": strategy})})
            changes = changes_to_fit(Estimate.of(start, Batch(4, 8192, 8192), "cuda"), size * 2**30)
            if changes is not None:
                changed = Estimate.of(start, Batch(4, 8192, 8192), "cuda").changed(changes)
                assert changed.fits(size * 2**30)
                SftRun.model_validate(changed.run.model_dump())
                found += [dict(changes)]
    assert any(one.get("launch.strategy") == "fsdp2" for one in found)
    assert any(one.get("model.base") == "mxfp4" and "launch.processes" in one for one in found)


def test_more_memory_takes_longer_rows() -> None:
    estimate = Estimate.of(
        released("gpt-oss-20b", train={"activation_checkpointing": True}), Batch(1, 512, 512), "cuda"
    )
    lengths = [estimate.longest_row(size * 2**30) for size in (24, 48, 80)]
    assert lengths[0] == 0
    assert lengths[1] < lengths[2] <= 131_072
    assert estimate._with_width(lengths[2]).fits(80 * 2**30)
    assert not estimate._with_width(lengths[2] + 256).fits(80 * 2**30)


def test_sharding_divides_what_is_held() -> None:
    one = Estimate.of(released("gpt-oss-20b"), Batch(1, 2048, 2048), "cuda")
    eight = one.changed([("launch.processes", 8), ("launch.strategy", "fsdp2")])
    assert eight.memory.adapter == one.memory.adapter // 8
    assert one.memory.weights / 8 < eight.memory.weights < one.memory.weights / 3


def test_the_scratch_memory_of_a_flash_kernel_is_counted() -> None:
    """GiB of one layer of gpt-oss-20b. A sequence for each padding token took 15.1 for the padded row, a copy of the
    trunk for each branch 70 for the last."""
    shape = Estimate.of(released("gpt-oss-20b"), Batch(1, 8192, 8192), "cuda").shape

    def gib(position: np.ndarray, end: np.ndarray) -> float:
        sequences, keys = flash_sequences(position, end)
        return flash_scratch(shape, Batch(1, len(end), 1, sequences, keys), 2) / 2**30

    def plain(tokens: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(tokens), np.full(tokens, tokens)

    assert gib(*plain(8192)) == pytest.approx(0.252, abs=1e-3)
    assert gib(*plain(131_072)) == pytest.approx(4.0, abs=0.01)
    short = [np.concatenate(parts) for parts in zip(plain(512), padding(512, 8192), strict=True)]
    assert gib(*short) == pytest.approx(0.369, abs=1e-3)
    trunk, branches, branch = 1792, 400, 16
    end = [8192] * trunk + [trunk + (n + 1) * branch for n in range(branches) for _ in range(branch)]
    position = [*range(trunk), *list(range(trunk, trunk + branch)) * branches]
    assert gib(np.array(position), np.array(end)) == pytest.approx(1.033, abs=1e-3)
    here = Estimate.of(released("gpt-oss-20b", train={"activation_checkpointing": True}), Batch(1, 8192, 64), "cuda")
    there = Estimate.of(here.run, Batch(1, 8192, 64, 401, 400 * 8192), "cuda")
    added = flash_scratch(shape, there.batch, 2)
    assert there.memory.total - here.memory.total > 0.9 * added > 40 * 2**30


def policy_step(folder: Path, shape: dict[str, int], group: int, width: int, **train: Any) -> None:
    """Learning from rewards: the passes of a tree row of a group, against what `plan` counts of them."""
    from counterpoint.configs.schema import GrpoRun
    from counterpoint.data.layout.collate import Collator
    from counterpoint.train.loop.head import target_hidden
    from counterpoint.train.loop.log_probs import target_log_probs
    from counterpoint.train.loop.policy_loss import PolicyLoss, policy_loss
    from counterpoint.train.loop.policy_rows import PolicyRow, micro_batches, targets_of
    from counterpoint.train.plan.memory import moments
    from counterpoint.train.sampling.rollout import SampledRow

    config = GptOssConfig(**shape, router_aux_loss_coef=0.0)
    config.save_pretrained(folder)
    run = GrpoRun.model_validate(
        {
            "recipe": "grpo", "model": {"name": str(folder), "dtype": "float32"}, "rewards": [{"type": "channel"}],
            "data": {"train": {"type": "arithmetic"}}, "grpo": {"group": group},
            "train": {"batch_rows": group, **train},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = attach_lora(GptOssForCausalLM(config), run.lora)
    use_implementations(model, run.model, run.train.activation_checkpointing == "experts")
    if run.train.activation_checkpointing is True:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    draw = np.random.default_rng(0)
    prompt, *said = (draw.integers(2, shape["vocab_size"], width).tolist() for _ in range(group + 1))
    rows = [PolicyRow(n, SampledRow(prompt, ids, [1] * width)) for n, ids in enumerate(said)]
    (batch,) = micro_batches(rows, [1.0] * group, [1.0] * group, group, 10**6, Collator())

    def step() -> None:
        hidden_TH, weight_VH = target_hidden(model, model.get_base_model(), dict(batch))
        log_prob_T, entropy_T = target_log_probs(hidden_TH, weight_VH, batch["target_ids"])
        policy_loss(PolicyLoss(), log_prob_T, entropy_T, targets_of(batch, log_prob_T.detach()))[0].backward()

    step()
    model.zero_grad()
    above = allocated_peak(step, torch.device("cpu"))
    planned = Batch(1, batch["input_ids"].numel(), len(batch["target_ids"]), longest=2 * width)
    plan = Estimate.of(run, planned, "cpu")
    found = [m for m in moments(plan.shape, planned, plan._plan()) if m.moment != "the sampling of rollouts"]
    assert max(m.gradients + m.activations + m.loss for m in found) == pytest.approx(above, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True, "experts"])
def test_rollouts_on_the_tiny_model(tmp_path: Path, checkpointing: bool | str) -> None:
    policy_step(tmp_path, TINY, 8, 448, activation_checkpointing=checkpointing)


@pytest.mark.slow
def test_rollouts_on_the_model_of_middle_size(tmp_path: Path) -> None:
    policy_step(tmp_path, MIDDLE, 4, 400)


def preference_step(folder: Path, shape: dict[str, int], losses: str, width: int, **train: Any) -> None:
    """Learning from two pairs: a step of the trainer, the reference's passes included, against what `plan` counts."""
    from transformers import TrainingArguments

    from counterpoint.configs.schema import DpoRun
    from counterpoint.data.dataset.pairs import Pair, Rated
    from counterpoint.recipes.commands.plan_data import _pair_batch, _pair_size
    from counterpoint.train.checkpoints.resume import Identity
    from counterpoint.train.loop.preference_trainer import PreferenceTrainer
    from counterpoint.train.loop.training_arguments import LoopSettings
    from counterpoint.train.model.load import LoadedModel
    from counterpoint.train.model.tiny import random_tiny
    from counterpoint.train.model.vocabulary_map import VocabularyMap
    from counterpoint.train.plan.memory import moments

    config = GptOssConfig(**shape, router_aux_loss_coef=0.0)
    config.save_pretrained(folder)
    run = DpoRun.model_validate(
        {
            "recipe": "dpo", "model": {"name": str(folder), "dtype": "float32"}, "data": {"train": "x.jsonl"},
            "dpo": {"losses": losses, "row_tokens": 10**6}, "train": {"batch_rows": 4, **train},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = attach_lora(GptOssForCausalLM(config), run.lora)
    use_implementations(model, run.model, run.train.activation_checkpointing == "experts")
    if run.train.activation_checkpointing is True:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    draw, mask = np.random.default_rng(0), [1] * width
    rows: list[Any] = []
    for _ in range(4):
        prompt, up, down = (draw.integers(2, shape["vocab_size"], width).tolist() for _ in range(3))
        pair = Pair("", "given", prompt, up, down, mask, mask)
        rows.append(Rated("", "wanted", prompt, up, mask, True) if run.dpo.rated else pair)
    everything = VocabularyMap.from_ids(list(range(shape["vocab_size"])))
    loaded = LoadedModel(model, random_tiny().vocabulary, everything, "made up")
    args = TrainingArguments(output_dir=str(folder), max_steps=1, use_cpu=True, report_to="none")
    loop = LoopSettings(folder / "checkpoints")
    trainer = PreferenceTrainer(loaded, args, rows, run.dpo, 10**6, loop, Identity({}, "", 4))

    def step() -> None:
        trainer.training_step(model, {"numbers": torch.arange(4)})

    step()
    model.zero_grad()
    above = allocated_peak(step, torch.device("cpu"))
    plan = Estimate.of(run, _pair_batch(run, [_pair_size(row) for row in rows]), "cpu")
    found = moments(plan.shape, plan.batch, plan._plan())
    assert max(m.gradients + m.activations + m.loss for m in found) == pytest.approx(above, rel=0.1)


@pytest.mark.parametrize(("losses", "checkpointing"), [("sigmoid", False), ("sigmoid", True), ("kto", "experts")])
def test_pairs_on_the_tiny_model(tmp_path: Path, losses: str, checkpointing: bool | str) -> None:
    preference_step(tmp_path, TINY, losses, 256, activation_checkpointing=checkpointing)


@pytest.mark.slow
@pytest.mark.parametrize("losses", ["sigmoid", "kto"])
def test_pairs_on_the_model_of_middle_size(tmp_path: Path, losses: str) -> None:
    preference_step(tmp_path, MIDDLE, losses, 160)
