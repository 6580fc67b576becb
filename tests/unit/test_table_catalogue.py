"""Does the catalogue survive crashes and damage, and is it held by one writer?"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.table import (
    Catalogue,
    CatalogueDamagedError,
    DataRootInUseError,
    IndexExistsError,
    IndexNotFoundError,
    PassageTable,
    StorageFullError,
)
from shoal.table.manifest import ManifestState, read_manifest
from shoal.table.versions import VersionRecord, begin, drop, finish


def create(catalogue, name="a", request_id="", make_table=PassageTable.create):
    return catalogue.create(
        name, dimension=4, encoder_model="m@1", request_id=request_id, make_table=make_table
    )


def build(catalogue, uid, *, promote=False):
    """A version that was built; returns its number."""
    entry = catalogue.change_versions(uid, lambda each: begin(each, now_ns=7, promote=promote))
    ready = VersionRecord(entry.last_version, "ready", 0, finish_time_ns=9, codebook_uri="there")
    catalogue.change_versions(uid, lambda each: finish(each, ready))
    return entry.last_version


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def catalogue(root):
    held = Catalogue(root)
    yield held
    held.close()


def test_what_was_entered_is_read_again(root, catalogue):
    entry = create(catalogue)
    create(catalogue, "b")
    build(catalogue, entry.uid, promote=True)
    entries = catalogue.entries()
    catalogue.close()
    again = Catalogue(root)
    assert again.entries() == entries
    assert [each.index_version for each in entries] == [1, 0]
    assert PassageTable.open(again.table_uri(entries[0])).dimension == 4
    again.close()


def test_a_creation_may_be_repeated_with_its_request_id(catalogue):
    first = create(catalogue, request_id="r")
    assert create(catalogue, request_id="r") == first
    for other in ("", "s"):
        with pytest.raises(IndexExistsError, match="'a' already"):
            create(catalogue, request_id=other)


def test_an_index_made_again_has_another_identity(root, catalogue):
    first = create(catalogue)
    assert catalogue.drop("a") == first
    assert not (root / first.folder).exists()
    with pytest.raises(IndexNotFoundError):
        catalogue.drop("a")
    assert create(catalogue).uid != first.uid


def test_the_first_model_stays(catalogue):
    entry = catalogue.create(
        "own", dimension=4, encoder_model="", request_id="", make_table=PassageTable.create
    )
    assert catalogue.record_model(entry.uid, "m@1").encoder_model == "m@1"
    assert catalogue.record_model(entry.uid, "m@2").encoder_model == "m@1"


def test_a_failed_creation_leaves_nothing(root, catalogue):
    def fail(uri, dimension):
        raise StorageFullError(uri, "full")

    with pytest.raises(StorageFullError):
        create(catalogue, make_table=fail)
    assert catalogue.entries() == []
    assert list((root / "indexes").iterdir()) == []
    create(catalogue)


def test_what_a_crash_left_is_removed_by_name_and_nothing_else(root, catalogue):
    entry = create(catalogue)

    class Crash(BaseException):
        pass

    def crash(uri, dimension):
        PassageTable.create(uri, dimension)
        # As after a kill: nothing that follows in this process takes place.
        catalogue._remove = lambda folder: None
        raise Crash

    with pytest.raises(Crash):
        create(catalogue, "b", make_table=crash)
    stranger = root / "indexes" / "not-ours"
    stranger.mkdir()
    catalogue.close()
    assert len(list((root / "indexes").iterdir())) == 3
    again = Catalogue(root)
    assert again.entries() == [entry]
    assert {each.name for each in (root / "indexes").iterdir()} == {
        stranger.name,
        entry.folder.removeprefix("indexes/"),
    }
    again.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing, but there are indexes"),
        (lambda path: path.write_bytes(b""), "is not a catalogue"),
        (lambda path: path.write_text("[]"), "is not a catalogue"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "is not a catalogue"),
        (
            lambda path: path.write_text(path.read_text().replace('"m@1"', '"m@2"')),
            "does not have the checksum",
        ),
        (
            lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9})),
            "has format 9",
        ),
    ],
)
def test_a_damaged_catalogue_is_refused_and_no_data_touched(root, catalogue, damage, message):
    entry = create(catalogue)
    catalogue.close()
    damage(root / "catalogue.json")
    with pytest.raises(CatalogueDamagedError, match=message):
        Catalogue(root)
    PassageTable.open(catalogue.table_uri(entry))
    # The refusal let go of the data root.
    with pytest.raises(CatalogueDamagedError):
        Catalogue(root)


def test_an_index_whose_folder_is_gone_is_reported(root, catalogue):
    entry = create(catalogue)
    catalogue.close()
    (root / entry.folder).rename(root / "elsewhere")
    with pytest.raises(CatalogueDamagedError, match="names index 'a'"):
        Catalogue(root)


def test_a_second_writer_is_refused_and_told_who_holds_the_root(root, catalogue):
    with pytest.raises(DataRootInUseError, match=f"process id {os.getpid()} holds"):
        Catalogue(root)
    script = (
        "import sys; from pathlib import Path; from shoal.table import Catalogue;"
        "Catalogue(Path(sys.argv[1]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=False
    )
    assert f"DataRootInUseError: the writer with process id {os.getpid()} holds" in other.stderr
    catalogue.close()
    Catalogue(root).close()


def folders_of(catalogue, entry):
    return sorted(path.name for path in (catalogue.root / entry.folder / "versions").iterdir())


def test_a_version_that_is_dropped_takes_its_files_along(catalogue):
    entry = create(catalogue)
    for _ in range(2):
        number = build(catalogue, entry.uid)
        Path(catalogue.version_uri(entry, number)).mkdir()
    catalogue.change_versions(entry.uid, lambda each: drop(each, 1))
    assert folders_of(catalogue, entry) == ["2"]


def test_a_failed_build_leaves_word_and_no_files(catalogue):
    entry = create(catalogue)
    catalogue.change_versions(entry.uid, lambda each: begin(each, now_ns=7, promote=False))
    folder = Path(catalogue.version_uri(entry, 1))
    (folder / "segments").mkdir(parents=True)
    (folder / "segments" / "half").write_bytes(b"...")
    failed = VersionRecord(1, "failed", 0, finish_time_ns=9, message="disk full")
    (version,) = catalogue.fail_version(entry.uid, failed).versions
    assert (version.state, version.message, version.create_time_ns) == ("failed", "disk full", 7)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    manifest = read_manifest(folder)
    assert (manifest.state, manifest.message) == (ManifestState.FAILED, "disk full")


def test_what_an_orphan_of_a_build_has_left_is_swept_at_the_next_start(root, catalogue):
    entry = create(catalogue)
    number = build(catalogue, entry.uid)
    for name in (str(number), "17"):
        Path(catalogue.version_uri(entry, number)).with_name(name).mkdir(parents=True)
    catalogue.close()
    again = Catalogue(root)
    assert folders_of(again, entry) == [str(number)]
    again.close()


def test_a_catalogue_of_the_release_before_lists_the_version_that_serves(root, catalogue):
    entry = create(catalogue)
    build(catalogue, entry.uid, promote=True)
    catalogue.close()
    path = root / "catalogue.json"
    stored = json.loads(path.read_text())
    del stored["sha256"]
    for each in stored["entries"]:
        for new in ("versions", "previous_version", "last_version"):
            del each[new]
    digest = hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, **stored}))
    again = Catalogue(root)
    (entry,) = again.entries()
    assert (entry.index_version, entry.last_version) == (1, 1)
    assert [(each.number, each.state) for each in entry.versions] == [(1, "ready")]
    again.close()


def test_a_catalogue_that_says_more_than_is_known_is_refused_by_its_name(root, catalogue):
    create(catalogue)
    catalogue.close()
    path = root / "catalogue.json"
    body = json.loads(path.read_text())
    del body["sha256"]
    body["entries"][0]["from"] = "the future"
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, **body}))
    with pytest.raises(CatalogueDamagedError, match=r"more than this release knows.*from"):
        Catalogue(root)
