"""Is what a process starts with left out when Python looks for garbage, and nothing else?"""

import gc
import weakref

from shoal.rpc.garbage import spare_what_is_there


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_only_what_was_there_is_spared() -> None:
    early, before = _Cycle(), gc.get_freeze_count()
    seen = weakref.ref(early)
    spare_what_is_there()
    try:
        assert gc.get_freeze_count() > before
        late = _Cycle()
        gone = weakref.ref(late)
        del early, late
        gc.collect()
        assert gone() is None
        assert seen() is not None
    finally:
        gc.unfreeze()
    gc.collect()
    assert seen() is None
