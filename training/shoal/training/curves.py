"""How is training's course kept? As numbers (JSON) and as a picture of them (PNG)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

CURVES: Final = "curves.json"
PICTURE: Final = "curves.png"
# More than these make a line without dots.
MANY_POINTS: Final = 30
# What the log calls it, what the axis does.
_PANELS: Final = (
    ("loss", "loss"),
    ("eval_dev_cosine_recall@10", "held-out recall@10"),
    ("temperature", "temperature"),
)


def write_curves(history: Sequence[dict[str, Any]], folder: Path) -> dict[str, list[list[float]]]:
    """Write curves.json and curves.png. Returns [step, value] of each curve, by its name.

    history: the trainer's log.
    """
    curves = {
        label: [[entry.get("step", 0), entry[key]] for entry in history if key in entry]
        for key, label in _PANELS
    }
    (folder / CURVES).write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, (label, points) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        steps, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, values, marker="." if len(points) < MANY_POINTS else "")
        axes.set(title=label, xlabel="step")
        axes.grid(alpha=0.3)
    figure.savefig(folder / PICTURE, dpi=120)
    return curves
