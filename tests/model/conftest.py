"""Have the asserts of the oracle say what they compared."""

import pytest

pytest.register_assert_rewrite(
    *(
        f"tests.model.{each}"
        for each in ("copies", "oracle", "retention", "searches", "traffic", "world")
    )
)
