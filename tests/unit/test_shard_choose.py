"""Is the kind that is chosen the one that suits, and does it say why?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.shard.choose import choose_kind
from shoal.shard.footprint import DIRECTORY_BYTES, exact, footprint, postings_bytes
from shoal.shard.kind_names import KIND_NAMES
from shoal.shard.load import build_shards

from tests.harness.shard_corpus import Corpus

GIB = 2**30


def test_without_a_bound_it_is_the_default():
    choice = choose_kind(10**9, 384)
    assert (choice.kind, choice.fits) == ("ivf-pq", True)
    assert "no bound" in choice.reason


def test_what_fits_whole_stays_the_default():
    assert choose_kind(1_000_000, 384, GIB).kind == "ivf-pq"


def test_a_little_less_memory_leaves_out_the_second_code():
    foot = footprint("ivf-pq", 384)
    choice = choose_kind(1_000_000, 384, int(1_000_000 * foot.total) - 1)
    assert choice.kind == "ivf-sq8"
    assert "ivf-pq would take" in choice.reason


def test_much_less_memory_leaves_the_wide_codes_in_files():
    choice = choose_kind(10**9, 384, 256 * GIB)
    assert (choice.kind, choice.fits) == ("ivf-pq", True)
    assert "mapped files" in choice.reason


def test_an_odd_dimension_is_narrower_in_bits():
    assert choose_kind(10**9, 385, 256 * GIB).kind == "ivf-rabitq"


def test_too_little_memory_is_said():
    choice = choose_kind(10**9, 384, 64 * GIB)
    assert not choice.fits
    assert "no kind fits in 64.0 GiB" in choice.reason


def test_a_directory_and_its_postings_take_what_is_reckoned_with(tmp_path):
    corpus = Corpus(tmp_path)
    corpus.write({f"document-{at:06}": corpus.document(f"name {at}") for at in range(500)})
    (main,) = build_shards(corpus.table, None, [0], 1).values()
    assert main.directory.memory_bytes == pytest.approx(500 * DIRECTORY_BYTES, rel=0.01)
    held = main.postings
    each = len(held.positions) / 500, len(held.terms) / 500
    assert len(held.positions) > 2_000
    assert held.memory_bytes == pytest.approx(500 * postings_bytes(*each), rel=0.01)


@given(count=st.integers(1, 10**10), dimension=st.integers(8, 4096), memory=st.integers(1, 2**50))
def test_what_is_said_to_fit_does(count, dimension, memory):
    choice = choose_kind(count, dimension, memory)
    assert choice.kind in KIND_NAMES
    foot = footprint(choice.kind, dimension)
    needed = foot.hot if "mapped files" in choice.reason else foot.total
    assert choice.fits == (needed * count <= memory) or not choice.fits
    assert foot.total < exact(dimension).total + foot.directory + foot.links


@given(count=st.integers(1, 10**9), dimension=st.integers(8, 4096))
def test_more_memory_never_takes_a_kind_that_fits_away(count, dimension):
    fits = [choose_kind(count, dimension, 2**power).fits for power in range(20, 50, 3)]
    assert fits == sorted(fits)
