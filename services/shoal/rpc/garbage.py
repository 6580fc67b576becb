"""How is a call kept from waiting while Python looks for garbage?

A collection of the oldest generation looks at every object that holds others, with the
interpreter's lock. After the imports of Ray, Arrow, Lance and gRPC these are some hundred thousand,
and it takes a tenth of a second; nearly all of them live as long as the process. So they are taken
out of it once the process is up: https://docs.python.org/3/library/gc.html#gc.freeze. What comes
later is collected as ever.
"""

from __future__ import annotations

import gc


def spare_what_is_there() -> None:
    """Have no later collection look at what the process has now; for the end of its start."""
    gc.collect()
    gc.freeze()
