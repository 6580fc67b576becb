"""Are filters read, refused and evaluated as they are documented?"""

import datetime
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.filters.errors import InvalidFilterError
from shoal.filters.evaluation import evaluate
from shoal.filters.expression import (
    All,
    Any,
    Compare,
    Has,
    Holds,
    Not,
    OneOf,
    canonical,
    joined,
)
from shoal.filters.fields import (
    MAX_INTEGER,
    Field,
    Kind,
    arrow_type,
    check_fields,
    field_messages,
    kind_of,
    read_fields,
    read_values,
    write_time,
)
from shoal.filters.parsing import MAX_TERMS, check_filter, parse
from shoal.rpc.errors import InvalidFieldError
from shoal.shard.field_columns import (
    MAX_KEPT_POSITIONS,
    Condition,
    FieldColumns,
    Matches,
    TailColumns,
    encoded,
    gathered_fields,
)
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import FieldType, MetadataField

LANG, YEAR = Field("lang", Kind.STRING), Field("year", Kind.INTEGER)
PRICE, OPEN = Field("price", Kind.FLOAT), Field("open", Kind.BOOLEAN)
AT, TAGS = Field("at", Kind.TIMESTAMP), Field("tags", Kind.STRINGS)
FIELDS = (LANG, YEAR, PRICE, OPEN, AT, TAGS)

strings = st.text(st.characters(exclude_categories=("Cs",)), max_size=4) | st.sampled_from("ab")
integers = st.integers(-3, 3) | st.integers(-MAX_INTEGER, MAX_INTEGER)
floats = st.floats(-3, 3) | st.floats(allow_nan=False, allow_infinity=False)
times = st.integers(-(10**15), 4 * 10**15)
of_kind = {
    Kind.STRING: strings,
    Kind.INTEGER: integers,
    Kind.FLOAT: floats,
    Kind.BOOLEAN: st.booleans(),
    Kind.TIMESTAMP: times,
    Kind.STRINGS: st.lists(strings, max_size=3),
}
rows = st.lists(
    st.tuples(*(st.none() | of_kind[field.kind] for field in FIELDS)), min_size=1, max_size=12
)
scalar_fields = [field for field in FIELDS if field is not TAGS]


def literals(field):
    return integers | floats.filter(lambda x: x != int(x)) if field is YEAR else of_kind[field.kind]


def compared(field):
    orders = ["==", "!="] if field is OPEN else ["==", "!=", "<", "<=", ">", ">="]
    return st.builds(Compare, st.just(field), st.sampled_from(orders), literals(field))


def listed(field):
    values = st.lists(literals(field), min_size=1, max_size=4)
    return values.map(lambda given: OneOf(field, tuple(dict.fromkeys(given))))


terms = st.one_of(
    st.sampled_from(scalar_fields).flatmap(compared),
    st.sampled_from(scalar_fields).flatmap(listed),
    st.sampled_from(FIELDS).map(Has),
    strings.map(lambda value: Holds(TAGS, value)),
)
filters = st.recursive(
    terms,
    lambda part: st.one_of(
        part.map(Not),
        st.lists(part, min_size=2, max_size=3).map(lambda parts: joined(All, parts)),
        st.lists(part, min_size=2, max_size=3).map(lambda parts: joined(Any, parts)),
    ),
    max_leaves=8,
)


def says(filter_, row):
    """The documented meaning, in plain Python."""
    match filter_:
        case All(parts):
            return all(says(part, row) for part in parts)
        case Any(parts):
            return any(says(part, row) for part in parts)
        case Not(part):
            return not says(part, row)
    value = row[FIELDS.index(filter_.field)]
    if value is None:
        return False
    match filter_:
        case Has():
            return True
        case Holds(_, wanted):
            return wanted in value
        case OneOf(_, values):
            return value in values
        case Compare(_, operator, wanted):
            return {
                "==": lambda: value == wanted,
                "!=": lambda: value != wanted,
                "<": lambda: value < wanted,
                "<=": lambda: value <= wanted,
                ">": lambda: value > wanted,
                ">=": lambda: value >= wanted,
            }[operator]()
    raise AssertionError(filter_)


