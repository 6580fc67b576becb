"""What does the command `shoal` consist of?

Every command's heavy imports stand in the command: `shoal --help` and `shoal search` start fast.
"""

from __future__ import annotations

import typer
from shoal.cli import (
    cluster,
    context,
    corpora,
    demo,
    documents,
    drift,
    evaluation,
    export,
    feedback,
    index,
    mining,
    rollout,
    search,
    snapshots,
    training,
)
from shoal.cli.errors import Commands

app = typer.Typer(
    name="shoal",
    cls=Commands,
    help="Distributed semantic retrieval: text in, ranked passages out.",
    epilog="Start with `shoal up`, or with `make demo` in the repository.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

app.command()(cluster.up)
app.command()(cluster.down)
app.command()(cluster.status)
app.command()(cluster.scale)
app.add_typer(index.app, name="index")
app.command()(documents.ingest)
app.command()(documents.get)
app.command()(documents.delete)
app.command()(documents.purge)
app.command()(search.search)
app.command()(context.context)
app.command()(snapshots.snapshot)
app.command()(snapshots.restore)
app.command()(snapshots.snapshots)
app.command("eval")(evaluation.evaluate)
app.command()(mining.mine)
app.command()(rollout.rollout)
app.add_typer(training.app, name="train")
app.add_typer(export.app, name="export")
app.add_typer(feedback.app, name="feedback")
app.command()(drift.drift)
app.add_typer(corpora.app, name="corpus")
app.command()(demo.demo)

if __name__ == "__main__":
    app()
