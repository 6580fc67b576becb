"""How does drift look? Pictures, and one page that shows them: the only home of the plotter."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from shoal.cli.drift import COLUMNS, row_of
from shoal.cli.output import CliError

if TYPE_CHECKING:
    from shoal.v1.drift_pb2 import DriftMeasure, MeasureDriftResponse

REPORT: Final = "report.html"
_BEFORE: Final = "#7f8fa6"
_NOW: Final = "#c23616"
_DPI: Final = 110
_PANELS_IN_ROW: Final = 4
_STYLE: Final = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:right}"
    "td:nth-child(-n+2){text-align:left}.drifted{color:#c23616;font-weight:bold}"
    "img{max-width:100%}"
)


def write_report(name: str, found: MeasureDriftResponse, folder: Path) -> Path:
    """Write report.html, which holds its pictures, and each picture as a PNG; returns the page.

    name: of the index. Raises CliError without the extra, or if the folder cannot be written.
    """
    figures = list(_figures(found))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {title: _png(figure) for title, figure in figures}
        for title, content in pictures.items():
            (folder / f"{title.replace(' ', '-')}.png").write_bytes(content)
        page = folder / REPORT
        page.write_text(_page(name, found, pictures), encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    return page


def _figures(found: MeasureDriftResponse) -> Iterator[tuple[str, Any]]:
    for subject in dict.fromkeys(each.subject for each in found.measures):
        measures = [each for each in found.measures if each.subject == subject and each.bins]
        components = [each for each in measures if each.name.startswith("component")]
        others = [each for each in measures if not each.name.startswith("component")]
        if any(each.subject == subject for each in found.points):
            yield f"{subject} map", _scatter(found, subject)
        if components:
            yield f"{subject} components", _histograms(components)
        if others:
            yield f"{subject} measures", _histograms(others)


def _new_figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CliError(
            "pictures need the extra `plots`: pip install -c constraints.txt -e '.[plots]'"
        ) from error
    # Not pyplot, which keeps every figure and looks for a screen.
    return Figure(figsize=(width, height), layout="constrained")


def _scatter(found: MeasureDriftResponse, subject: str) -> Any:
    figure = _new_figure(6, 4.5)
    axes = figure.subplots()
    for each in found.points:
        if each.subject == subject:
            label, colour = ("before", _BEFORE) if each.reference else ("now", _NOW)
            axes.scatter(each.x, each.y, s=9, alpha=0.5, color=colour, label=label, linewidths=0)
    axes.set(title=f"{subject} vectors", xlabel="component 1", ylabel="component 2")
    axes.legend()
    return figure


def _histograms(measures: Sequence[DriftMeasure]) -> Any:
    columns = min(_PANELS_IN_ROW, len(measures))
    rows = -(-len(measures) // columns)
    figure = _new_figure(3.2 * columns, 2.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, measure in zip(panels, measures, strict=False):
        before, now = np.array(measure.reference_counts), np.array(measure.window_counts)
        places = np.arange(len(before))
        axes.bar(places - 0.2, before / max(before.sum(), 1), 0.4, color=_BEFORE, label="before")
        axes.bar(places + 0.2, now / max(now.sum(), 1), 0.4, color=_NOW, label="now")
        axes.set_title(f"{measure.name}: {measure.stability_index:.2f}", fontsize=9)
        if len(measure.bins) == len(before):
            axes.set_xticks(places, measure.bins, rotation=30, fontsize=7)
        else:  # Bins between edges, each with a tenth of the reference.
            axes.set_xticks([])
    for axes in panels[len(measures) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=7)
    figure.supylabel("share", fontsize=9)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _page(name: str, found: MeasureDriftResponse, pictures: dict[str, bytes]) -> str:
    rows = "".join(
        f"<tr class='{'drifted' if each.alarming else ''}'>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row_of(each))
        + "</tr>"
        for each in found.measures
    )
    shown = "".join(
        f"<h2>{html.escape(title.capitalize())}</h2>"
        f"<img alt='{html.escape(title)}' src='data:image/png;base64,"
        f"{base64.b64encode(content).decode()}'>"
        for title, content in pictures.items()
    )
    head = "".join(f"<th>{html.escape(each)}</th>" for each in COLUMNS)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Drift of "
        f"{html.escape(name)}</title><style>{_STYLE}</style><h1>Drift of {html.escape(name)}</h1>"
        f"<p>{html.escape(found.status)}.</p><p class='drifted'>{html.escape(found.alert)}</p>"
        f"<table><tr>{head}</tr>{rows}</table>{shown}</html>\n"
    )
