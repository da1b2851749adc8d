"""Rules on text: repetition loops against their definition by brute force, flags of tokens, positions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.harmony.text import (
    INK,
    LOOP_PERIOD,
    LOOP_REPEATS,
    LOOP_TOKENS,
    MARKUP,
    PARTIAL,
    SPECIAL,
    repetition_loop,
    token_at,
    token_flags,
)
from counterpoint.data.harmony.vocabulary import N_TEXT, N_VOCAB, byte_ids, load_vocabulary


def find(body: list[int]) -> tuple[int, int, int] | None:
    return repetition_loop(np.array(body, dtype=np.uint32))


def is_loop(body: list[int]) -> bool:
    """The definition, tried for every period and start."""
    a = np.array(body)
    for period in range(1, min(LOOP_PERIOD, len(body) - 1) + 1):
        wanted = max(LOOP_TOKENS, LOOP_REPEATS * period) - period
        edges = np.flatnonzero(np.concatenate([[True], a[period:] != a[:-period], [True]]))
        if any(right - left - 1 >= wanted for left, right in pairwise(edges)):
            return True
    return False


def check_against_definition(body: list[int]) -> None:
    found = find(body)
    assert (found is not None) == is_loop(body)
    if found is not None:
        start, period, length = found
        stretch = body[start : start + length]
        assert stretch[period:] == stretch[:-period]
        assert period <= LOOP_PERIOD
        assert length >= max(LOOP_TOKENS, LOOP_REPEATS * period)


@pytest.mark.parametrize("before", [0, 1, 77, 127, 128, 300])
@pytest.mark.parametrize("period", [1, 2, 63, 64, 65, 100, 128, 129, 255, 256, 300, 511, 512])
def test_the_shortest_loop_is_found_and_one_token_less_is_not(period: int, before: int) -> None:
    length = max(LOOP_TOKENS, LOOP_REPEATS * period)
    unique = iter(range(1000, 100_000))
    head = [next(unique) for _ in range(before)]
    block = [next(unique) for _ in range(period)]
    loop = (block * length)[:length]
    tail = [next(unique) for _ in range(50)]
    assert find([*head, *loop, *tail]) == (before, period, length)
    assert find([*head, *loop[:-1], *tail]) is None
    assert find([*head, *loop]) == (before, period, length)


def test_a_period_beyond_the_limit_is_no_loop() -> None:
    assert find([*range(LOOP_PERIOD + 1)] * 8) is None


def test_a_loop_behind_repeats_of_a_shorter_period_is_found() -> None:
    # The anchor's first token repeats at lag 1, but the loop's period is 3.
    check_against_definition([5, 5, 7] * 100)
    check_against_definition([*[5] * 200, 7] * 6)
    check_against_definition(([5] * 100 + [7]) * 8)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 120)), min_size=1, max_size=5
    )
)
def test_loops_are_those_of_the_definition(parts: list[tuple[list[int], int]]) -> None:
    check_against_definition([i for block, times in parts for i in block * times][:4000])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 520), st.integers(200, 2300), st.integers(0, 200), st.lists(st.integers(0, 2200), max_size=3))
def test_loops_with_faults_in_them_are_those_of_the_definition(
    period: int, length: int, before: int, faults: list[int]
) -> None:
    rng = np.random.default_rng(period * 7919 + length)
    block = rng.integers(0, 50, period).tolist()
    body = [*rng.integers(0, 50, before).tolist(), *(block * length)[:length]]
    for fault in faults:
        body[fault % len(body)] = 99
    check_against_definition(body)


def test_flags_say_what_a_token_can_break() -> None:
    vocabulary, flags = load_vocabulary(), token_flags()
    assert flags.shape == (N_VOCAB,)
    assert (flags[N_TEXT:] == SPECIAL).all()
    assert not (flags[:N_TEXT] & SPECIAL).any()
    single = byte_ids(vocabulary)
    assert flags[single[ord("a")]] == INK
    assert flags[single[ord(" ")]] == 0
    assert flags[single[0xE2]] == PARTIAL | INK
    assert flags[single[ord("<")]] == MARKUP | INK
    (nbsp,) = vocabulary.encode("\xa0")
    assert flags[nbsp] == 0
    for id_ in range(0, N_TEXT, 97):
        text = vocabulary.text_bytes([id_])
        try:
            partial = not text.decode()
        except UnicodeDecodeError:
            partial = True
        assert bool(flags[id_] & PARTIAL) == partial


@given(st.text(min_size=1, max_size=40), st.data())
def test_token_at_is_the_token_that_holds_a_byte(text: str, data: st.DataObject) -> None:
    vocabulary = load_vocabulary()
    ids = vocabulary.encode(text)
    offset = data.draw(st.integers(0, len(text.encode()) - 1))
    at = token_at(ids, offset, vocabulary)
    start = len(vocabulary.text_bytes(ids[:at]))
    assert start <= offset < start + len(vocabulary.text_bytes([ids[at]]))
    assert token_at(ids, len(text.encode()), vocabulary) == len(ids) - 1
