"""Have the asserts of the oracle say what they compared."""

import pytest

pytest.register_assert_rewrite("tests.model.oracle", "tests.model.traffic", "tests.model.world")
