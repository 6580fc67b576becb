"""Which names may callers rely on? A name that goes, or comes, is a decision: change this list."""

import inspect
import subprocess
import sys

import shoal.client
from shoal.client import AsyncClient, Client

PUBLIC = [
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "Client",
    "CoverageIncompleteError",
    "DataLossError",
    "DeadlineExceededError",
    "DimensionMismatchError",
    "Document",
    "FailedPreconditionError",
    "IndexExistsError",
    "IndexNotFoundError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidVectorError",
    "ModelMismatchError",
    "NotFoundError",
    "OverloadedError",
    "SearchRequest",
    "ShoalError",
    "StorageFullError",
    "TableVersionAheadError",
    "UnavailableError",
    "UpsertSummary",
    "feedback_on",
    "search_request",
]

METHODS = [
    "add_space",
    "batch_search",
    "build_index_version",
    "clean_index",
    "close",
    "cluster_status",
    "create_index",
    "delete",
    "describe_index",
    "describe_rollout",
    "drop_index",
    "drop_index_version",
    "drop_space",
    "export_feedback",
    "get",
    "index_versions",
    "list_indexes",
    "list_snapshots",
    "measure_drift",
    "promote_index_version",
    "purge",
    "record_feedback",
    "restore_index",
    "retrieve_context",
    "rollback_index",
    "scale",
    "search",
    "set_drift_reference",
    "set_rollout",
    "snapshot_index",
    "update_index",
    "upsert",
]


def public_names(thing):
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def test_the_package_exports_these_names():
    assert shoal.client.__all__ == PUBLIC == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(shoal.client, name).__doc__ is not None or name in {
            "Document",
            "SearchRequest",
        }


def test_everything_else_in_the_package_is_private():
    modules = {name for name in public_names(shoal.client) if name not in PUBLIC}
    assert modules == set()


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    assert public_names(Client) == public_names(AsyncClient) == METHODS
    for name in ["__init__", *METHODS]:
        arguments = [
            [
                (each.name, each.kind, each.default)
                for each in inspect.signature(getattr(kind, name)).parameters.values()
            ]
            for kind in (Client, AsyncClient)
        ]
        assert arguments[0] == arguments[1], name


def test_every_error_is_in_the_tree_that_is_documented():
    from shoal.client import _errors

    errors = [name for name in PUBLIC if name.endswith("Error")]
    for name in errors:
        assert issubclass(getattr(shoal.client, name), shoal.client.ShoalError)
        assert name in _errors.__doc__
    defined = [
        name
        for name, thing in vars(_errors).items()
        if inspect.isclass(thing) and issubclass(thing, Exception) and not name.startswith("_")
    ]
    assert sorted(defined) == errors


def test_importing_the_client_imports_nothing_of_the_services():
    """A caller installs neither numpy nor anything else that serves."""
    script = (
        "import sys, shoal.client\n"
        "banned = ('numpy', 'pydantic', 'ray', 'faiss', 'lance', 'pyarrow', 'onnxruntime', "
        "'shoal.rpc', 'shoal.internal')\n"
        "print([name for name in banned if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
