"""OpenAI's own encoder, `openai-harmony`: it writes system and developer text, and is the oracle in tests.

It reads its vocabulary from the folder in `TIKTOKEN_ENCODINGS_BASE` and downloads it otherwise, so that variable is set
to `vocabulary_folder()` while it loads and restored afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony.once import once
from counterpoint.data.harmony.vocabulary import CHANNEL, START, vocabulary_folder

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding

_VARIABLE = "TIKTOKEN_ENCODINGS_BASE"
_ASSISTANT = 173781


@once
def official_encoding() -> HarmonyEncoding:
    """The one instance of openai-harmony's gpt-oss encoding (0.2 s and 53 MB the first time; never a network)."""
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(vocabulary_folder())
    try:
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    except Exception as error:
        raise ModelError(f"openai-harmony cannot load its vocabulary ({error}): unset {_VARIABLE}") from error
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def is_fork() -> bool:
    """Whether the module `openai_harmony` is that of oss-harmony, which vLLM 0.31 and later installs over it.

    It writes calls and tool results in another order; system and developer messages, for which it is asked here, alike.
    """
    from openai_harmony import Author, Message, Role

    result = Message.from_author_and_content(Author.new(Role.TOOL, "functions.f"), "").with_channel("commentary")
    ids = official_encoding().render(result.with_recipient("assistant"))
    return ids.index(CHANNEL) < ids.index(_ASSISTANT)


def harmony_accepts(ids: Sequence[int]) -> bool:
    """Whether openai-harmony's parser reads the completion `ids`, without a leading `<|start|>assistant`.

    It is a lenient reader: what it accepts may well be malformed. Its panics, which are no `Exception`, count as "no".
    """
    from openai_harmony import Role

    encoding = official_encoding()
    given = list(ids)
    if given[:2] == [START, _ASSISTANT]:
        del given[:2]
    try:
        encoding.parse_messages_from_completion_tokens(given, Role.ASSISTANT)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:
        return False
    return True
