from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterpoint.configs import builtin
from counterpoint.configs.base import kinds_of
from counterpoint.configs.dump import differences, plain, to_yaml
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.load import load_run
from counterpoint.configs.reward_section import RewardSettings
from counterpoint.configs.schema import SftRun

NO_WEIGHT = "analysis: 0, preamble: 0, call_header: 0, call_arguments: 0, final: 0, terminators: 0"
HEAD = "recipe: sft\ndata:\n  train: a.jsonl\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "run.yaml") -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return write


def message(source: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(source, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_code == 2
    return text


def loaded(source: str, *overrides: str) -> SftRun:
    run = load_run(source, overrides)
    assert isinstance(run, SftRun)
    return run


WRONG = [
    ("lora:\n  rnak: 8", "run.yaml:5: unknown key `lora.rnak`; did you mean `lora.rank`?"),
    ("trian:\n  steps: 3", "run.yaml:4: unknown key `trian`; did you mean `train`?"),
    ("rank: 3", "run.yaml:4: unknown key `rank`; did you mean `lora.rank`?"),
    ("learning_rte: 3", "run.yaml:4: unknown key `learning_rte`; did you mean `train.learning_rate`?"),
    ("model:\n  lora:\n    rank: 3", "run.yaml:5: unknown key `model.lora`; did you mean `lora`?"),
    ("extend: x", "run.yaml:4: unknown key `extend`; did you mean `extends`?"),
    ("launch:\n  zzzz: 1", "run.yaml:5: unknown key `launch.zzzz`: known here are processes, nodes, strategy"),
    ("train:\n  zzzz: 1", "run.yaml:5: unknown key `train.zzzz`: `counterpoint configs schema sft` lists them"),
    ("lora:\n  zzzz: 1\ntrain:\n  steps: x", "run.yaml:5: unknown key `lora.zzzz`: known here are enabled,"),
    ("lora:\n  rank: lots", "run.yaml:5: `lora.rank` is `lots`: it must be a whole number, at least 1"),
    ("lora:\n  rank: 1.5", "run.yaml:5: `lora.rank` is `1.5`: it must be a whole number, at least 1"),
    ("lora: 5", "run.yaml:4: `lora` is `5`: it must be a section of settings"),
    ("lora:\n  enabled: maybe", "run.yaml:5: `lora.enabled` is `maybe`: it must be true or false"),
    ("lora:\n  layers: [0, -1]", "run.yaml:5: `lora.layers.1` is `-1`: it must be a whole number, at least 0"),
    ("seed: -1", "run.yaml:4: `seed` is `-1`: it must be a whole number, at least 0"),
    ("seed: null", "run.yaml:4: `seed` is `null`: it must be a whole number, at least 0"),
    ("name: 5", "run.yaml:4: `name` is `5`: it must be text, not empty, or null"),
    ("name: [a]", "run.yaml:4: `name` is a list of 1: it must be text"),
    ("train:\n  steps: 0", "run.yaml:5: `train.steps` is `0`: it must be a whole number, at least 1, or null"),
    ("train:\n  learning_rate: -1e-4", "run.yaml:5: `train.learning_rate` is `-0.0001`: it must be a number, above 0"),
    (
        "train:\n  learning_rate: .nan",
        "run.yaml:5: `train.learning_rate` is `nan`: it must be a number, above 0 (finite)",
    ),
    (
        "eval:\n  stop_below: 2",
        "run.yaml:5: `eval.stop_below` is `2`: it must be a number, at least 0 and at most 1, or null",
    ),
    (
        "train:\n  schedule: cosin",
        "run.yaml:5: `train.schedule` is `cosin`: it must be one of cosine, linear, constant, wsd; did you mean `cosine`?",
    ),
    (
        "train:\n  activation_checkpointing: expert",
        "run.yaml:5: `train.activation_checkpointing` is `expert`: it must be true or false, or `experts`; "
        "did you mean `experts`?",
    ),
    (
        "eval:\n  efforts: []",
        "run.yaml:5: `eval.efforts` is an empty list: it must be one of low, medium, high; or a list",
    ),
    ("eval:\n  efforts: [low, low]", "run.yaml:5: `eval.efforts` is a list of 2: `low` is listed twice"),
    (
        "eval:\n  efforts: [lwo]",
        "run.yaml:5: `eval.efforts.0` is `lwo`: it must be one of low, medium, high; did you mean",
    ),
    ("name: ../elsewhere", "run.yaml:4: `name` is `../elsewhere`: it names a folder inside `output`: write it without"),
    ("name: .hidden", "run.yaml:4: `name` is `.hidden`: it names a folder inside `output`"),
    # Rules between settings
    ("lora:\n  attention: false\n  experts: false", "run.yaml:4: `lora`: it is enabled with no target: set attention"),
    ("lora:\n  layers: []", "run.yaml:4: `lora`: `layers` is empty, so nothing would be trained"),
    ("model:\n  base: mxfp4", "run.yaml:4: `model`: `base: mxfp4` reads an original checkpoint"),
    ("model:\n  revision: main", "run.yaml:4: `model`: `revision` belongs to a Hugging Face name"),
    (
        "model:\n  name: x/y\n  base: mxfp4\n  init: random",
        "run.yaml:4: `model`: `base: mxfp4` reads an original checkpoint",
    ),
    ("model:\n  name: x/y\n  base: mxfp4\nlora:\n  enabled: false", "run.yaml: `model.base: mxfp4` is frozen"),
    (
        "eval:\n  stop_below: 0.9\n  warn_below: 0.5",
        "run.yaml:4: `eval`: `warn_below` (0.5) is under `stop_below` (0.9)",
    ),
    # YAML
    ("lora:\n  rank: 8\n  rank: 9", "run.yaml:6: `lora.rank` was set before, at run.yaml:5: keep one of them"),
    (
        "lora: !!python/object/apply:os.system [ls]",
        "run.yaml:4: the tag `!!python/object/apply:os.system` is not taken",
    ),
    ("lora: !!str x", "run.yaml:4: the tag `!!str` is not taken"),
    ("lora: !mine x", "run.yaml:4: the tag `!mine` is not taken"),
    ("x: &a 1", "run.yaml:4: anchors and aliases"),
    ("x: *a", "run.yaml:4: anchors and aliases"),
    ('"ra\\nnk": 2', "run.yaml:4: unknown key `ra nk`; did you mean"),
    ("1: 2", "run.yaml:4: a key must be text"),
    ("? [1]\n: 2", "run.yaml:4: a key must be text"),
    ("null: 2", "run.yaml:4: a key must be text"),
    ("a: b: c", "run.yaml:4: not valid YAML: mapping values are not allowed here"),
    ("\ta: 1", "run.yaml:4: not valid YAML: found character '\\t' that cannot start any token"),
    ("a: [", "run.yaml:5: not valid YAML: "),
    ("---\na: 1", "run.yaml:4: not valid YAML: but found another document"),
    ("a: '\x07'", "run.yaml: not valid YAML: unacceptable character"),
    ("a: " + "[" * 5000, "run.yaml: nested too deeply for a run file"),
    # Secrets
    (
        "tracking:\n  project: hf_aB3dE6gH9jK2mN5pQ8sT1vW4yZ7",
        "run.yaml:5: `tracking.project` looks like a secret: keep it",
    ),
    (
        "tracking:\n  tags: [a, 0123456789abcdef0123456789abcdef01234567]",
        "run.yaml:5: `tracking.tags.1` looks like a secret",
    ),
    ("api_key: abcdef", "run.yaml:4: `api_key` looks like a secret"),
    ("model:\n  name: https://me:pw@host/x", "run.yaml:5: `model.name` looks like a secret"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_what_is_wrong_is_told_on_one_line_with_its_place(write, text: str, expected: str) -> None:
    assert message(write(HEAD + text + "\n")).startswith(expected)


WRONG_DATA = [
    (
        "recipe: sft\ndata:\n  train: [a, {path: b, wieght: 2}]",
        "run.yaml:3: unknown key `data.train.1.wieght`; did you mean `data.train.1.weight`?",
    ),
    (
        "recipe: sft\ndata:\n  train:\n    - a\n    - path: b\n      zzzz: 2",
        "run.yaml:6: unknown key `data.train.1.zzzz`: known here are path, format, weight, rows",
    ),
    (
        "recipe: sft\ndata:\n  train: 5",
        "run.yaml:3: `data.train.0` is `5`: it must be text, or a section with path, format, weight, rows",
    ),
    (
        "recipe: sft\ndata:\n  train: []",
        "run.yaml:3: `data.train` is an empty list: it must be text, or a section with path",
    ),
    (
        "recipe: sft\ndata:\n  max_tokens: 9",
        "run.yaml:2: `data.train` is missing: it must be text, or a section with path",
    ),
    ("recipe: sft", "run.yaml: `data.train` is missing: it must be "),
    ("recipe: sft\ndata:", "run.yaml:2: `data.train` is missing: it must be "),
    (
        "recipe: sft\ndata:\n  train: [{format: openai}]",
        "run.yaml:3: `data.train.0.path` is missing: it must be text, not empty",
    ),
    (
        "recipe: sft\ndata:\n  train: a\n  date: 2025-02-30",
        "run.yaml:4: `data.date` is `2025-02-30`: it is no date: write YYYY-MM-DD",
    ),
    ("recipe: sft\ndata:\n  train: a\n  date: 20250228", "run.yaml:4: `data.date` is `20250228`: it must be text"),
    ("recipe: sft\ndata:\n  train: a\n  date: '20250228'", "run.yaml:4: `data.date` is `20250228`: it is no date"),
    (
        "recipe: sft\ndata:\n  train: a\n  effort_buckets: [5]",
        "run.yaml:4: `data.effort_buckets.1` is missing: it must be a whole number",
    ),
    (
        "recipe: sft\ndata:\n  train: a\n  effort_buckets: [5, 5]",
        "run.yaml:4: `data.effort_buckets` is a list of 2: the second number must be",
    ),
    (
        "recipe: sft\ndata:\n  train: a\n  pack_tokens: 100",
        "run.yaml:2: `data`: `pack_tokens` (100) is less than `max_tokens` (8192)",
    ),
    (
        "recipe: sft\ndata:\n  train: a\n  weights: {" + NO_WEIGHT + "}",
        "run.yaml:4: `data.weights`: all of them are 0",
    ),
    (
        "recipe: sft\ndata:\n  train: a\n  train_on: final\n  weights: {final: 0}",
        "run.yaml:2: `data`: `train_on: final` with `weights.final: 0`",
    ),
    ("data:\n  train: a", "run.yaml: `recipe` is missing: begin the file with `recipe: sft`"),
    (
        "recipe: sfft",
        "run.yaml:1: `recipe` is `sfft`: it must be one of sft, dpo, grpo, distill, evaluate; did you mean `sft`?",
    ),
    ("recipe: [sft]", "run.yaml:1: `recipe` is a list of 1: it must be one of sft, dpo, grpo, distill, evaluate"),
    ("- a", "run.yaml:1: a run file is a mapping: begin it with `recipe: sft`"),
    ("text", "run.yaml:1: a run file is a mapping"),
    ("", "run.yaml: `recipe` is missing"),
    ("recipe: evaluate\ndata:\n  train: a", "run.yaml:2: unknown key `data`: known here are seed, output,"),
]


KINDS = ", ".join(kind.model_fields["type"].annotation.__args__[0] for kind in kinds_of(RewardSettings))  # pyright: ignore
WRONG_KINDS = [
    ("{type: channel, share: 0.3}", "belongs to type `language`, not to `channel`, which takes name, weight, gate"),
    ("{type: answer, slope: 2}", "belongs to type `length`, not to `answer`, which takes name, weight, gate, scorer"),
    (
        "{type: language, language: en, shrae: 1}",
        "unknown key `rewards.0.shrae`: type `language` takes name, weight, gate, gated, language, channel, share; "
        "did you mean `rewards.0.share`?",
    ),
    ("{type: json, zzz: 1}", "unknown key `rewards.0.zzz`: type `json` takes name, weight, gate, gated"),
    ("{type: lenght}", f"type` is `lenght`: it must be one of {KINDS}; did you mean `length`?"),
    ("{type: [a]}", f"type` is a list of 1: it must be one of {KINDS}"),
    ("{type: null}", f"type` is `null`: it must be one of {KINDS}"),
    ("{weight: 1}", f"type` is missing: it must be one of {KINDS}"),
    ("5", f"rewards.0` is `5`: it must be a section whose `type` is one of {KINDS}"),
    ("{type: length}", "budgets` is missing: it must be a section with low, medium, high"),
    ("{type: length, budgets: 4}", "budgets` is `4`: it must be a section with low, medium, high"),
    (
        "{type: length, budgets: {low: [4, 2]}}",
        "budgets`: `budgets.low`: 4 is more than 2: write the fewest tokens first",
    ),
    ("{type: length, budgets: {low: [a, 2]}}", "budgets.low.0` is `a`: it must be a whole number, at least 0"),
    ("{type: function, function: 3}", "function` is `3`: it must be text, not empty"),
    ("{type: function, function: mine}", "function` is `mine`: write module:function or file.py:function"),
]


@pytest.mark.parametrize(("reward", "expected"), WRONG_KINDS)
def test_a_section_chosen_by_type_takes_what_its_kind_has(write, reward: str, expected: str) -> None:
    told = message(write(f"recipe: grpo\ndata:\n  train: {{type: probes}}\nrewards:\n  - {reward}\n"))
    assert told.startswith("run.yaml:5: ")
    assert told.endswith(expected)


def test_a_task_takes_what_its_kind_has(write) -> None:
    task = "recipe: evaluate\neval:\n  tasks:\n    - "
    told = message(write(task + "{type: file, path: a, seed: 1}"))
    assert "`eval.tasks.0.seed` belongs to type `arithmetic` and `reasoning_gym`, not to `file`, which takes" in told
    assert message(write(task + "{type: file}")).endswith("`eval.tasks.0.path` is missing: it must be text, not empty")


@pytest.mark.parametrize(("text", "expected"), WRONG_DATA)
def test_wrong_data_sections_and_whole_files(write, text: str, expected: str) -> None:
    assert message(write(text)).startswith(expected)


def test_several_problems_are_counted(write) -> None:
    assert message(write(HEAD + "seed: a\nlora:\n  rank: b\ntrain:\n  steps: c\n")).endswith(" (2 more)")


def test_files_that_are_not_run_files(write, tmp_path: Path) -> None:
    Path("latin.yaml").write_bytes(b"recipe: sft\nname: \xe9\n")
    assert message("latin.yaml") == "latin.yaml:2: not UTF-8: save the file as UTF-8 text"
    Path("weights.yaml").write_bytes(b"0" * 2_000_000)
    assert message("weights.yaml") == "weights.yaml: 2 MB is no run file: give the YAML file with the settings"
    assert message(str(tmp_path)).endswith("a folder, not a run file: give the YAML file in it")
    assert message("quickstrat") == "quickstrat: no such run file; did you mean the built-in `quickstart`?"
    assert message("zzzz") == "zzzz: no such run file; `counterpoint configs ls` lists those built in"
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert loaded("bom.yaml").recipe == "sft"


def test_values_mean_what_they_look_like(write) -> None:
    run = loaded(
        write(
            HEAD + "  date: 2024-02-29\nname: no\nseed: 0x10\n"
            "train:\n  learning_rate: 2e-4\n  steps: 1e2\n  max_grad_norm: .5\n"
            "tracking:\n  wandb: off\n  project: 1:30\n  tags: [yes, 2025-01-01]\n"
            "lora:\n  experts: off\n  layers: null\n"
        )
    )
    assert (run.name, run.seed, run.data.date) == ("no", 16, "2024-02-29")
    assert (run.train.learning_rate, run.train.steps, run.train.max_grad_norm) == (2e-4, 100, 0.5)
    assert (run.tracking.wandb, run.tracking.project, run.tracking.tags) == ("off", "1:30", ("yes", "2025-01-01"))
    assert (run.lora.experts, run.lora.layers) == (False, None)


def test_a_date_line_can_be_left_out(write) -> None:
    assert loaded(write(HEAD), "data.date=none").data.date == ""


def test_a_commit_is_a_revision_and_no_secret(write) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert loaded(write(HEAD + f"model:\n  name: x/y\n  revision: {commit}\n")).model.revision == commit


def test_an_empty_section_is_a_section_of_defaults(write) -> None:
    assert loaded(write(HEAD + "lora:\ntrain: ~\n")).lora.rank == 16


class TestName:
    def test_it_is_the_file_s_unless_set(self, write) -> None:
        assert loaded(write(HEAD, "deep/my.run.yaml")).name == "my.run"
        assert loaded(write(HEAD + "name: other\n")).name == "other"
        assert loaded("run.yaml", "name=third").name == "third"
        assert loaded(write(HEAD, ".hidden\x01 a.yaml")).name == "hidden a"

    def test_a_command_s_own_arguments_make_a_run_without_a_file(self) -> None:
        values = {"recipe": "sft", "data": {"train": [{"path": "a.jsonl", "format": "openai"}]}}
        run = load_run(None, ["data.max_tokens=9"], values)
        assert isinstance(run, SftRun)
        assert (run.name, run.data.max_tokens, run.data.train[0].format) == (None, 9, "openai")

    def test_who_loads_a_run_says_which_formats_there_are(self, write) -> None:
        def check(name: str) -> None:
            if name not in ("auto", "openai"):
                raise ConfigError("it must be one of auto, openai")

        file = write(HEAD + "eval:\n  warn_below: 0.5\n")
        assert isinstance(load_run(file, ["data.valid=b.jsonl"], check_format=check), SftRun)
        for override in ("data.valid=[b.jsonl, {path: a, format: x}]", "data.train={path: a, format: x}"):
            with pytest.raises(
                ConfigError, match=r"^command line: `data\..*\.format` is `x`: it must be one of auto, op"
            ):
                load_run(file, [override], check_format=check)
        assert isinstance(load_run(file, ["data.train={path: a, format: x}"]), SftRun)

    def test_built_in_names(self, write) -> None:
        for name in ("quickstart", "quickstart.yaml", "configs/quickstart.yaml"):
            assert load_run(name).name == "quickstart"
        assert load_run("sft/tiny_base").name == "tiny_base"

    def test_a_file_of_the_user_wins_over_a_built_in(self, write) -> None:
        assert loaded(write(HEAD + "seed: 77\n", "quickstart")).seed == 77


class TestOverrides:
    def test_they_replace_one_setting(self, write) -> None:
        run = loaded(
            write(HEAD + "lora:\n  rank: 4\n  alpha: 8\n"), "lora.rank=2", "train.learning_rate=1e-3", "seed=5"
        )
        assert (run.lora.rank, run.lora.alpha, run.train.learning_rate, run.seed) == (2, 8, 1e-3, 5)

    def test_the_last_one_counts(self, write) -> None:
        assert loaded(write(HEAD), "lora.rank=2", "lora.rank=3").lora.rank == 3

    def test_values_are_yaml(self, write) -> None:
        run = loaded(
            write(HEAD),
            "data.train=[x.jsonl, {path: y.jsonl, weight: 2}]",
            "eval.efforts=low",
            "data.weights={analysis: 0.5}",
            "lora.layers=[0,1]",
            "data.identity='You are: me'",
            "tracking.project=a=b",
        )
        assert [(s.path, s.weight) for s in run.data.train] == [("x.jsonl", 1), ("y.jsonl", 2)]
        assert (run.eval.efforts, run.data.weights.analysis, run.lora.layers) == (("low",), 0.5, (0, 1))
        assert (run.data.identity, run.tracking.project) == ("You are: me", "a=b")

    def test_they_reach_into_lists(self, write) -> None:
        run = loaded(write("recipe: sft\ndata:\n  train: [a, {path: b}]\n"), "data.train.1.weight=3", "data.train.0=c")
        assert [(s.path, s.weight) for s in run.data.train] == [("c", 1), ("b", 3)]

    def test_null_takes_the_default_back(self, write) -> None:
        assert loaded(write(HEAD + "train:\n  steps: 5\n"), "train.steps=null").train.steps is None
        assert loaded(write(HEAD + "train:\n  steps: 5\n"), "train.steps=").train.steps is None

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("lora.rnak=8", "command line: unknown key `lora.rnak`; did you mean `lora.rank`?"),
            ("lorra.rank=8", "command line: unknown key `lorra`; did you mean `lora`?"),
            ("lora.rank=", "command line: `lora.rank` is `null`: it must be a whole number, at least 1"),
            ("lora.rank.x=3", "command line: `lora.rank.x`: it leads into a single value: name the setting above it"),
            ("data.train.0.path=3", "command line: `data.train.0.path`: it leads into a single value"),
            ("eval.efforts.3=low", "command line: `eval.efforts.3`: it leads into a list of 2: count entries from 0"),
            ("eval.efforts.x=low", "command line: `eval.efforts.x`: it leads into a list of 2: count entries from 0"),
            ("lora", "command line: `lora`: write `section.key=value`, for example `lora.rank=8`"),
            ("=3", "command line: `=3`: write `section.key=value`"),
            ("--lora.rank=3", "command line: `--lora.rank=3`: unknown key"),
            ("lora..rank=3", "command line: `lora..rank=3`: write `section.key=value`"),
            ("lora.rank=[", "command line: the value of `lora.rank` is not valid YAML: put it in quotes"),
            ("lora.rank=!!int 3", "command line: the value of `lora.rank` is not valid YAML: put it in quotes"),
            ("extends=x", "command line: `extends` is allowed in run files only"),
            ("recipe=evaluate", "run.yaml:2: unknown key `data`"),
            ("tracking.project=sk-abcdefgh12345678", "command line: `tracking.project` looks like a secret"),
        ],
    )
    def test_what_is_wrong_with_one(self, write, override: str, expected: str) -> None:
        write(HEAD + "lora:\n  rank: 4\neval:\n  efforts: [low, high]\n")
        if override.startswith("--"):
            expected = "command line: unknown key `--lora`; did you mean `lora`?"
        assert message("run.yaml", override).startswith(expected)


class TestExtends:
    def test_sections_merge_and_lists_are_replaced(self, write) -> None:
        write(HEAD + "lora:\n  rank: 4\n  alpha: 8\neval:\n  efforts: [low, high]\nseed: 3\n", "base.yaml")
        run = loaded(write("extends: base.yaml\nlora:\n  rank: 2\neval:\n  efforts: [medium]\ntrain:\n  steps: 1\n"))
        assert (run.lora.rank, run.lora.alpha, run.eval.efforts, run.seed, run.train.steps) == (2, 8, ("medium",), 3, 1)

    def test_the_path_is_seen_from_the_file(self, write) -> None:
        write(HEAD + "seed: 1\n", "a/base.yaml")
        write(HEAD + "seed: 2\n", "base.yaml")
        write("extends: base.yaml\n", "a/run.yaml")
        write("extends: ../base.yaml\n", "a/up.yaml")
        assert (load_run("a/run.yaml").seed, load_run("a/up.yaml").seed) == (1, 2)

    def test_a_built_in_name(self, write) -> None:
        run = loaded(write("extends: quickstart\nlora:\n  rank: 3\n"))
        assert (run.lora.rank, run.name) == (3, "run")
        assert run.data == loaded("quickstart").data

    def test_an_empty_section_keeps_the_base_s(self, write) -> None:
        write(HEAD + "lora:\n  rank: 4\n", "base.yaml")
        assert loaded(write("extends: base.yaml\nlora:\n")).lora.rank == 4

    def test_places_are_those_of_the_file_that_was_wrong(self, write) -> None:
        write(HEAD + "lora:\n  rnak: 4\n", "base.yaml")
        assert message(write("extends: base.yaml\n")).startswith("base.yaml:5: unknown key `lora.rnak`")
        write(HEAD + "lora:\n  rank: 4\neval:\n  efforts:\n    - lwo\n", "base.yaml")
        assert message("run.yaml").startswith("base.yaml:8: `eval.efforts.0`")
        write("extends: base.yaml\nlora:\n  rank: x\neval: {efforts: [hgih]}\n")
        assert message("run.yaml").startswith("run.yaml:3: `lora.rank` is `x`")
        assert message("run.yaml", "lora.rank=1").startswith("run.yaml:4: `eval.efforts.0` is `hgih`")

    def test_a_circle_is_found(self, write) -> None:
        write("extends: b.yaml\n", "a.yaml")
        write("extends: c.yaml\n", "b.yaml")
        write("extends: a.yaml\n", "c.yaml")
        assert message("a.yaml").endswith("`extends` goes in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml")
        assert message(write("extends: run.yaml\n")).endswith("run.yaml -> run.yaml")

    def test_what_is_not_there(self, write) -> None:
        assert message(write("recipe: sft\nextends: zzz.yaml\n")).startswith(
            "run.yaml:2: `extends` is `zzz.yaml`: no such file"
        )
        assert message(write("extends: [a, b]\n")) == "run.yaml:1: `extends` must be the name of one run file"
        assert message(write("extends:\n")) == "run.yaml:1: `extends` must be the name of one run file"


class TestDump:
    @pytest.mark.parametrize("name", builtin.names())
    def test_a_dumped_run_loads_to_the_same_run(self, name: str, tmp_path: Path) -> None:
        run = load_run(name)
        file = tmp_path / "resolved.yaml"
        file.write_text(to_yaml(run), encoding="utf-8")
        assert load_run(file) == run
        assert to_yaml(run).startswith(f"recipe: {run.recipe}\n")

    def test_differences_name_each_setting(self, write) -> None:
        old = loaded(write(HEAD))
        new = loaded("run.yaml", "lora.rank=8", "data.valid=v.jsonl", "train.steps=3")
        assert differences(old, new) == [
            "`lora.rank` was `16` and is `8`",
            "`data.valid` was `[]` and is "
            "`[{path: v.jsonl, format: auto, weight: 1.0, rows: null, columns: null, roles: null, name: null}]`",
            "`train.steps` was `null` and is `3`",
        ]
        assert differences(old, old) == []

    def test_a_recorded_run_may_have_settings_that_never_did_anything(self, write, tmp_path: Path) -> None:
        text = "recipe: dpo\ndata: {train: pairs.jsonl, tree: true, serving: vllm}\nmodel: {name: tiny, loss: lean}\n"
        assert "unknown key `model.loss`" in message(write(text, "config.yaml"))
        (tmp_path / "run.json").write_text("{}")
        assert load_run(tmp_path / "config.yaml").model.name == "tiny"

    def test_secrets_are_hidden_even_in_settings_that_were_not_loaded(self) -> None:
        value = {"recipe": "sft", "data": {"train": "a"}, "tracking": {"project": "hf_aB3dE6gH9jK2mN5pQ8sT"}}
        assert plain(SftRun.model_validate(value))["tracking"]["project"] == "[hidden]"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.text("{}[]:,&*!|>'\"%@`-? \n\tab1.=~", max_size=40)
)
def test_no_text_is_anything_but_a_run_or_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    for content in (text, f"recipe: sft\ndata: {{train: a}}\nlora: {text}\n"):
        file.write_bytes(content.encode())
        assert "\n" not in refusal(str(file))
    for override in (text, f"lora.rank={text}", f"name={text}"):
        assert "\n" not in refusal("quickstart", override)


def refusal(source: str, *overrides: str) -> str:
    try:
        load_run(source, overrides)
    except ConfigError as error:
        return str(error)
    return ""
