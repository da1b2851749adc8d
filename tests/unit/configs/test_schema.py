import json
import typing
from pathlib import Path
from typing import Any, Literal, cast

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

from counterpoint.configs import builtin, schema
from counterpoint.configs.base import kinds_of
from counterpoint.configs.load import load_run
from counterpoint.configs.rl_section import GrpoSettings, RolloutSettings
from counterpoint.configs.schema import RECIPES, DataSettings, EvaluateRun, SftRun, json_schema
from counterpoint.configs.yaml_file import read_file
from counterpoint.recipes.commands.configs import schema_text

NAMES = builtin.names()
MINIMAL: dict[str, Any] = {"recipe": "sft", "data": {"train": "a.jsonl"}}


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The sections of a recipe; where `type` chooses one of several kinds, the class that they share."""
    found = [model]
    waiting: list[Any] = [info.annotation for info in model.model_fields.values()]
    while waiting:
        kind = waiting.pop()
        waiting.extend(getattr(kind, "__args__", ()))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.extend(sections(kind))
    return found


def with_kinds(recipe: str) -> set[type[BaseModel]]:
    shared = sections(RECIPES[recipe])
    return {*shared, *(kind for section in shared for kind in kinds_of(cast(Any, section)))}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_is_documented_on_the_setting(recipe: str) -> None:
    for section in with_kinds(recipe):
        assert section.__doc__
        for name, info in section.model_fields.items():
            if typing.get_origin(info.annotation) is Literal and name == "type":
                continue  # the docstring of its class says it
            assert info.description, f"{section.__name__}.{name}"
            assert info.description[0] == info.description[0].upper() or info.description[0] == "`", name
            assert info.description.endswith("."), f"{section.__name__}.{name}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shipped_schema_is_the_code_s(recipe: str) -> None:
    shipped = builtin.FOLDER / "schemas" / f"{recipe}.json"
    assert shipped.read_text(encoding="utf-8") == schema_text(recipe), "run `make schemas`"
    jsonschema.Draft202012Validator.check_schema(json.loads(shipped.read_text(encoding="utf-8")))


def test_a_schema_is_shipped_for_each_recipe_and_no_other() -> None:
    assert {path.stem for path in (builtin.FOLDER / "schemas").iterdir()} == set(RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_run_file_loads_and_agrees_with_its_schema(name: str) -> None:
    run = load_run(name)
    path = builtin.find(name)
    assert path is not None
    assert run.name == path.stem
    assert builtin.description(path), "the first line is a comment that `configs ls` shows"
    jsonschema.validate(read_file(path, name).value, json_schema(run.recipe))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_every_shipped_run_file_loads_from_elsewhere(name: str, tmp_path: Path) -> None:
    source = builtin.find(name)
    assert source is not None
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    assert load_run(copy) == load_run(name)


def test_the_defaults_that_matter() -> None:
    run = SftRun.model_validate(MINIMAL)
    assert run.train.router_aux_loss_coef == 0.0
    assert run.tracking.wandb == "offline"
    assert (run.lora.attention, run.lora.experts, run.lora.router) == (True, True, False)
    assert set(run.data.weights.model_dump().values()) == {1.0}
    assert (run.data.train_on, run.data.call_style, run.data.date) == ("turns", "channel", "2025-06-28")
    assert run.eval.efforts == ("low", "medium", "high")
    assert run.data.bad_rows_limit == 0.05


@pytest.mark.parametrize("recipe", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"train": {"optimizer": "adamw_8bit"}}, "cannot update: use `adamw_torch_8bit` or `adamw`"),
        (
            {"model": {"name": "openai/gpt-oss-20b", "base": "mxfp4", "experts": "reference"}},
            "use `model.experts: lean`",
        ),
    ],
)
def test_what_cannot_be_sharded_is_refused(recipe: str, settings: dict[str, Any], match: str) -> None:
    values = {"recipe": recipe, "data": {"train": "rows.jsonl"}, **settings}
    RECIPES[recipe].model_validate({**values, "launch": {"strategy": "ddp"}})
    with pytest.raises(ValueError, match=match):
        RECIPES[recipe].model_validate({**values, "launch": {"strategy": "fsdp2"}})


@pytest.mark.parametrize(
    ("recipe", "settings", "match"),
    [
        ("sft", {"lora": {"enabled": False}}, "set `lora.enabled` and `lora.experts` to true"),
        ("dpo", {"lora": {"experts": False}}, "set `lora.enabled` and `lora.experts` to true"),
        ("grpo", {"model": {"experts": "reference"}}, "use `model.experts: lean`"),
        ("sft", {"launch": {"strategy": "fsdp2"}}, "use `launch.strategy: ddp`"),
        (
            "grpo",
            {"rollout": {"engine": "server"}, "model": {"name": "openai/gpt-oss-20b"}},
            "`rollout.engine: server` is given weights that are not: use `rollout.engine: transformers`",
        ),
    ],
)
def test_where_rounding_cannot_be_trained_for_it_is_refused(recipe: str, settings: dict[str, Any], match: str) -> None:
    values: dict[str, Any] = {"recipe": recipe, "data": {"train": "rows.jsonl"}}
    if recipe == "grpo":
        prompts = [{"type": "file", "path": "rows.jsonl"}]
        values |= {"data": {"train": prompts}, "rewards": [{"type": "channel"}], "train": {"batch_rows": 8}}
    train = values.get("train", {})
    aware = {**values, "train": {**train, "quantization_aware": "mxfp4", "quantization_from": 0.2}}
    assert RECIPES[recipe].model_validate(aware).train.quantization_from == 0.2  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=match):
        RECIPES[recipe].model_validate({**aware, **settings})
    with pytest.raises(ValueError, match="which is null: set it to mxfp4"):
        RECIPES[recipe].model_validate({**values, "train": {**train, "quantization_from": 0.2}})


@pytest.mark.parametrize("recipe", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize("settings", [{"model": {"experts": "reference"}}, {"lora": {"enabled": False}}])
def test_experts_are_computed_again_where_they_are_lean_and_frozen(recipe: str, settings: dict[str, Any]) -> None:
    values: dict[str, Any] = {"recipe": recipe, "data": {"train": "rows.jsonl"}, "train": {"batch_rows": 8}}
    if recipe == "grpo":
        values |= {"data": {"train": ({"type": "file", "path": "rows.jsonl"},)}, "rewards": ({"type": "channel"},)}
    RECIPES[recipe].model_validate({**values, **settings})
    values["train"]["activation_checkpointing"] = "experts"
    RECIPES[recipe].model_validate(values)
    with pytest.raises(ValueError, match=r"is a part of the lean experts under an adapter: use `true`"):
        RECIPES[recipe].model_validate({**values, **settings})


@pytest.mark.parametrize("checkpointing", [False, "experts"])
def test_offload_is_of_whole_layers_that_are_computed_again(checkpointing: bool | str) -> None:
    train = {"activation_offload": True, "activation_checkpointing": checkpointing}
    with pytest.raises(
        ValueError, match=rf"`train.activation_checkpointing` is {str(checkpointing).lower()}: set it to true"
    ):
        RECIPES["sft"].model_validate({"recipe": "sft", "data": {"train": "rows.jsonl"}, "train": train})


GRPO = {"data": {"train": ({"type": "file", "path": "rows.jsonl"},)}, "rewards": ({"type": "channel"},)}


def values_of(recipe: str, **settings: Any) -> dict[str, Any]:
    """A run of `recipe` with sections `settings`."""
    least = GRPO if recipe == "grpo" else {"data": {"train": "rows.jsonl"}}
    train = {"batch_rows": 8, **settings.pop("train", {})}
    return {"recipe": recipe, **least, "train": train, **settings}


@pytest.mark.parametrize("recipe", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"train": {"schedule": "constant", "min_rate": 0.1}}, "`schedule: constant` falls nowhere"),
        ({"train": {"decay_ratio": 0.1}}, "`decay_ratio` belongs to `schedule: wsd`, and it is cosine"),
        ({"train": {"frozen": ["experts"]}}, "`train.frozen` is for full fine-tuning"),
        ({"train": {"frozen_layers": 0}}, "`train.frozen_layers` is for full fine-tuning"),
        (
            {
                "train": {"frozen": ["attention", "experts", "router", "embeddings", "head", "norms"]},
                "lora": {"enabled": False},
            },
            "`frozen` names every part, so nothing would be trained",
        ),
        ({"train": {"rates": {"lora_b": 16}}, "lora": {"enabled": False}}, "`lora.enabled` is false"),
        (
            {"train": {"rates": {"router": 2}}},
            "`train.rates.router` is a factor of what does not train under this adapter",
        ),
        ({"train": {"rates": {"experts": 2}}, "lora": {"experts": False}}, "`train.rates.experts` is a factor of what"),
        ({"train": {"rates": {"embeddings": 2}}}, "`train.rates.embeddings` is a factor of what does not train"),
        (
            {"train": {"rates": {"norms": 2}, "frozen": "norms"}, "lora": {"enabled": False}},
            "since `train.frozen` names it",
        ),
        ({"train": {"adam_betas": [0.9, 1.0]}}, "less than 1"),
        ({"train": {"min_rate": 1}}, "less than 1"),
    ],
)
def test_a_setting_of_the_loop_that_would_do_nothing_is_refused(recipe: str, settings: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RECIPES[recipe].model_validate(values_of(recipe, **settings))


def test_weights_of_built_pairs_are_refused() -> None:
    """Their turns are compared whole, whatever a channel's weight is."""
    data = {"train": "rows.jsonl", "weights": {"analysis": 0}}
    RECIPES["dpo"].model_validate(values_of("dpo", data=data))
    with pytest.raises(
        ValueError, match=r"`data.weights.analysis: 0` does not reach the pairs that `dpo.negatives` makes"
    ):
        RECIPES["dpo"].model_validate(values_of("dpo", data=data, dpo={"negatives": "wrong_channel"}))


