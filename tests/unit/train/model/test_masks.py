"""The tree mask against its definition, and against separate sequences run through the real model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.train.model.masks import tree_masks

WINDOW = 4


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """A random forest in depth-first order: each token continues some open path, or starts a new root."""
    path: list[int] = []
    position: list[int] = []
    end: list[int] = []
    for index in range(draw(st.integers(1, 24))):
        keep = draw(st.integers(0, len(path)))
        for closed in path[keep:]:
            end[closed] = index
        path = path[:keep]
        position.append(len(path))
        end.append(-1)
        path.append(index)
    for open_token in path:
        end[open_token] = len(end)
    return position, end


@given(forests())
def test_rule_token_by_token(forest: tuple[list[int], list[int]]) -> None:
    position, end = forest
    masks = tree_masks(torch.tensor([position]), torch.tensor([end]), WINDOW, torch.bool)
    for i in range(len(end)):
        for j in range(len(end)):
            seen = j <= i < end[j]
            assert masks["full_attention"][0, 0, i, j].item() == seen
            assert masks["sliding_attention"][0, 0, i, j].item() == (seen and position[i] - position[j] < WINDOW)


def test_a_tree_of_one_token_sees_itself_only() -> None:
    position = torch.tensor([[0, 1, 0, 0]])
    end = torch.tensor([[2, 2, 3, 4]])
    full = tree_masks(position, end, WINDOW, torch.float32)["full_attention"][0, 0]
    blocked = torch.finfo(torch.float32).min
    assert full[2].tolist() == [blocked, blocked, 0.0, blocked]
    assert full[3].tolist() == [blocked, blocked, blocked, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_branches_equal_separate_sequences(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = GptOssConfig(
        num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, vocab_size=64, hidden_size=32,
        intermediate_size=32, head_dim=8, num_attention_heads=4, num_key_value_heads=2, sliding_window=WINDOW,
        initializer_range=0.2, experts_implementation="eager",
    )  # fmt: skip
    model = GptOssForCausalLM(config).to(dtype).eval()
    trunk, left, right = torch.randint(0, 64, (6,)), torch.randint(0, 64, (7,)), torch.randint(0, 64, (5,))
    row = torch.cat([trunk, left, right])[None]
    position = torch.cat([torch.arange(13), torch.arange(6, 11)])[None]
    end = torch.tensor([[18] * 6 + [13] * 7 + [18] * 5])
    with torch.no_grad():
        tree = model(row, attention_mask=tree_masks(position, end, WINDOW, dtype), position_ids=position).logits[0]
        one = model(torch.cat([trunk, left])[None]).logits[0]
        two = model(torch.cat([trunk, right])[None]).logits[0]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert torch.allclose(tree[:13], one, atol=tolerance, rtol=0)
    assert torch.allclose(tree[13:], two[6:], atol=tolerance, rtol=0)
