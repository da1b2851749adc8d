"""Pairs of completions of one prompt, as tokens, and completions that are rated one by one: what preference
training takes.

Both sides of a pair share their prompt id for id. A pair comes from a preference row, or from a right completion and
the same completion with one fault built in (`counterpoint.data.harmony.negatives`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Generic, TypeVar, get_args

import numpy as np

from counterpoint.configs.errors import DataError, RowError
from counterpoint.configs.preference_section import DpoSettings
from counterpoint.configs.schema import ReadSettings, SourceSettings
from counterpoint.data.conversation import Conversation, Effort, Preference
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.counts.lines import pair_lines
from counterpoint.data.dataset.row_keys import keys_of
from counterpoint.data.dataset.targets import Targets
from counterpoint.data.dataset.training_rows import Quarantine
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.negatives import Negative, fault_masks, negative
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import CHANNEL_CODES, CONTEXT, Example, Span, SpanArrays, actions_of
from counterpoint.data.harmony.vocabulary import CALL, Vocabulary
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.prepared.trees import RowKeys
from counterpoint.data.rows.row import BadRow


@dataclass(frozen=True, slots=True)
class Pair:
    """prompt_ids end with `<|start|>assistant`. Masks: 1 for each token of a side that is compared.

    kind: `given`, or the fault that was built in.
    """

    source: str
    kind: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_mask: list[int]
    rejected_mask: list[int]

    @property
    def tokens(self) -> int:
        """Of the longer side, prompt included."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    def parts(self) -> tuple[list[int], ...]:
        """Everything that training sees."""
        return (self.prompt_ids, self.chosen_ids, self.rejected_ids, self.chosen_mask, self.rejected_mask)


@dataclass(frozen=True, slots=True)
class Rated:
    """A completion that is wanted or not; fields as of `Pair`. kind: `wanted`, `unwanted`, or a fault."""

    source: str
    kind: str
    prompt_ids: list[int]
    ids: list[int]
    mask: list[int]
    wanted: bool

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.ids)

    def parts(self) -> tuple[list[int], ...]:
        """Everything that training sees."""
        return (self.prompt_ids, self.ids, self.mask, [int(self.wanted)])


T = TypeVar("T", Pair, Rated)
Check = Callable[[Conversation, Iterable[Example], Effort], None]
"""Judges what is wanted of a row: RowError where it breaks a rule that costs the row."""


@dataclass
class PairData(Generic[T]):
    """Pairs (or rated completions), and what became of the rows. keys: of the row of each. fingerprint: hash of every
    id and mask in order."""

    pairs: list[T]
    noun: str = "pair"
    report: RowCounter = field(default_factory=RowCounter)
    fingerprint: str = ""
    keys: list[RowKeys] = field(default_factory=list)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(pair.kind for pair in self.pairs)

    def lines(self) -> list[str]:
        """For a person."""
        return pair_lines(self.report, self.kinds, self.noun)


def build_pairs(
    sources: Sequence[SourceSettings],
    data: ReadSettings,
    dpo: DpoSettings,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    quarantine: Path | None = None,
) -> PairData[Pair]:
    """All pairs of the sources, in memory.

    Raises DataError where the share of bad rows passes `data.bad_rows_limit`, where there is no pair, or with
    `too_long: error` for a long one.
    """
    renderer = Renderer(vocabulary, data)
    found: PairData[Pair] = PairData([])
    check = partial(Targets(renderer).check, into=found.report)
    _read(found, sources, data, lambda item: _pairs_of(item, renderer, dpo, seed, check), quarantine)
    return found


def build_rated(
    sources: Sequence[SourceSettings],
    data: ReadSettings,
    dpo: DpoSettings,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    quarantine: Path | None = None,
) -> PairData[Rated]:
    """All rated completions of the sources: rows with a label, both sides of pairs, right completions and their
    negatives. Errors as of `build_pairs`."""
    renderer = Renderer(vocabulary, data)
    found: PairData[Rated] = PairData([], "rated completion")
    check = partial(Targets(renderer).check, into=found.report)
    _read(found, sources, data, lambda item: _rated_of(item, renderer, dpo, seed, check), quarantine)
    return found


