"""Where does FAISS come from?

Its type stubs lack what its Python wrappers add (keyword parameters, selectors of arrays, `cp` of
an index), so for the type checker it is untyped. Nothing else of Shoal imports it.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

faiss: Final[Any] = importlib.import_module("faiss")
