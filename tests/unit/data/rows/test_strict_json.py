"""JSON is read as orjson and json read it, and every fault has its name and place."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.configs.errors import RowError
from counterpoint.data.rows.strict_json import dumps, loads

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=6), children, max_size=4),
    max_leaves=12,
)
FAULTS = [
    (rb'{"a": {"b": 1, "b": 2}}', "duplicate_key", "a.b", "the key is written twice in one object"),
    (rb'{"a": 1, "a" : 2}', "duplicate_key", "a", "the key is written twice in one object"),
    (rb'{"a": 1, "\u0061": 2}', "duplicate_key", "a", "the key is written twice in one object"),
    (rb'[{"m": [{"x": 1}, {"x": NaN}]}]', "not_a_number", "[0].m[1].x", "NaN is not a JSON number"),
    (rb'{"a": -Infinity}', "not_a_number", "a", "-Infinity is not a JSON number"),
    (rb'{"a": 1e999}', "not_a_number", "a", "1e999 is not a JSON number"),
    (rb'{"a": ["x\ud800"]}', "lone_surrogate", "a[0]", "a lone surrogate U+D800 at character 2"),
    (rb'{"\udc00": 1}', "lone_surrogate", "row", "a lone surrogate U+DC00 at character 1"),
    (b'{"a": "\x00"}', "nul", "row", "a NUL byte at byte 8"),
    (b'{"a": "\xff"}', "bad_utf8", "row", "not UTF-8: byte FF at byte 8"),
    (b'\xff\xfe{\x00"\x00', "bad_utf8", "row", "the file is UTF-16, not UTF-8"),
    (b'\xef\xbb\xbf{"a": 1}', "bom", "row", "a byte order mark inside the file"),
    (b'{"a": "x', "truncated", "row", "the JSON text ends early, after character 8"),
    (b'{"a": 1, ', "truncated", "row", "the JSON text ends early, after character 8"),
    (b'{"a": 1} {"b": 2}', "not_json", "row", "something follows the JSON value at character 10"),
    (b"{'a': 1}", "not_json", "row", "not JSON: Expecting property name enclosed in double quotes at character 2"),
    (b'{"a": "x\ty"}', "not_json", "row", "not JSON: Invalid control character at at character 9"),
    (b"", "empty_line", "row", "nothing but white space"),
    (b"[" * 100_000, "too_deep", "row", "nested more than 1000 levels deep"),
    (b'{"a": ' + b"9" * 5000 + b"}", "bad_number", "row", "Exceeds the limit (4300 digits)"),
]


@pytest.mark.parametrize(("raw", "kind", "field", "what"), FAULTS, ids=[f"{f[1]}-{i}" for i, f in enumerate(FAULTS)])
def test_a_fault_is_named(raw, kind, field, what):
    with pytest.raises(RowError) as caught:
        loads(raw)
    assert (caught.value.kind, caught.value.field) == (kind, field)
    assert caught.value.what.startswith(what)
    assert caught.value.fix


@given(value=JSON, indent=st.sampled_from([None, 0, 2]), ascii_=st.booleans())
def test_valid_json_reads_as_json_reads_it(value, indent, ascii_):
    raw = json.dumps(value, indent=indent, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
    assert loads(raw) == json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        rb'{"a\\": 1, "b": ":x", "b\\": ":", "\":": ":)"}',
        rb'{"s": "{\"k\": {\"k\": \"\\\"k\\\": 1\"}}", "t": "\\\\\":"}',
        b'{"a"\t:\n1,\r\n"b"  : "note : \\": x"}',
    ],
)
def test_quotes_and_colons_inside_strings_are_no_keys(raw):
    assert loads(raw) == json.loads(raw)


def test_integers_beyond_64_bits_stay_exact():
    assert loads(b'{"a": 123456789012345678901234567890}') == {"a": 123456789012345678901234567890}


@settings(max_examples=150)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(["a", "b\\", ":", 'c"']), JSON), max_size=5),
    gap=st.sampled_from(["", " ", "  "]),
)
def test_a_repeated_key_is_always_found(pairs, gap):
    raw = ("{" + ",".join(f"{json.dumps(k)}{gap}:{json.dumps(v)}" for k, v in pairs) + "}").encode()
    if len({key for key, _ in pairs}) == len(pairs):
        assert loads(raw) == json.loads(raw)
    else:
        with pytest.raises(RowError, match="twice"):
            loads(raw)


@settings(max_examples=150)
@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_give_a_value_or_a_row_error(raw):
    with suppress(RowError):
        assert loads(raw) == json.loads(raw)


def test_numbers_are_written_with_the_digits_that_they_were_read_with():
    """Expected: all digits. Came: 1.2345678901234567e+19."""
    text = '{"a":12345678901234567890.123456789,"b":98765432109876543210123,"c":[0.30000000000000001,1.5,-2e3]}'
    value = loads(text.encode())
    assert dumps(value) == text.replace("-2e3", "-2000.0")
    assert value["a"] + 1 == 12345678901234567890.123456789 + 1
    assert type(value["c"][1]) is float