def _read(
    found: PairData[T],
    sources: Sequence[SourceSettings],
    data: ReadSettings,
    made_of: Callable[[Conversation | Preference], Iterator[T]],
    quarantine: Path | None,
) -> None:
    """Fills `found` from the sources."""
    report = found.report
    with Quarantine(quarantine) as bad:
        for item in read_conversations(sources, data):
            pairs: list[T] = []
            if not isinstance(item, BadRow):
                try:
                    pairs = list(made_of(item))
                except RowError as error:
                    item = BadRow(item.source, error.kind, error.field, error.what, error.fix)
            report.add(item)
            if isinstance(item, BadRow):
                bad.add(item)
                continue
            report.prompts += not pairs
            kept = [pair for pair in pairs if pair.tokens <= data.max_tokens]
            report.too_long += len(pairs) - len(kept)
            found.pairs += kept
            found.keys += [keys_of(item)] * len(kept)
    _check(found, data, sources)
    found.fingerprint = fingerprint_of(found.pairs)


def pair_of(preference: Preference, renderer: Renderer, loss_on: str = "turn", check: Check | None = None) -> Pair:
    """A preference row as tokens. RowError where nothing of it is compared, or `check` refuses the chosen side."""
    prompt = preference.prompt
    whole = [replace(prompt, messages=(*prompt.messages, *side)) for side in (preference.chosen, preference.rejected)]
    effort = renderer.effort_of(whole[0])
    spans = [renderer.completion_spans(side, len(prompt.messages)) for side in whole]
    (chosen, chosen_mask), (rejected, rejected_mask) = (_side(side, loss_on) for side in spans)
    if not any(chosen_mask) and not any(rejected_mask):
        raise RowError("nothing_compared", "chosen", f"neither side has {loss_on}", "set dpo.loss_on: turn")
    if chosen == rejected:
        raise RowError("same_answers", "rejected", "is the same in tokens", "write two different answers")
    if check is not None:
        check(whole[0], [_compared_part(prompt, spans[0], chosen_mask)], effort)
    ids = renderer.prompt(prompt, effort)
    return Pair(prompt.source, "given", ids, chosen, rejected, chosen_mask, rejected_mask)


def rated_of(
    conversation: Conversation, wanted: bool, renderer: Renderer, loss_on: str = "turn", check: Check | None = None
) -> Rated:
    """The last turn of a labelled row. RowError where nothing of it is compared, or `check` refuses what is wanted."""
    messages = conversation.messages
    start = 1 + max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    if start == len(messages) or messages[-1].role != "assistant":
        raise RowError("no_answer", "row", "does not end in an assistant's answer", "write the answer that is rated")
    spans = renderer.completion_spans(conversation, start)
    ids, mask = _side(spans, loss_on)
    if not any(mask):
        raise RowError("nothing_compared", "row", f"it has no {loss_on}", "set dpo.loss_on: turn")
    opening = replace(conversation, messages=messages[:start])
    effort = renderer.effort_of(conversation)
    if wanted and check is not None:
        check(conversation, [_compared_part(opening, spans, mask)], effort)
    prompt = renderer.prompt(opening, effort)
    return Rated(conversation.source, "wanted" if wanted else "unwanted", prompt, ids, mask, wanted)


def unpaired(pairs: Iterable[Pair]) -> Iterator[Rated]:
    """Both sides of each pair; a wanted side that repeats in consecutive pairs, compared alike, comes once."""
    last: tuple[list[int], ...] | None = None
    for pair in pairs:
        if (pair.prompt_ids, pair.chosen_ids, pair.chosen_mask) != last:
            last = (pair.prompt_ids, pair.chosen_ids, pair.chosen_mask)
            if any(pair.chosen_mask):
                yield Rated(pair.source, "wanted", pair.prompt_ids, pair.chosen_ids, pair.chosen_mask, True)
        if any(pair.rejected_mask):
            kind = "unwanted" if pair.kind == "given" else pair.kind
            yield Rated(pair.source, kind, pair.prompt_ids, pair.rejected_ids, pair.rejected_mask, False)


