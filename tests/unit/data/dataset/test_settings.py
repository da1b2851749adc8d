"""The run file's section `data` and the dataclasses that data code takes say the same things."""

from dataclasses import fields
from typing import get_args

from counterpoint.configs.base import Effort
from counterpoint.configs.data_section import Format
from counterpoint.configs.schema import DataSettings
from counterpoint.data import conversation
from counterpoint.data.dataset.training_rows import render_settings, source_options
from counterpoint.data.formats.convert import _CONVERTERS
from counterpoint.data.formats.detect import FORMATS
from counterpoint.data.formats.options import SourceOptions
from counterpoint.data.harmony.render import RenderSettings

DATA = DataSettings.model_validate({"train": "a.jsonl"})


def test_every_format_can_be_named_in_a_run_file() -> None:
    assert get_args(Format) == ("auto", *FORMATS)
    assert set(FORMATS) == set(_CONVERTERS)
    assert get_args(Effort) == conversation.EFFORTS


def test_every_option_of_a_source_is_a_setting() -> None:
    assert {field.name for field in fields(SourceOptions)} <= set(DataSettings.model_fields)


def test_defaults_agree() -> None:
    assert source_options(DATA) == SourceOptions()
    assert render_settings(DATA) == RenderSettings()