def table_of(held):
    columns = [
        pa.array([row[at] for row in held], arrow_type(field.kind))
        for at, field in enumerate(FIELDS)
    ]
    return pa.Table.from_arrays(columns, names=[field.name for field in FIELDS])


@given(filters, rows)
@settings(max_examples=150, deadline=None)
def test_columns_say_what_plain_python_says(filter_, held):
    expected = [says(filter_, row) for row in held]
    plain = table_of(held)
    assert evaluate(filter_, plain.to_batches()[0]).tolist() == expected
    assert evaluate(filter_, encoded(plain).rows).tolist() == expected


@given(filters)
@settings(max_examples=150, deadline=None)
def test_the_canonical_text_reads_back_as_the_same_filter(filter_):
    text = canonical(filter_)
    again = parse(text, FIELDS)
    assert again == filter_
    assert canonical(again) == text


@given(rows, st.lists(st.integers(0, 11), max_size=4), filters, st.data())
@settings(max_examples=150, deadline=None)
def test_folded_and_growing_columns_stay_what_they_were(held, cuts, filter_, data):
    plain = table_of(held)
    bounds = sorted({0, len(held), *(min(cut, len(held)) for cut in cuts)})
    tail = TailColumns()
    for start, end in itertools.pairwise(bounds):
        tail.append(plain.slice(start, end - start))
    condition = Condition(canonical(filter_), filter_)
    count = data.draw(st.integers(0, len(held)))
    expected = [says(filter_, row) for row in held]
    assert tail.matches(condition, count).marks(count).tolist() == expected[:count]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(held), max_size=len(held))))
    kept = [row for row, keep in zip(held, mask, strict=True) if keep]
    folded = gathered_fields(
        [(encoded(plain), mask), (encoded(plain), ~mask)], tail.take(np.flatnonzero(mask))
    )
    rest = [row for row, keep in zip(held, mask, strict=True) if not keep]
    matches = folded.matches(condition)
    order = kept + rest + kept
    assert matches.marks(len(order)).tolist() == [says(filter_, row) for row in order]
    assert matches.count == len(matches.positions())
    assert folded.matches(condition) is matches


def test_columns_keep_a_bounded_number_of_filters():
    columns = FieldColumns(table_of([("en", 1, 1.0, True, 0, ["x"])]).to_batches()[0])
    for year in range(100):
        columns.matches(Condition(f"year == {year}", parse(f"year == {year}", FIELDS)))
    assert len(columns._kept) == 32


def test_positions_are_kept_only_where_they_are_few():
    for count in (MAX_KEPT_POSITIONS, MAX_KEPT_POSITIONS + 1):
        matches = Matches(np.arange(2 * count) % 2 == 1)
        first = matches.positions()
        np.testing.assert_array_equal(first, np.arange(1, 2 * count, 2))
        np.testing.assert_array_equal(matches.positions(), first)
        assert (matches.positions() is first) == (count <= MAX_KEPT_POSITIONS)


