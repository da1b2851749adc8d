"""Secrets never reach a log, a report, a checkpoint or a tracker: `redact` hides what looks like one.

Known shapes: Hugging Face tokens (`hf_...`), OpenAI-like keys (`sk-...`), Weights & Biases keys (40 hexadecimal digits,
or `wandb_v1_...`), GitHub tokens, AWS key ids, JSON web tokens, bearer and basic authorization, user info and secret
parameters in URLs, and any value under a key that names a secret (`api_key`, `password`, `HF_TOKEN`). A commit is 40
hexadecimal digits as well: it is kept where its key or the word before it marks it as a commit.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"

# Plain words with these beginnings (hf_messages, sk-learn) have neither digits nor capitals and are shorter.
_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9_])(?:
        (?:hf|api_org)_(?:(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}|[a-z]{24,})
      | sk-(?:(?=[a-z_-]*[A-Z0-9])[A-Za-z0-9_-]{8,}|[a-z_-]{24,})
      | wandb_v\d+_\w{8,}
      | local-[0-9a-f]{40}
      | gh[pousr]_[A-Za-z0-9]{16,} | github_pat_\w{16,}
      | (?:AKIA|ASIA)[A-Z0-9]{16}
      | xox[abposr]-[A-Za-z0-9-]{10,}
      | eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*
    )""",
    re.VERBOSE,
)
_HEX_40 = re.compile(r"(?<![0-9A-Za-z_])[0-9a-fA-F]{40}(?![0-9A-Za-z_])")
_COMMIT_BEFORE = re.compile(
    r"(?:(?:commit(?:_id|_hash)?|revision|rev|sha1?|head|snapshots|resolve|tree|blobs?)[\"'`]?[\s:=/(]{0,3}[\"'`]?|@)$",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(
    r"(authorization[\"']?\s{0,3}[=:]\s{0,3}[\"']?)?\b(bearer|basic)(\s{1,3})([\w.~+/=-]{8,})", re.IGNORECASE
)
# After "bearer": a word, maybe capitalised or of several parts, and the end of its sentence.
_WORD = re.compile(r"[A-Za-z]?[a-z]{1,20}(?:[-/][a-z]{1,20}){0,2}[.:]?")
_URL_USER = re.compile(r"(?<=://)[^\s/\"'<>]+(?=@)")
_URL_SECRET = re.compile(r"(?<=[?&])((?:token|key|sig|signature|code)=)[^\s&#\"'<>]+", re.IGNORECASE)
# `token` alone is an ordinary word here (pad_token, tokens: 512).
_SECRET = (
    r"(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|secret|password|passwd|passphrase"
    r"|(?:hf|hub|hugging_?face|github|gh|api|access|auth|refresh|session|secret|bearer)[_-]?token)"
)
# What goes on after "... looks like a secret: ". A closed list, since any other word may be a passphrase.
_PROSE = (
    r"(?<=\s)(?:keep|take|give|pass|leave|store|write|read|move|drop|hide|make|name|rotate|remove|replace|choose|check|"
    r"find|look|that|this|these|those|they|there|with|without|from|into|when|where|which|what|whoever|never|always|must|"
    r"should|will|does|only|such|some|both|each|your|then)\s+(?-i:[a-z])"
)
_ASSIGNMENT = re.compile(
    rf"({_SECRET}[\"']?\s{{0,3}}[=:]\s{{0,3}}[\"']?)(?!\[hidden\]|{_PROSE})[^\s\"'&,;}})]{{4,}}", re.IGNORECASE
)
_SECRET_KEY = re.compile(rf"{_SECRET}$|authorization|credential|cookie", re.IGNORECASE)
_COMMIT_KEY = re.compile(r"commit|revision|sha\d*$|hash|fingerprint|digest", re.IGNORECASE)


def redact(value: Any) -> Any:
    """`value` with every secret replaced by `[hidden]`: text, or mappings and sequences of it, keys included.

    Numbers, booleans, None, and other objects come back as they are.
    """
    return _redact(value, key="")


def looks_secret(text: str, key: str = "") -> bool:
    """Whether `text` under `key` holds something that `redact` would hide."""
    return _redact(text, key) != text


def _redact(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {_redact(k, "commit"): _redact(v, k if isinstance(k, str) else "") for k, v in value.items()}
    if isinstance(value, list):
        return [_redact(v, key) for v in value]
    if isinstance(value, tuple):
        return tuple(_redact(v, key) for v in value)
    if _SECRET_KEY.search(key) and isinstance(value, str | bytes | int) and not isinstance(value, bool) and value:
        return HIDDEN
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "replace"))
    return _redact_text(value, is_commit=bool(_COMMIT_KEY.search(key))) if isinstance(value, str) else value


def _redact_text(text: str, is_commit: bool) -> str:
    text = _URL_USER.sub(HIDDEN, text)
    text = _URL_SECRET.sub(rf"\1{HIDDEN}", text)
    text = _AUTHORIZATION.sub(lambda found: found[0] if _is_prose(found) else found[0][: -len(found[4])] + HIDDEN, text)
    text = _TOKENS.sub(HIDDEN, text)
    text = _ASSIGNMENT.sub(rf"\1{HIDDEN}", text)
    if is_commit:
        return text
    return _HEX_40.sub(
        lambda found: found[0] if _COMMIT_BEFORE.search(text[max(0, found.start() - 24) : found.start()]) else HIDDEN,
        text,
    )


def _is_prose(found: re.Match[str]) -> bool:
    """Whether "bearer" or "basic" and what follows are words ("basic arithmetic"), and no credentials."""
    header, scheme, _, value = found.groups()
    if header is not None:
        return False
    if scheme.lower() == "bearer":
        return _WORD.fullmatch(value) is not None
    try:
        decoded = base64.b64decode(value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4), validate=True)
    except ValueError:
        return True
    return b":" not in decoded  # credentials are base64 of `user:password`