def test_dropout_is_for_supervised_training_and_dora_for_whole_weights() -> None:
    lora = {"experts": False, "dropout": 0.1}
    RECIPES["sft"].model_validate(values_of("sft", lora=lora))
    for recipe in ("dpo", "grpo"):
        with pytest.raises(ValueError, match=f"`lora.dropout` is for `recipe: sft`: {recipe} compares probabilities"):
            RECIPES[recipe].model_validate(values_of(recipe, lora=lora))
    dora = {"experts": False, "dora": True}
    RECIPES["dpo"].model_validate(values_of("dpo", lora=dora))
    with pytest.raises(ValueError, match=r"`lora.dora` needs their whole length: use `ddp`"):
        RECIPES["dpo"].model_validate(values_of("dpo", lora=dora, launch={"strategy": "fsdp2"}))
    served = {"lora": dora, "model": {"name": "openai/gpt-oss-20b"}, "rollout": {"engine": "server"}}
    with pytest.raises(ValueError, match="vLLM serves no DoRA adapters"):
        RECIPES["grpo"].model_validate(values_of("grpo", **served))


def test_settings_never_change_after_loading() -> None:
    run = SftRun.model_validate(MINIMAL)
    with pytest.raises(ValidationError):
        run.seed = 1
    with pytest.raises(ValidationError):
        run.lora.rank = 1
    assert isinstance(run.data.train, tuple)
    assert hash(run) == hash(SftRun.model_validate(MINIMAL))


