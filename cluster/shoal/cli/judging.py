"""How good is a ranking, by judgments that people made?

Queries and judgments are read in BEIR's layout; the measures are those of ir-measures
(https://ir-measur.es), which takes them from trec_eval and its kin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shoal.cli.output import CliError

# Name of each measure as people write it, and as ir-measures does.
MEASURES: Final = {
    "nDCG@10": "nDCG@10",
    "Recall@10": "R@10",
    "Recall@100": "R@100",
    "MRR@10": "RR@10",
}

# Relevance of documents, by query and document.
Judgments = dict[str, dict[str, int]]
# Score of documents, by query and document.
Run = dict[str, dict[str, float]]


def read_queries(path: Path) -> dict[str, str]:
    """Read queries: a line is an object with `_id` (or `id`) and `text`. Plain or gzipped."""
    from shoal.cli.corpus_file import LineError, opened, parse_line

    queries: dict[str, str] = {}
    with opened(str(path)) as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                fields = parse_line(raw)
            except LineError as error:
                raise CliError(f"{path}:{number}: {error}") from None
            query_id, text = fields.get("_id", fields.get("id")), fields.get("text")
            if not (isinstance(query_id, str) and isinstance(text, str) and text.strip()):
                raise CliError(f"{path}:{number}: needs `_id` and `text`, both strings")
            if query_id in queries:
                raise CliError(f"{path}:{number}: the id {query_id!r} stands above already")
            queries[query_id] = text
    if not queries:
        raise CliError(f"{path} holds no queries")
    return queries


def read_qrels(path: Path) -> Judgments:
    """Read judgments: query, document and score, apart by tabs, or the four columns of TREC."""
    from shoal.cli.corpus_file import opened

    judgments: Judgments = {}
    with opened(str(path)) as lines:
        for number, raw in enumerate(lines, start=1):
            parts = raw.decode("utf-8", "replace").split()
            if not parts or (number == 1 and parts[0] == "query-id"):
                continue
            if len(parts) == 4:  # TREC's second column says nothing.
                del parts[1]
            try:
                query_id, document_id, score = parts
                judgments.setdefault(query_id, {})[document_id] = int(score)
            except ValueError:
                raise CliError(
                    f"{path}:{number}: needs a query's id, a document's id and a whole number"
                ) from None
    return judgments


def judged(queries: Mapping[str, str], judgments: Judgments, limit: int | None) -> dict[str, str]:
    """The queries that a judgment finds something relevant for; the first `limit` of them."""
    relevant = {
        query_id: text
        for query_id, text in queries.items()
        if any(score > 0 for score in judgments.get(query_id, {}).values())
    }
    if not relevant:
        raise CliError("no query has a relevant document: do queries and qrels belong together?")
    return dict(list(relevant.items())[:limit])


def measure(run: Run, judgments: Judgments) -> dict[str, float]:
    """The means over the queries of the run; a query without hits counts as 0."""
    import ir_measures

    parsed = {name: ir_measures.parse_measure(text) for name, text in MEASURES.items()}
    relevant = {query_id: judgments[query_id] for query_id in run}
    means = ir_measures.calc_aggregate(list(parsed.values()), relevant, run)
    return {name: round(float(means[each]), 4) for name, each in parsed.items()}
