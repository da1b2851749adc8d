"""Completions of one prompt in one tree row, so that a group's prompt is computed once for all of it.

Legend: B completions, P width of prompts, C width of completions, R tree rows (one a prompt), S tokens of a tree row.

A tree row is the prompt but its last token, then for each completion that last token again and the completion. So each
source has one target, as TRL's head over pre-shifted labels wants it, for one token more a completion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from counterpoint.data.layout.collate import padding

IGNORED = -100


@dataclass(frozen=True)
class SharedPrompts:
    """Tree rows of a batch of prompts and completions.

    input_ids, position_ids, subtree_end (R, S): as of data/layout/tree.py, padding as of
    data/layout/collate.py. labels
    (R, S): the token after each, IGNORED where it is not of a completion. index (B, C): where each completion token is
    predicted, flat in R x S; n_plain: tokens of the same batch laid out completion by completion.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    subtree_end: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    n_plain: int

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()


def share_prompts(input_ids_BS: torch.Tensor, attention_mask_BS: torch.Tensor, completion: int) -> SharedPrompts:
    """Tree rows of prompts padded on the left and completions (the last `completion` columns) padded on the right.

    `index` of a padded completion position is 0; what is read there has no meaning, as in the plain layout.
    """
    ids, mask = input_ids_BS.cpu(), attention_mask_BS.cpu().bool()
    groups: dict[tuple[int, ...], list[int]] = {}
    for b in range(len(ids)):
        prompt = ids[b, :-completion][mask[b, :-completion]]
        groups.setdefault(tuple(prompt.tolist()), []).append(b)
    lengths = mask[:, -completion:].sum(1).tolist()
    widths = [len(prompt) - 1 + sum(1 + lengths[b] for b in members) for prompt, members in groups.items()]
    shape = len(groups), max(widths)
    rows, position, end = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    labels = torch.full(shape, IGNORED)
    index = torch.zeros(len(ids), completion, dtype=torch.long)
    for r, (prompt, members) in enumerate(groups.items()):
        stem = len(prompt) - 1
        rows[r, :stem], position[r, :stem] = torch.tensor(prompt[:-1], dtype=torch.long), torch.arange(stem)
        end[r, :stem] = widths[r]
        first = stem
        for b in members:
            n = lengths[b]
            own, branch = ids[b, -completion:][:n], slice(first, first + n + 1)
            rows[r, branch] = torch.cat([torch.tensor(prompt[-1:]), own])
            position[r, branch] = torch.arange(stem, stem + n + 1)
            end[r, branch] = first + n + 1
            labels[r, first : first + n] = own
            index[b, :n] = r * shape[1] + torch.arange(first, first + n)
            first += n + 1
        position[r, first:], end[r, first:] = map(torch.from_numpy, padding(first, shape[1]))
    on = input_ids_BS.device
    tensors = (tensor.to(on) for tensor in (rows, position, end, labels, index))
    return SharedPrompts(*tensors, n_plain=input_ids_BS.numel())
