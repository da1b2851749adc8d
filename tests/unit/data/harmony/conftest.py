from __future__ import annotations

import pytest

from counterpoint.data.harmony.official import is_fork


@pytest.fixture(scope="session")
def openai_harmony_itself() -> None:
    """vLLM's own dependency puts another writer of calls and results under the same module name."""
    if is_fork():
        pytest.skip("openai_harmony is oss-harmony's: pip install --force-reinstall openai-harmony")
