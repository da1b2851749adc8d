"""Comparisons of lm-evaluation-harness, to set a figure beside published ones: how it reads, right or wrong as it is.

Source: lm-eval 0.4.13, `tasks/gsm8k/gsm8k.yaml` (both filters) and `tasks/gpqa/cot_zeroshot` (`flexible-extract`).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LETTER = re.compile(r"(\([A-Z]\))")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")
_INVALID = "[invalid]"


def gsm8k(final: str, answer: str) -> bool:
    """`gsm8k`, `flexible-extract`: the last number of the final, as a text."""
    return _bare(_last(_FLEXIBLE, final)) == _bare(answer)


def gsm8k_strict(final: str, answer: str) -> bool:
    """`gsm8k`, `strict-match`: the number after the first `####`."""
    found = _STRICT.search(final)
    return _bare(found[1] if found else _INVALID) == _bare(answer)


def gpqa(final: str, answer: str) -> bool:
    """`gpqa_*_cot_zeroshot`, `flexible-extract`: the last letter in round brackets."""
    return _letter(_last(_LETTER, final)) == _letter(answer)


RULES: Mapping[str, Callable[[str, str], bool]] = {
    "lm_eval_gsm8k": gsm8k,
    "lm_eval_gsm8k_strict": gsm8k_strict,
    "lm_eval_gpqa": gpqa,
}


def _last(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.findall(text)
    if not found:
        return _INVALID
    last = found[-1]
    return (next(group for group in last if group) if isinstance(last, tuple) else last).strip()


def _bare(text: str) -> str:
    for pattern in _IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


def _letter(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))