def test_codes_are_as_narrow_as_their_dictionaries_allow():
    for distinct, width in ((127, 8), (128, 16), (32_767, 16), (32_768, 32)):
        held = pa.table({"lang": pa.array([str(each) for each in range(distinct)])})
        assert encoded(held).rows.column("lang").indices.type.bit_width == width


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ('lang == "en"', Compare(LANG, "==", "en")),
        ("'en' != lang", Compare(LANG, "!=", "en")),
        ("2020 < year", Compare(YEAR, ">", 2020)),
        ("year <= 2020.0", Compare(YEAR, "<=", 2020)),
        ("price > 1", Compare(PRICE, ">", 1.0)),
        ("open", Compare(OPEN, "==", True)),
        ("!open", Not(Compare(OPEN, "==", True))),
        ("!(year == -1)", Not(Compare(YEAR, "==", -1))),
        ("metadata.lang in ['a', \"b\", 'a']", OneOf(LANG, ("a", "b"))),
        ('"x" in tags', Holds(TAGS, "x")),
        ("has(tags) || has(metadata.at)", Any((Has(TAGS), Has(AT)))),
        ("open && (open && open)", All((Compare(OPEN, "==", True),) * 3)),
        (
            'at >= timestamp("2024-05-01T02:00:00+02:00")',
            Compare(
                AT,
                ">=",
                int(datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC).timestamp()) * 10**6,
            ),
        ),
    ],
)
def test_what_is_written_is_read(text, meaning):
    assert parse(text, FIELDS) == meaning


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read at character 1"),
        ("lang ==", "cannot be read at character 8"),
        ("lang = 'x'", "cannot be read at character 6"),
        ("year ==\n 1 2", "cannot be read at line 2, character 4"),
        ("(" * 40 + "open" + ")" * 40, "nested too deeply: 32"),
        ("yaer == 1", "no field 'yaer': the index declares year:integer, at:timestamp"),
        ("lang == 1", "lang is a field of type string; an integer was given (at character 9)"),
        ("year == 'x'", "year is a field of type integer; a string was given"),
        ("year in [1, true]", "year is a field of type integer; a boolean was given"),
        ("open == 1", "open is a field of type boolean; an integer was given"),
        ("at > '2020-01-01T00:00:00Z'", 'a string was given: write timestamp("...")'),
        ("at > timestamp('2020')", "RFC 3339"),
        ("open < true", "those have no order"),
        ("tags == 'x'", '"..." in tags'),
        ("tags in ['x']", "join"),
        ("'x' in lang", "`in` looks into a field of type strings"),
        ("1 in tags", "tags holds strings; an integer was given"),
        ("year", "no condition by itself"),
        ("true", "a literal is no condition"),
        ("lang == null", "has(field)"),
        ("lang == year", "compares a field with a literal"),
        ("1 == 1", "compares a field with a literal"),
        ("year + 1 == 2", "compares a field with a literal"),
        ("lang.startsWith('x')", "the method startsWith() is not supported: filters know &&"),
        ("tags.exists(t, t == 'x')", "the method exists() is not supported"),
        ("size(tags)", "size() is not supported"),
        ("open ? open : open", "is not supported: filters know"),
        ("lang in []", "the list holds 0 values"),
        (f"year in [{','.join('1' for _ in range(1001))}]", "the list holds 1001 values"),
        ("year == 1e400", "a finite number"),
        ("year == 1u", "a finite number"),
        ("lang.x == 'y'", "no members such as .x"),
        (" || ".join(["open"] * (MAX_TERMS + 1)), "more than 64 terms"),
        ("open" + " " * 4096, "at most 4,096"),
    ],
)
def test_what_is_wrong_is_said(text, said):
    with pytest.raises(InvalidFilterError) as caught:
        check_filter(text, FIELDS)
    assert said in str(caught.value)
    assert caught.value.reason == Reason.REASON_INVALID_FILTER
    assert list(caught.value.failure.fields) == ["filter"]


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("year < 1e300", "year < 1e+300"),
        ("year > -1e19", "year > -1e+19"),
        ("year in [1e19, 1]", "year in [1e+19, 1]"),
        ("year < 9.3e18", "year < 9.3e+18"),
        ("year == 9223372036854775807", "year == 9223372036854775807"),
        ("year >= -9223372036854775808", "year >= -9223372036854775808"),
        ("year >= -9223372036854775808.0", "year >= -9223372036854775808"),
        ("year < 2e3", "year < 2000"),
    ],
)
def test_numbers_beyond_all_integers_reach_the_shards(text, meaning):
    assert check_filter(text, FIELDS) == meaning
    assert parse(meaning, FIELDS) == parse(text, FIELDS)
    held = [("x", year, None, None, None, None) for year in (-MAX_INTEGER, 1, MAX_INTEGER)]
    batch = table_of(held).to_batches()[0]
    expected = [says(parse(text, FIELDS), row) for row in held]
    assert evaluate(parse(meaning, FIELDS), batch).tolist() == expected


def test_a_time_that_its_offset_leads_out_of_all_years_is_refused():
    for text in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(InvalidFilterError, match="RFC 3339"):
            check_filter(f"at < timestamp('{text}')", FIELDS)
        with pytest.raises(InvalidFieldError, match="RFC 3339"):
            read_values({"at": text}, FIELDS)


