"""The language of a text, by py3langid (a model of n-grams of 4 MB in the package, no network), among widely used ones.

lingua reads short sentences better, with 96 MB and over a gigabyte of memory; here thoughts and answers are read.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections import defaultdict
from functools import cache
from typing import Any

from counterpoint.configs.errors import ConfigError

LANGUAGES: dict[str, str] = {
    "af": "Afrikaans", "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian",
    "fi": "Finnish", "fr": "French", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "kn": "Kannada", "ko": "Korean",
    "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mr": "Marathi", "nl": "Dutch",
    "no": "Norwegian", "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili",
    "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
PACKAGE = "py3langid"
_FEWEST_LETTERS = 15
_PART_LETTERS = 40
_LONGEST = 20_000
_NO_PROSE = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+|https?://\S+|[!-~]*[\d_=<>{}|@/][!-~]*",
    re.DOTALL,
)
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_lock = threading.Lock()


def is_known() -> bool:
    """Whether languages can be told here."""
    return importlib.util.find_spec(PACKAGE) is not None


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the language of more than half of a text; None for too few letters, or for none such."""
    shares = language_shares(text)
    found = max(shares, key=lambda code: shares[code], default=None)
    return found if found is not None and shares[found] > 0.5 else None


def language_shares(text: str) -> dict[str, float]:
    """From each language its share of the letters of a text's prose (code, formulas and numbers aside), part by part;
    empty for too few letters. ConfigError where the package is missing."""
    parts = _parts(_NO_PROSE.sub(" ", text[:_LONGEST]))
    letters: dict[str, int] = defaultdict(int)
    for part in parts:
        size = _letters(part)
        if size >= _FEWEST_LETTERS:
            with _lock:
                letters[_detector().classify(part)[0]] += size
    total = sum(letters.values())
    return {code: count / total for code, count in letters.items()} if total else {}


def _parts(text: str) -> list[str]:
    """Sentences, joined to parts that are long enough to tell; the rest belongs to the last."""
    parts: list[str] = []
    part = ""
    for sentence in re.split(r"(?<=[.!?。！？])\s*|\n+", text):
        part = f"{part} {sentence}".strip()
        if _letters(part) >= _PART_LETTERS:
            parts.append(part)
            part = ""
    if _letters(part) >= _FEWEST_LETTERS or not parts:
        parts.append(part)
    return parts


def _letters(text: str) -> int:
    """Letters; one of Chinese, Japanese or Korean tells as much as three."""
    return sum(character.isalpha() for character in text) + 2 * len(_WIDE.findall(text))


@cache
def _detector() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ConfigError(f"languages are told by {PACKAGE}: pip install 'counterpoint[eval]'") from None
    made: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    made.set_languages([code for code in LANGUAGES if code in set(made.labels)])
    return made
