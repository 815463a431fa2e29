"""Checks of settings, and what they say."""

from __future__ import annotations

import pytest

from cips3d.errors import UserError, require_choice


def test_choices() -> None:
    require_choice("--hue", "red", ("red", "blue"))
    with pytest.raises(UserError, match=r"^--hue 'Red' is unknown; choose one of red, blue$"):
        require_choice("--hue", "Red", ("red", "blue"))
