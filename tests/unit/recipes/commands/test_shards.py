"""How an evaluation in several processes is told its share."""

from __future__ import annotations

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.recipes.commands.shards import share


def test_a_share_is_a_number_below_the_count() -> None:
    assert share("0/4") == (0, 4)
    assert share("3/4") == (3, 4)


@pytest.mark.parametrize("text", ["4/4", "1", "", "-1/2", "²/3", "0/³", "a/b", "0/0"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="as 0/4"):
        share(text)
