"""The run file's section `data` is what the renderer and the readers of formats take."""

from counterpoint.configs.data_section import ConversionSettings, RenderSettings
from counterpoint.configs.schema import DataSettings, PromptSettings
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.prepared.cache import Fingerprint, plain, settings_of


def test_the_section_is_what_renderer_and_readers_take() -> None:
    data = DataSettings.model_validate({"train": "a.jsonl", "effort": "low", "weights": {"final": 2}, "tools": "t"})
    assert RenderSettings.of(data) is data
    assert Renderer(load_vocabulary(), data).settings is data
    assert {*RenderSettings.model_fields, *ConversionSettings.model_fields} < set(DataSettings.model_fields)


def test_prompts_say_the_opening_and_leave_the_rest_at_its_defaults() -> None:
    prompts = PromptSettings.model_validate(
        {"train": {"type": "arithmetic"}, "effort": "low", "date": "none", "identity": "I."}
    )
    assert RenderSettings.of(prompts) == RenderSettings(effort="low", date="", identity="I.")


def test_what_a_manifest_records_of_the_settings() -> None:
    """Names and values as version 0.1 wrote them, and those that came later."""
    data = DataSettings.model_validate({"train": "a.jsonl", "weights": {"final": 2}, "builtin_tools": "python"})
    assert plain(settings_of(data, data)) == {
        "data.bad_targets.arguments": "quarantine",
        "data.bad_targets.ending": "quarantine",
        "data.bad_targets.markup": "keep",
        "data.bad_targets.policy": "keep",
        "data.bad_targets.response_format": "quarantine",
        "data.bad_targets.structure": "quarantine",
        "data.bad_targets.text": "quarantine",
        "data.bad_targets.tools": "quarantine",
        "data.builtin_tools": ["python"],
        "data.call_style": "channel",
        "data.calls_without_result": "first",
        "data.date": "2025-06-28",
        "data.date_field": None,
        "data.double_encoded_arguments": "decode",
        "data.effort": "medium",
        "data.effort_buckets": None,
        "data.effort_field": None,
        "data.harmony_markup": "text",
        "data.harmony_system": "parse",
        "data.identity": None,
        "data.images": "quarantine",
        "data.late_system": "developer",
        "data.missing_thinking": "keep",
        "data.object_arguments": "text",
        "data.parallel_calls": "pair",
        "data.response_formats": "as_served",
        "data.served.arguments": "of_server",
        "data.served.reasoning": "of_server",
        "data.serving": "vllm",
        "data.text_beside_call": "preamble",
        "data.tool_names": "keep",
        "data.tool_schemas": "as_given",
        "data.think_tags": [],
        "data.tools": None,
        "data.train_on": "turns",
        "data.unanswered": "keep",
        "data.unmatched_results": "order",
        "data.weights.analysis": 1.0,
        "data.weights.call_arguments": 1.0,
        "data.weights.call_header": 1.0,
        "data.weights.final": 2.0,
        "data.weights.preamble": 1.0,
        "data.weights.terminators": 1.0,
    }
    settings = {
        **settings_of(data, data),
        "data.max_tokens": 64,
        "output": "arrow",
        "sources": [["a", "auto", 1.0, None]],
    }
    made_from = Fingerprint(settings, {"a": "0"}, "vocabulary", 1)
    assert made_from.digest == "1a86101dd3fbf7856349de97abc84880b862d118b8a629093fa41df9d87546e8"
