"""Do the commands print what is documented, and fail as people can understand?

`--json` is compared with stored documents: UPDATE_GOLDEN=1 stores them anew, for a change of shape
that is meant.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.cli import cluster
from shoal.cli.main import app
from shoal.v1 import search_pb2
from typer.testing import CliRunner

from tests.harness.cli_broker import document, serving

GOLDEN = Path(__file__).parents[1] / "golden"
PARAGRAPH = {
    "title": "Super Bowl 50",
    "text": "The Broncos defeated the Panthers 24–10 to earn their third title.",
}


@pytest.fixture
def broker():
    with serving() as served:
        yield served


@pytest.fixture
def shoal(broker, tmp_path, monkeypatch):
    """Runs `shoal` against the broker."""
    monkeypatch.setenv("SHOAL_ENDPOINT", broker.endpoint)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))

    def run(*arguments, stdin=None):
        return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)

    return run


@pytest.fixture
def xquad(broker):
    broker.indexes["xquad"] = {
        "p000": document("p000", **PARAGRAPH, metadata={"year": 2016, "teams": ["DEN", "CAR"]}),
        "p001": document("p001", "Another paragraph, about rivers."),
    }
    broker.versions["xquad"] = 3


def golden(name, done, code=0):
    assert (done.exit_code, done.stderr) == (code, "")
    printed = json.loads(done.stdout)
    path = GOLDEN / f"cli_{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(printed, indent=2, ensure_ascii=False) + "\n")
    assert printed == json.loads(path.read_text())


# What --json prints


def test_search(shoal, xquad):
    golden("search", shoal("search", "xquad", "Who won?", "--json"))


def test_search_explained_names_model_index_and_table_version_of_every_hit(shoal, xquad):
    done = shoal("search", "xquad", "Who won?", "--explain", "--json")
    golden("search_explain", done)
    for hit in json.loads(done.stdout)["hits"]:
        assert {"index", "index_version", "table_version", "encoder_model"} <= set(
            hit["provenance"]
        )


def test_status_and_scale(shoal, xquad):
    golden("status", shoal("status", "--json"))
    golden("scale", shoal("scale", "--shards", 4, "--rerankers", 0, "--json"))


def test_indexes(shoal, xquad):
    golden("index_create", shoal("index", "create", "notes", "--json"))
    golden("index_list", shoal("index", "list", "--json"))
    golden("index_describe", shoal("index", "describe", "xquad", "--json"))
    golden("index_drop", shoal("index", "drop", "notes", "--yes", "--json"))


def test_documents(shoal, xquad):
    golden("get", shoal("get", "xquad", "p000", "--json"))
    golden("delete", shoal("delete", "xquad", "p000", "p001", "--json"))


# What people read


def test_hits_show_document_span_scores_and_text(shoal, xquad):
    done = shoal("search", "xquad", "Who won?")
    assert done.exit_code == 0
    for shown in ("p000", "Super Bowl 50", "passage 0", "characters 0-66", "0.9000", "0.7000"):
        assert shown in done.stdout, shown
    assert "rerank 2.500" in done.stdout
    assert "The Broncos defeated the Panthers 24–10" in done.stdout
    assert "Coverage" not in done.stdout


def test_explanations_show_stages_cache_models_and_coverage(shoal, xquad):
    shown = shoal("search", "xquad", "Who won?", "--explain").stdout
    assert "Time: 36.8 ms (cache 0.1 ms, encode 2.3 ms, search 1.5 ms" in shown
    assert "Cache: miss." in shown
    assert "all-minilm-l6-v2-int8@0123456789ab" in shown
    assert "Coverage: complete, 2 of 2 shards" in shown
    assert "EXACT" in shown


def test_incomplete_coverage_is_always_shown(shoal, xquad, broker):
    broker.incomplete = True
    shown = shoal("search", "xquad", "Who won?").stdout
    assert "INCOMPLETE, 1 of 2 shards, 1 of 2 passages" in shown
    assert "search was cut: shard 1: shard-server-0-0 did not answer [SHARD_UNAVAILABLE]" in shown


def test_the_options_of_a_search_reach_the_broker(shoal, xquad, broker):
    options = "-k 3 --no-rerank --candidates 50 --no-cache --require-complete --per-document 2"
    done = shoal("search", "xquad", "Who?", *options.split(), "--min-table-version", "2")
    assert done.exit_code == 0
    (sent,) = broker.searches
    assert (sent.top_k, sent.rerank.disabled, sent.rerank.candidate_count) == (3, True, 50)
    assert (sent.bypass_cache, sent.require_complete, sent.min_table_version) == (True, True, 2)
    assert sent.group.per_document == 2


def test_contexts_show_their_text_whole_with_what_it_was_taken_from(shoal, xquad, broker):
    done = shoal("context", "xquad", "Who?", "--budget", "300", "-k", "1", "--neighbours", "2")
    (sent,) = broker.contexts
    assert (sent.token_budget, sent.neighbours, sent.search.top_k) == (300, 2, 1)
    assert broker.indexes["xquad"]["p000"].text in done.stdout.replace("\n", " ")
    assert "passage 0 (0.900); characters 0-" in done.stdout
    assert "5 of 300 tokens; 1 hits had no room" in done.stdout


def test_a_document_cannot_steer_the_terminal(shoal, broker):
    broker.indexes["evil"] = {"a\x1b[2J": document("a\x1b[2J", "\x1b]0;owned\x07 text", "[red]t")}
    broker.versions["evil"] = 1
    for command in (("search", "evil", "x", "--explain"), ("get", "evil", "a\x1b[2J")):
        shown = shoal(*command).stdout
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "[red]t" in shown


def test_status_says_what_is_wrong_and_exits_with_1(shoal, xquad, broker):
    assert "is whole" in shoal("status").stdout
    broker.problems = ["encoder-0 does not answer"]
    done = shoal("status")
    assert done.exit_code == 1
    assert "not whole" in done.stdout
    assert "encoder-0 does not answer" in done.stdout


def test_status_is_shown_also_if_indexes_cannot_be_listed(shoal, broker):
    broker.writer_is_away = True
    done = shoal("status", "--json")
    assert json.loads(done.stdout)["indexes"] is None
    assert len(json.loads(done.stdout)["instances"]) == 4
    assert "the indexes cannot be listed: no writer [NOT_READY]" in done.stderr


def test_tables_are_not_folded_in_a_pipe(shoal, xquad):
    (line,) = [each for each in shoal("status").stdout.splitlines() if "shard-server-0-0" in each]
    assert "SHARD_SERVER" in line
    assert "READY" in line


def test_scale_waits_until_the_cluster_is_whole(shoal, broker):
    assert shoal("scale", "--encoders", 2, "--wait").exit_code == 0
    broker.problems = ["encoder-1 starts"]
    done = shoal("scale", "--encoders", 3, "--wait", "--timeout", "0.3")
    assert done.exit_code == 1
    assert "not whole after 0 s: encoder-1 starts" in done.stderr


def test_an_index_is_scaled_by_itself(shoal, broker, xquad):
    done = shoal("scale", "xquad", "--shards", 4, "--wait")
    assert "Declared: xquad: shards 4" in done.stdout
    assert broker.shards == {"xquad": 4}
    assert broker.scale.shards == 2


# What fails


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("search", "nope", "x"), "no index 'nope' [INDEX_NOT_FOUND]; `shoal index list`"),
        (("index", "create", "xquad"), "[INDEX_EXISTS]; choose another name, or drop it"),
        (("search", "xquad", "x", "-k", 1_000_000), "top_k: is 1000000; must be 1 to 1,000"),
        (("search", "xquad", "x", "-k", 0), "top_k: is 0; must be 1 to 1,000"),
        (("search", "xquad", "overload"), "too much to do [OVERLOADED]; try again in 0.2 s"),
        (("index", "drop", "xquad"), "cannot be undone: say --yes"),
        (("get", "nope", "x"), "[INDEX_NOT_FOUND]"),
    ],
)
def test_errors_are_one_line_on_standard_error(shoal, xquad, command, said):
    done = shoal(*command)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("search", "xquad"),
        ("search", "xquad", "x", "-k", "many"),
        ("scale",),
        ("scale", "--shards", "-1"),
        ("ingest", "xquad", "f.jsonl", "--on-error", "pray"),
        ("status", "--endpoint", "nowhere"),
    ],
)
def test_a_wrong_command_line_exits_with_2(shoal, command):
    assert shoal(*command).exit_code == 2


def test_missing_documents_are_named(shoal, xquad):
    done = shoal("get", "xquad", "p000", "p777", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["missing_ids"] == ["p777"]
    assert "p777 is not in xquad" in done.stderr


def test_without_a_broker_the_remedy_is_named(shoal):
    with socket.socket() as taken:  # Bound, but nobody listens.
        taken.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        done = shoal("index", "create", "notes", "--endpoint", endpoint)
    assert done.exit_code == 1
    assert f"no broker at {endpoint}: run `shoal up`" in done.stderr


def test_status_tells_a_silent_broker_from_no_cluster(shoal, monkeypatch):
    from shoal.cluster import lifecycle

    dead = ("status", "--endpoint", "127.0.0.1:1")
    assert "no broker at 127.0.0.1:1: run `shoal up`" in shoal(*dead).stderr
    monkeypatch.setattr(lifecycle, "is_up", lambda _home: True)
    assert "runs, but its broker does not answer: it is restarted" in shoal(*dead).stderr


def test_the_cluster_of_the_home_is_found(shoal, xquad, broker, tmp_path, monkeypatch):
    monkeypatch.delenv("SHOAL_ENDPOINT")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cluster.json").write_text(json.dumps({"endpoint": broker.endpoint}))
    assert shoal("index", "describe", "xquad").exit_code == 0


def test_the_home_is_described_as_the_cluster_writes_it():
    """Names that are repeated in the command line, since importing them takes seconds."""
    from shoal.cli import options
    from shoal.cluster import config, lifecycle

    assert options.INFO_FILE == lifecycle.INFO_FILE
    assert options.HOME_VARIABLE == config.HOME_VARIABLE
    assert options.DEFAULT_ENDPOINT.endswith(f":{config.DEFAULT_BROKER_PORT}")


def test_a_topology_with_an_unknown_key_is_refused(shoal, tmp_path):
    topology = tmp_path / "topology.yaml"
    topology.write_text("scale: {shard: 2}\n")
    done = shoal("up", topology)
    assert done.exit_code == 1
    assert "scale.shard: unknown key; known are" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_up_says_what_to_do_and_if_down_accepts_it(shoal, monkeypatch):
    from shoal.cluster import lifecycle

    info = lifecycle.ClusterInfo("shoal", "127.0.0.1:7600", "127.0.0.1:6379", started_ray=True)

    def already(*_arguments, **_options):
        raise lifecycle.AlreadyUpError("cluster shoal is up at 127.0.0.1:7600: use it")

    monkeypatch.setattr(lifecycle, "up", already)
    monkeypatch.setattr(lifecycle, "read_info", lambda _home: info)
    done = shoal("up")
    assert done.exit_code == 1
    assert "error: cluster shoal is up at 127.0.0.1:7600: use it" in done.stderr
    done = shoal("up", "--if-down", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["endpoint"] == "127.0.0.1:7600"


def test_down_without_a_cluster_says_so(shoal):
    done = shoal("down")
    assert done.exit_code == 0
    assert "no cluster" in done.stdout


def test_export_without_torch_names_the_extra(shoal, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delattr("shoal.training.export", raising=False)
    monkeypatch.delitem(sys.modules, "shoal.training.export", raising=False)
    done = shoal("export", "encoder", "weights", tmp_path / "bundle")
    assert done.exit_code == 1
    assert "install the extra" in done.stderr


def test_starting_imports_nothing_heavy():
    """`shoal --help` and `shoal search` start fast."""
    script = (
        "import sys\n"
        "from shoal.cli.main import app\n"
        "from typer.testing import CliRunner\n"
        "run = CliRunner().invoke\n"
        "assert run(app, ['--help']).exit_code == 0\n"
        "assert 'grpc' not in sys.modules\n"
        "run(app, ['search', 'x', 'y', '--endpoint', '127.0.0.1:1', '--timeout', '0.1'])\n"
        "heavy = 'ray onnxruntime lance pyarrow faiss torch ir_measures numpy redis'\n"
        "print([name for name in heavy.split() if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_every_command_that_prints_results_can_print_json():
    from typer.main import get_command

    def walk(command, path):
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*path, name])
        if not hasattr(command, "commands"):
            yield " ".join(path), command

    options = {
        path: {option for each in command.params for option in each.opts}
        for path, command in walk(get_command(app), [])
    }
    # An export is JSON Lines anyway.
    without = {path for path, known in options.items() if "--json" not in known}
    assert without == {"demo", "feedback export"}
    assert cluster.up.__doc__


def test_an_index_is_shown_with_the_recall_of_its_live_queries(shoal, xquad, broker):
    assert "live queries" not in shoal("index", "describe", "xquad").stdout
    broker.kind = search_pb2.SEARCH_KIND_IVF_PQ
    described = shoal("index", "describe", "xquad").stdout
    recall = "recall of the last 256 live queries without a filter 0.962"
    assert f"{recall}; searched as it was measured" in described
    assert described.count("0.961") == 2  # One for each replica.
    broker.effort = 2.0
    described = shoal("index", "describe", "xquad").stdout
    assert "searched 2 times as hard as it was measured" in described
    assert "0.962" in shoal("status").stdout