def built_pairs(
    examples: Iterable[Example],
    kinds: Sequence[Negative],
    each: int,
    vocabulary: Vocabulary,
    seed: int = 0,
    loss_on: str = "turn",
) -> Iterator[Pair]:
    """Pairs of every action of `examples`: as it is, against the same with one fault. What is drawn depends on the
    source, the action and the seed alone. With loss_on `fault` the tokens that differ are compared, else all."""
    for example in examples:
        for number, (start, stop) in enumerate(actions_of(example)):
            prompt, right = example.ids[:start].tolist(), example.ids[start:stop].tolist()
            rng = Random(f"{seed}/{example.source}/{example.turn}/{number}")
            made = 0
            for kind in rng.sample(list(kinds), len(kinds)):
                wrong = negative(kind, right, vocabulary, rng.randrange(2**31)) if made < each else None
                if wrong is not None and wrong != right:
                    made += 1
                    masks = fault_masks(right, wrong) if loss_on == "fault" else ([1] * len(right), [1] * len(wrong))
                    yield Pair(example.source, kind, prompt, right, wrong, *masks)


def _pairs_of(
    item: Conversation | Preference, renderer: Renderer, dpo: DpoSettings, seed: int, check: Check
) -> Iterator[Pair]:
    if isinstance(item, Preference):
        yield pair_of(item, renderer, dpo.loss_on, check)
    elif dpo.negatives:
        assert set(dpo.negatives) <= set(get_args(Negative))
        examples = renderer.examples(item)
        check(item, examples, renderer.effort_of(item))
        yield from built_pairs(
            examples, dpo.negatives, dpo.negatives_each, renderer.vocabulary, seed, loss_on=dpo.loss_on
        )
    else:
        fix = "give pairs (`prompt`, `chosen`, `rejected`), or set dpo.negatives"
        raise RowError("no_pair", "row", "a conversation, not a pair", fix)


def _rated_of(
    item: Conversation | Preference, renderer: Renderer, dpo: DpoSettings, seed: int, check: Check
) -> Iterator[Rated]:
    label = None if isinstance(item, Preference) else item.metadata.get("label")
    if isinstance(item, Conversation) and isinstance(label, bool) and not (label and dpo.negatives):
        yield rated_of(item, label, renderer, dpo.loss_on, check)
    elif isinstance(item, Preference) or dpo.negatives:
        yield from unpaired(_pairs_of(item, renderer, dpo, seed, check))
    else:
        raise RowError("no_label", "label", "missing", "write true or false, give pairs, or set dpo.negatives")


def _side(spans: Sequence[Span], loss_on: str) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    mask: list[int] = []
    for span in spans:
        ids.extend(span.ids)
        mask.extend([int(_compared(span, loss_on))] * len(span.ids))
    return ids, mask


def _compared_part(prompt: Conversation, spans: Sequence[Span], mask: Sequence[int]) -> Example:
    """The completion behind a prompt; weights are 1 where it is compared."""
    ids_N, _, channels_N = SpanArrays().of(list(spans))
    turn, action = len(split_turns(prompt.messages)), int(prompt.messages[-1].role == "tool")
    weights_N = np.asarray(mask, dtype=np.float32)
    return Example(prompt.source, turn, ids_N, weights_N, channels_N, action=action)


def _compared(span: Span, loss_on: str) -> bool:
    if span.channel == CONTEXT or not span.weight > 0:
        return False
    ends = span.part == "terminators"
    if loss_on == "calls":
        return span.part in ("call_header", "call_arguments") or (ends and list(span.ids) == [CALL])
    if loss_on in ("turn", "fault"):
        return True
    return span.part == loss_on or (ends and len(span.ids) == 1 and span.channel == CHANNEL_CODES[loss_on])


def _check(found: PairData[T], data: ReadSettings, sources: Sequence[SourceSettings]) -> None:
    where = ", ".join(source.path for source in sources)
    found.report.check_bad_rows(data.bad_rows_limit, where)
    if data.too_long == "error":
        found.report.check_too_long(data.max_tokens, where, found.noun)
    if found.report.too_long and not found.pairs:
        raise DataError(
            f"{where}: all {found.report.too_long} {found.noun}s are longer than data.max_tokens ({data.max_tokens}): "
            "raise it"
        )
    if not found.pairs:
        raise DataError(f"{where}: no row makes a {found.noun}: give pairs, or conversations and dpo.negatives")


def fingerprint_of(pairs: Iterable[Pair | Rated]) -> str:
    """The hash of every id and mask in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in pair.parts():
            digest.update(np.asarray(ids, dtype=np.int32).tobytes() + b"|")
    return digest.hexdigest()