def test_a_filter_is_refused_here_if_the_shards_would_refuse_it(monkeypatch):
    monkeypatch.setattr("shoal.filters.parsing.canonical", lambda filter_: "year < 1e")
    with pytest.raises(InvalidFilterError, match="cannot be passed on"):
        check_filter("year < 1", FIELDS)


def test_a_filter_on_an_index_without_fields_says_so():
    with pytest.raises(InvalidFilterError, match="the index declares none"):
        check_filter("lang == 'en'", ())


def test_as_much_as_is_allowed_is_read():
    assert check_filter(" || ".join(["open"] * MAX_TERMS), FIELDS)
    deep = "(" * 25 + "!open" + ")" * 25
    assert check_filter(deep, FIELDS) == "!open"
    assert check_filter(f"year in [{','.join(map(str, range(1000)))}]", FIELDS)


def test_absent_values_are_no_to_every_term_and_yes_to_its_contrary():
    row = (None,) * len(FIELDS)
    batch = table_of([row]).to_batches()[0]
    for text in ("lang != 'x'", "!(year > 0) && year <= 0", "has(tags)", "'x' in tags", "open"):
        assert not evaluate(parse(text, FIELDS), batch).any(), text
    for text in ("!(lang != 'x')", "!open", "!has(tags)", "!('x' in tags)"):
        assert evaluate(parse(text, FIELDS), batch).all(), text


def test_fields_travel_and_are_checked():
    assert read_fields(field_messages(FIELDS)) == FIELDS
    assert check_fields(field_messages(FIELDS)) == FIELDS
    assert [kind_of(arrow_type(kind)) for kind in Kind] == list(Kind)
    string = FieldType.FIELD_TYPE_STRING
    for names, path in (
        (["a b"], "fields[0].name"),
        (["ok", "in"], "fields[1].name"),
        (["ok", "OK"], "fields[1].name"),
        ([""], "fields[0].name"),
    ):
        with pytest.raises(InvalidFieldError) as caught:
            check_fields([MetadataField(name=name, type=string) for name in names])
        assert list(caught.value.failure.fields) == [path]
    with pytest.raises(InvalidFieldError, match=r"fields\[0\].type"):
        check_fields([MetadataField(name="x")])
    with pytest.raises(InvalidFieldError, match="at most 64"):
        check_fields([MetadataField(name=f"x{at}", type=string) for at in range(65)])


def test_values_are_read_as_their_fields_want():
    metadata = {"lang": "en", "year": 2020.0, "price": 3, "open": False, "tags": ["a"], "other": {}}
    metadata["at"] = "2024-05-01T00:00:00.5Z"
    assert read_values(metadata, FIELDS) == ("en", 2020, 3.0, False, 1714521600500000, ["a"])
    assert read_values({"lang": None}, FIELDS) == (None,) * len(FIELDS)
    assert write_time(1714521600500000) == "2024-05-01T00:00:00.500Z"


@pytest.mark.parametrize(
    ("metadata", "path", "said"),
    [
        ({"lang": 1}, "document.metadata.lang", "is the number 1, and the field takes a string"),
        ({"year": "x"}, "document.metadata.year", "the string 'x', and the field takes a whole"),
        ({"year": 1.5}, "document.metadata.year", "is the number 1.5"),
        ({"year": True}, "document.metadata.year", "is true"),
        ({"year": 2**53 + 1}, "document.metadata.year", "within +-2^53"),
        ({"price": [1]}, "document.metadata.price", "is a list"),
        ({"open": 0}, "document.metadata.open", "takes true or false"),
        ({"at": "yesterday"}, "document.metadata.at", "RFC 3339"),
        ({"tags": "a"}, "document.metadata.tags", "a list of strings"),
        ({"tags": ["a", 1]}, "document.metadata.tags[1]", "is the number 1"),
        ({"tags": ["a"] * 1001}, "document.metadata.tags", "at most 1,000"),
        ({"lang": "ü" * 2049}, "document.metadata.lang", "4,098 bytes"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_path(metadata, path, said):
    with pytest.raises(InvalidFieldError) as caught:
        read_values(metadata, FIELDS)
    assert list(caught.value.failure.fields) == [path]
    assert said in str(caught.value)
