"""Bulk bodies and what of `attributes` goes into them."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from lake_assets.index.attributes import DEPTH, TERM_BYTES, project_attributes
from lake_assets.index.bodies import check_columns, estimate_bytes, refuse_rows, write_lines
from lake_assets.index.sender import split_rows

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=40
)


def frame_of(**columns: Any) -> pl.DataFrame:
    first = next(iter(columns.values()))
    count = len(first)
    return pl.DataFrame(
        {"id": [str(row) for row in range(count)], "version": [1] * count, "operation": ["index"] * count, **columns}
    )


def sources(frame: pl.DataFrame) -> list[dict[str, Any]]:
    lines = bytes(write_lines(frame).text).decode().split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines[1::2]]


@given(st.lists(st.tuples(st.text(min_size=1), st.text() | st.none()), min_size=1))
def test_any_text_arrives_as_it_was(rows: list[tuple[str, str | None]]) -> None:
    frame = frame_of(text=pl.Series([text for _, text in rows], dtype=pl.String)).with_columns(
        pl.Series("id", [id_ for id_, _ in rows])
    )
    lines = write_lines(frame)
    for row, (id_, text) in enumerate(rows):
        action, source = lines.body(np.array([row])).decode().removesuffix("\n").split("\n")
        assert json.loads(action) == {"index": {"_id": id_, "version": 1, "version_type": "external_gte"}}
        assert json.loads(source).get("text") == text


def test_a_document_to_create_is_written_without_an_id_and_a_version() -> None:
    frame = frame_of(path=["a"] * 3, key=["1", "2", "3"]).with_columns(
        pl.Series("id", [None, "b", "c"]), pl.Series("operation", ["create", "index", "delete"])
    )
    check_columns(frame)
    assert refuse_rows(frame).to_list() == [None, None, None]
    lines = [json.loads(line) for line in bytes(write_lines(frame).text).decode().split("\n")[:-1]]
    named = {"version": 1, "version_type": "external_gte"}
    assert lines == [
        {"create": {}}, {"path": "a", "key": "1"},
        {"index": {"_id": "b", **named}}, {"path": "a", "key": "2"},
        {"delete": {"_id": "c", **named}},
    ]  # fmt: skip


def test_numbers_and_times_become_what_json_has() -> None:
    moment = dt.datetime(2026, 1, 31, 8, 0, 0, 123456)
    frame = frame_of(
        score=[1.5, float("nan"), float("inf")],
        scores=[[1.0, float("nan")], [], None],
        created_at=pl.Series([moment, None, None], dtype=pl.Datetime("us", "UTC")),
        local_at=pl.Series([moment, None, None], dtype=pl.Datetime("us")),
        cut_ms=pl.Series([moment, None, None], dtype=pl.Datetime("ms", "UTC")),
        price=pl.Series([Decimal("1.50"), None, None]),
        kind=pl.Series(["a", "b", None], dtype=pl.Categorical),
        nothing=[None, None, None],
        _carried=[1, 2, 3],
    )
    first, second, third = sources(frame)
    assert first == {
        "score": 1.5, "scores": [1.0, None], "created_at": "2026-01-31T08:00:00.123456+00:00",
        "local_at": "2026-01-31T08:00:00.123456+00:00", "cut_ms": "2026-01-31T08:00:00.123+00:00", "price": 1.5,
        "kind": "a",
    }  # fmt: skip
    assert second["score"] is None
    assert third["score"] is None
    assert "nothing" not in first


def test_documents_without_a_field_are_empty() -> None:
    assert sources(frame_of(_carried=[1, 2])) == [{}, {}]
    assert sources(frame_of(attributes=['{"a": 1}', None])) == [{"attributes": {"a": 1}}, {"attributes": None}]


def test_rows_that_do_not_follow_each_other_make_one_body() -> None:
    lines = write_lines(frame_of(text=["a", "b", "c", "d"]))
    assert lines.body(np.array([0, 2, 3])) == b"".join(lines.body(np.array([row])) for row in (0, 2, 3))
    assert lines.body(np.arange(4)) == bytes(lines.text)
    assert lines.sizes().sum() == len(lines.text)


def test_the_estimate_is_near_the_size() -> None:
    frame = frame_of(text=["word " * 50] * 100, attributes=['{"a": 1}'] * 100, size_words=[50] * 100)
    assert 0.8 < write_lines(frame).sizes().sum() / estimate_bytes(frame).sum() < 1.2
    assert estimate_bytes(frame.select("id", "version", "operation")).shape == (100,)
    vectors = frame_of(vector=[[0.123456789012345678] * 100] * 10)
    assert 0.5 < write_lines(vectors).sizes().sum() / estimate_bytes(vectors).sum() < 1.5


@given(st.lists(st.integers(1, 100)), st.integers(1, 200))
def test_rows_are_split_into_bodies_in_order(sizes: list[int], body_bytes: int) -> None:
    groups = split_rows(np.array(sizes, dtype=np.int64), body_bytes)
    assert [row for group in groups for row in group.tolist()] == list(range(len(sizes)))
    assert all(len(group) == 1 or sum(sizes[row] for row in group) <= body_bytes for group in groups)
    for group, after in itertools.pairwise(groups):
        assert sum(sizes[row] for row in group) + sizes[after[0]] > body_bytes


@given(st.dictionaries(st.text(), VALUES))
def test_attributes_stay_valid_json_in_one_line(fields: dict[str, Any]) -> None:
    projected, cut = project_attributes(pl.Series([json.dumps(fields, indent=1)]))
    assert "\n" not in projected[0]
    parsed = json.loads(projected[0])
    assert cut[0] or set(parsed) == {name.encode("utf-8", "replace").decode() for name in fields}
    assert depth_of(parsed) <= DEPTH


@given(st.text())
def test_no_text_in_place_of_attributes_breaks_a_body(text: str) -> None:
    projected, cut = project_attributes(pl.Series([text]))
    assert (projected[0] is None and cut[0] == 1) or "\n" not in projected[0]
    json.loads(projected[0] or "null")


@given(st.integers(TERM_BYTES - 10, TERM_BYTES + 10), st.sampled_from(["x", "é", "漢", "😀"]))
def test_long_values_are_cut_at_a_character(count: int, character: str) -> None:
    projected, cut = project_attributes(pl.Series([json.dumps({"name": character * count}, ensure_ascii=False)]))
    value = json.loads(projected[0])["name"]
    assert set(value) == {character}
    assert TERM_BYTES - 10 < len(value.encode()) + len("name") + 1 <= TERM_BYTES or not cut[0]
    assert cut[0] == (len(value) < count)


def test_what_fits_is_passed_on_whole() -> None:
    odd = '{"":{"a.b":[1,-0.5,null,true,"\\u0000"]},"b":{}}'
    projected, cut = project_attributes(pl.Series([odd, None, "null"]))
    assert projected.to_list() == [odd, None, None]
    assert cut.tolist() == [0, 0, 0]


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0
