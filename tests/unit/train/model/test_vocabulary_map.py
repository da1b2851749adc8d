import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony.vocabulary import CALL, N_VOCAB, RETURN, RestrictedVocabulary, byte_ids, load_vocabulary
from counterpoint.train.model.vocabulary_map import MAP_FILE, VocabularyMap


def small_map() -> VocabularyMap:
    return VocabularyMap.from_ids([CALL, 5, 9, RETURN, 5])


def test_rows_are_the_sorted_ids_once_each() -> None:
    mapping = small_map()
    assert mapping.n_rows == 4
    assert mapping.rows([5, 9, RETURN, CALL]).tolist() == [0, 1, 2, 3]
    assert mapping.ids([3, 0, 1]).tolist() == [CALL, 5, 9]
    assert mapping.row(RETURN) == 2


@given(st.sets(st.integers(0, N_VOCAB - 1), min_size=1, max_size=50), st.data())
def test_ids_survive_the_way_there_and_back(ids: set[int], data: st.DataObject) -> None:
    mapping = VocabularyMap.from_ids(ids)
    drawn = data.draw(st.lists(st.sampled_from(sorted(ids)), max_size=20))
    assert mapping.ids(mapping.rows(drawn)).tolist() == drawn


def test_arrays_and_tensors_keep_their_kind_and_shape() -> None:
    mapping = small_map()
    array = np.array([[5, 9], [CALL, RETURN]], dtype=np.int32)
    assert mapping.rows(array).tolist() == [[0, 1], [3, 2]]
    rows = mapping.rows(torch.from_numpy(array))
    assert isinstance(rows, torch.Tensor)
    assert rows.dtype == torch.int64
    assert torch.equal(mapping.ids(rows), torch.from_numpy(array).long())


@pytest.mark.parametrize("bad", [6, -1, N_VOCAB, 10**9])
def test_an_id_without_a_row_is_named(bad: int) -> None:
    with pytest.raises(ModelError, match=rf"token id {bad}\b"):
        small_map().rows([5, bad])


@pytest.mark.parametrize("bad", [-1, N_VOCAB])
def test_the_identity_knows_its_rows(bad: int) -> None:
    identity = VocabularyMap.identity()
    assert identity.is_identity
    assert identity.rows([0, N_VOCAB - 1]).tolist() == [0, N_VOCAB - 1]
    assert identity.ids([7]).tolist() == [7]
    with pytest.raises(ModelError, match=rf"token id {bad}\b"):
        identity.rows([0, bad])


def test_empty_input_stays_empty() -> None:
    assert small_map().rows([]).tolist() == []
    assert VocabularyMap.identity().ids([]).tolist() == []


def test_saved_and_loaded(tmp_path) -> None:
    mapping = VocabularyMap.from_ids(range(0, 500, 7))
    mapping.save(tmp_path)
    again = VocabularyMap.load(tmp_path)
    assert again.kept is not None
    assert again.kept.tolist() == list(range(0, 500, 7))
    assert json.loads((tmp_path / MAP_FILE).read_text())["ids"][:3] == [0, 7, 14]


def test_the_identity_writes_no_file_and_is_what_no_file_means(tmp_path) -> None:
    VocabularyMap.identity().save(tmp_path)
    assert not (tmp_path / MAP_FILE).exists()
    assert VocabularyMap.load(tmp_path, n_rows=77).n_rows == 77


@pytest.mark.parametrize("content", ["", "[1]", '{"ids": null}', '{"ids": ["x"]}', '{"ids": []}', '{"ids": [999999]}'])
def test_a_damaged_file_is_refused(tmp_path, content: str) -> None:
    (tmp_path / MAP_FILE).write_text(content)
    with pytest.raises(ModelError, match="vocabulary map"):
        VocabularyMap.load(tmp_path)


def test_its_vocabulary_spells_what_it_lacks_in_bytes() -> None:
    full = load_vocabulary()
    assert VocabularyMap.identity().vocabulary(full) is full
    word = full.encode(" assistant")
    mapping = VocabularyMap.from_ids([*byte_ids(full), *word])
    vocabulary = mapping.vocabulary(full)
    assert isinstance(vocabulary, RestrictedVocabulary)
    text = "An assistant, und eine naïve 日本語 🙂"
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert set(word) < set(ids)
    assert mapping.ids(mapping.rows(ids)).tolist() == ids
