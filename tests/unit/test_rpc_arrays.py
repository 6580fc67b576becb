"""Do arrays survive the wire, and is what is not an array refused before it is used?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from shoal.rpc.arrays import (
    FLOAT32,
    MAX_DIMENSION,
    UINT32,
    UINT64,
    pack,
    pack_vectors,
    unit_rows,
    unpack,
    unpack_vectors,
)
from shoal.rpc.errors import InvalidFieldError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Vectors, VectorType

shapes = st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=12)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(st_numpy.arrays(np.float32, shapes, elements=finite))
def test_vectors_survive(rows):
    read = unpack_vectors(Vectors.FromString(pack_vectors(rows).SerializeToString()), "v")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, rows)


@settings(deadline=None)
@given(st_numpy.arrays(np.uint64, st.integers(0, 30)))
def test_ids_survive(ids):
    np.testing.assert_array_equal(unpack(pack(ids, UINT64), UINT64, "ids"), ids)


def test_bytes_are_little_endian_whatever_the_array_is():
    assert pack(np.array([1, 256], dtype=">u4"), UINT32) == b"\x01\0\0\0\0\x01\0\0"
    strided = np.arange(6, dtype=np.float64)[::2]
    assert np.frombuffer(pack(strided, FLOAT32), "<f4").tolist() == [0, 2, 4]


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_a_length_that_is_no_multiple_is_refused(values):
    if len(values) % 8:
        with pytest.raises(InvalidFieldError, match=r"^ids: "):
            unpack(values, UINT64, "ids")
    else:
        assert len(unpack(values, UINT64, "ids")) == len(values) // 8


def vectors(**changes):
    message = pack_vectors(np.ones((2, 3), dtype=np.float32))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"type": VectorType.VECTOR_TYPE_UNSPECIFIED}, "v.type", Reason.REASON_INVALID_FIELD),
        ({"type": 77}, "v.type", Reason.REASON_INVALID_FIELD),
        ({"dimension": 0}, "v.dimension", Reason.REASON_INVALID_FIELD),
        ({"dimension": MAX_DIMENSION + 1}, "v.dimension", Reason.REASON_INVALID_FIELD),
        ({"dimension": 4}, "v.values", Reason.REASON_INVALID_FIELD),
        ({"count": 2**32 - 1}, "v.values", Reason.REASON_INVALID_FIELD),
        ({"values": b"\0"}, "v.values", Reason.REASON_INVALID_FIELD),
        (
            {"values": np.array([1, 2, np.nan] * 2, "<f4").tobytes()},
            "v.values",
            Reason.REASON_INVALID_VECTOR,
        ),
        (
            {"values": np.array([1, 2, -np.inf] * 2, "<f4").tobytes()},
            "v.values",
            Reason.REASON_INVALID_VECTOR,
        ),
    ],
)
def test_wrong_vectors_are_refused_by_field(changes, field, reason):
    with pytest.raises(InvalidFieldError) as caught:
        unpack_vectors(vectors(**changes), "v")
    assert list(caught.value.failure.fields) == [field]
    assert caught.value.reason == reason


def test_another_dimension_than_the_indexs_has_a_reason_of_its_own():
    with pytest.raises(InvalidFieldError) as caught:
        unpack_vectors(vectors(), "v", dimension=384)
    assert caught.value.reason == Reason.REASON_DIMENSION_MISMATCH
    assert unpack_vectors(vectors(), "v", dimension=3).shape == (2, 3)


@settings(deadline=None)
@given(st_numpy.arrays(np.float32, shapes, elements=finite))
def test_rows_come_to_unit_length(rows):
    if not np.linalg.norm(rows.astype(np.float64), axis=1).all():
        with pytest.raises(InvalidFieldError, match="zeros") as caught:
            unit_rows(rows, "v")
        assert caught.value.reason == Reason.REASON_INVALID_VECTOR
        return
    unit = unit_rows(rows, "v")
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, rtol=1e-5)