def test_no_setting_takes_a_secret() -> None:
    names = {name for recipe in RECIPES for section in with_kinds(recipe) for name in section.model_fields}
    assert not {name for name in names if any(word in name for word in ("key", "secret", "password", "credential"))}


def test_a_source_is_a_path_or_a_section_and_one_needs_no_list() -> None:
    def paths(train: Any) -> list[tuple[str, float]]:
        return [(source.path, source.weight) for source in DataSettings.model_validate({"train": train}).train]

    assert paths("a") == paths(["a"]) == paths({"path": "a"}) == [("a", 1.0)]
    assert paths(["a", {"path": "b", "weight": 2}]) == [("a", 1.0), ("b", 2.0)]
    assert DataSettings.model_validate({"train": "a", "valid": None}).valid == ()


def test_shorthands_are_in_the_json_schema() -> None:
    for train in ("a", ["a", {"path": "b"}], {"path": "b"}):
        jsonschema.validate({"recipe": "sft", "data": {"train": train}}, json_schema("sft"))
    for wrong in (5, [5], [], {"path": 5}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"recipe": "sft", "data": {"train": wrong}}, json_schema("sft"))
    jsonschema.validate({"extends": "quickstart", "eval": {"efforts": "low"}}, json_schema("sft"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"recipe": "sft"}, json_schema("sft"))


