from __future__ import annotations

import os

import pytest

from counterpoint.data.harmony.official import is_fork


@pytest.fixture(scope="session")
def openai_harmony_itself() -> None:
    """vLLM's own dependency puts another writer of calls and results under the same module name. Where CI is set the
    module must be openai-harmony's."""
    if is_fork():
        assert not os.environ.get("CI"), "openai_harmony is oss-harmony's, and CI must compare with openai-harmony"
        pytest.skip("openai_harmony is oss-harmony's: pip install --force-reinstall openai-harmony")
