"""Which errors are the caller's to mend, and how are they said?

Whatever a person can mend is one line on standard error and exit code 1; a wrong command line is
Typer's, with exit code 2. Anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import Any

from shoal.cli.output import CliError, fail
from typer.core import TyperGroup


class Commands(TyperGroup):
    """The commands, with errors said in one place."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Exception as error:  # which of them are ours to say is decided below
            if not isinstance(error, (CliError, *_mendable())):
                raise
            fail(str(error))
            sys.exit(1)


def _mendable() -> tuple[type[Exception], ...]:
    """Errors of the modules that this command has loaded: others cannot have been raised."""
    named = {
        "shoal.cluster.config": ("ConfigError",),
        "shoal.cluster.lifecycle": ("ClusterError",),
        "shoal.cluster.local": ("LocalRayError",),
        "shoal.cluster.actors": ("StartError",),
        "shoal.training.export": ("ExportError",),
        "shoal.training.packed_e5": ("PackedWeightsError",),
        "shoal.training.packed_onnx": ("PackedWeightsError",),
        "shoal.bundle.errors": ("BundleError",),
    }
    return tuple(
        getattr(module, name)
        for path, names in named.items()
        if (module := sys.modules.get(path)) is not None
        for name in names
    )