def test_the_json_schema_refuses_a_setting_of_another_kind() -> None:
    def run(reward: dict[str, Any]) -> dict[str, Any]:
        return {"recipe": "grpo", "data": {"train": {"type": "file", "path": "a"}}, "rewards": [reward]}

    jsonschema.validate(run({"type": "language", "language": "en", "share": 0.3}), json_schema("grpo"))
    for wrong in ({"type": "channel", "share": 0.3}, {"type": "length"}, {"type": "chanel"}, {"weight": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(run(wrong), json_schema("grpo"))


def test_recipes_do_not_share_sections_that_they_do_not_have() -> None:
    with pytest.raises(ValidationError):
        EvaluateRun.model_validate({"recipe": "evaluate", "train": {"steps": 3}})
    assert EvaluateRun.model_validate({"recipe": "evaluate"}).model.name == "tiny"


def test_the_module_offers_every_section() -> None:
    for recipe in RECIPES.values():
        for section in sections(recipe):
            assert section.__name__ in schema.__all__


@pytest.mark.parametrize(
    ("recipe", "given", "rate"),
    [
        ("sft", {}, 2e-4), ("sft", {"lora": {"enabled": False}}, 1e-5), ("dpo", {"lora": {"enabled": False}}, 1e-6),
        ("grpo", {"lora": {"enabled": False}}, 1e-6), ("grpo", {}, 1e-5),
        ("sft", {"lora": {"enabled": False}, "train": {"learning_rate": 3e-4}}, 3e-4),
        ("sft", {"lora": {"enabled": False}, "train": {"schedule": "constant"}}, 1e-5),
    ],
)  # fmt: skip
def test_all_weights_have_a_learning_rate_of_their_own(recipe: str, given: dict[str, Any], rate: float) -> None:
    needed = {
        "sft": {"data": {"train": "a"}}, "dpo": {"data": {"train": "a"}},
        "grpo": {
            "data": {"train": {"type": "arithmetic"}}, "rewards": [{"type": "function", "function": "a:b"}], "grpo": {"group": 2},
            "train": {"batch_rows": 2},
        },
    }[recipe]  # fmt: skip
    train = {**needed.get("train", {}), **given.get("train", {})}
    run: Any = RECIPES[recipe].model_validate({"recipe": recipe, **needed, **given, "train": train})
    assert run.train.learning_rate == rate


def test_a_section_that_is_given_in_part_keeps_the_defaults_of_its_recipe() -> None:
    """Before: `train: {steps: 9}` of grpo took the learning rate of sft."""
    for recipe in ("dpo", "grpo"):
        default = RECIPES[recipe].model_fields["train"].default
        data: Any = "a" if recipe == "dpo" else {"type": "arithmetic"}
        given: dict[str, Any] = {"recipe": recipe, "data": {"train": data}, "train": {"steps": 9, "batch_rows": 8}}
        run: Any = RECIPES[recipe].model_validate(
            given | ({"rewards": [{"type": "function", "function": "a:b"}]} if recipe == "grpo" else {})
        )
        assert run.train == default.model_copy(update={"steps": 9, "batch_rows": 8})
    assert RolloutSettings.model_validate({"vllm": {"tensor_parallel": 2}}).vllm.gpu_memory == 0.3


@pytest.mark.parametrize(
    ("given", "clip", "idle"),
    [
        ({}, (0.2, 0.2), None), ({"ratio": "sequence"}, (3e-4, 4e-4), None), ({"loss": "cispo"}, (0.2, 5.0), None),
        ({"epsilon": 0.1}, (0.1, 0.1), "epsilon"), ({"epsilon": 0.1, "iterations": 2}, (0.1, 0.1), None),
        ({"epsilon_high": 0.28}, (0.2, 0.28), "epsilon_high"), ({"ratio": "sequence", "epsilon": 1e-3}, (1e-3, 1e-3), "epsilon"),
        ({"loss": "cispo", "epsilon_high": 3.0, "iterations": 2}, (0.2, 3.0), None),
    ],
)  # fmt: skip
def test_the_clip_fits_what_is_clipped(given: dict[str, Any], clip: tuple[float, float], idle: str | None) -> None:
    settings = GrpoSettings.model_validate(given)
    assert (settings.clip, settings.idle_clip) == (clip, idle)
