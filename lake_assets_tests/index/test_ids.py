"""Ids from path and key, and ids that are numbers."""

from __future__ import annotations

import base64
import hashlib

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_assets.errors import ContractBroken
from lake_assets.index.ids import ID_CHARS, numbered_ids, source_ids

TEXTS = st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=20)


@given(TEXTS)
def test_an_id_is_the_hash_of_path_and_key(pairs: list[tuple[str, str]]) -> None:
    path, key = (pl.Series([pair[side] for pair in pairs], dtype=pl.String) for side in (0, 1))
    expected = []
    for one_path, one_key in pairs:
        named = f"{len(one_path.encode())}:{one_path}{one_key}".encode()
        digest = hashlib.blake2b(named, digest_size=16).digest()
        expected.append(base64.urlsafe_b64encode(digest).rstrip(b"=").decode())
    ids = source_ids(path, key)
    assert ids.to_list() == expected
    assert ids.name == "id"
    assert ids.dtype == pl.String
    assert ids.str.len_bytes().eq(ID_CHARS).all()


@given(TEXTS)
def test_different_pairs_have_different_ids(pairs: list[tuple[str, str]]) -> None:
    path, key = (pl.Series([pair[side] for pair in pairs], dtype=pl.String) for side in (0, 1))
    assert source_ids(path, key).n_unique() == len(set(pairs))


def test_the_border_between_path_and_key_counts() -> None:
    path = pl.Series(["a", "ab", "a\x00", "1:a", ""])
    key = pl.Series(["bc", "c", "bc", "", "1:a"])
    assert source_ids(path, key).n_unique() == 5


def test_an_id_stays_the_same_for_ever() -> None:
    ids = source_ids(pl.Series(["comments/2026/part-1.jsonl", "письма/1.eml"]), pl.Series(["reddit:eebbqej", ""]))
    assert ids.to_list() == ["wlOCOJL0xOxhsRkO9dPT5g", "bt47hr4evZUpGkJpM2J8tQ"]


def test_frames_of_slices_and_chunks_give_the_same_ids() -> None:
    path, key = pl.Series(["a", "b", "c", "d"]), pl.Series(["1", "2", "3", "4"])
    whole = source_ids(path, key)
    chunked = source_ids(pl.concat([path[:1], path[1:]], rechunk=False), pl.concat([key[:3], key[3:]], rechunk=False))
    assert chunked.equals(whole)
    assert source_ids(path[2:], key[2:]).equals(whole[2:])


@pytest.mark.parametrize(
    ("path", "key", "sentence"),
    [(["a"], ["b", "c"], "1 paths and 2 keys"), ([None, "a"], ["b", "c"], "1 paths and 0 keys are null")],
)
def test_an_id_needs_both(path: list[str | None], key: list[str | None], sentence: str) -> None:
    with pytest.raises(ContractBroken, match=sentence):
        source_ids(pl.Series(path), pl.Series(key))


NAMED = st.lists(st.tuples(st.sampled_from(["a", "b/c", ""]), st.sampled_from([*"123456789"])), max_size=25)


def named(pairs: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(pairs, schema={"scope": pl.String, "key": pl.String}, orient="row")


@given(st.lists(NAMED, max_size=5))
def test_a_name_gets_one_number_and_keeps_it(rounds: list[list[tuple[str, str]]]) -> None:
    expected: dict[tuple[str, str], str] = {}
    known = named([]).with_columns(id=pl.lit(None, pl.String))
    for pairs in rounds:
        last, asked = len(expected), []

        def reserve(count: int, last: int = last, asked: list[int] = asked) -> range:
            asked.append(count)
            return range(last + 1, last + count + 1)

        fresh = [pair for pair in dict.fromkeys(pairs) if pair not in expected]
        expected |= {pair: str(last + position) for position, pair in enumerate(fresh, start=1)}
        got = numbered_ids(named(pairs), known, reserve)
        assert got.schema == {"scope": pl.String, "key": pl.String, "id": pl.String, "is_new": pl.Boolean}
        assert got.rows() == [(*pair, expected[pair], pair in fresh) for pair in pairs]
        assert asked == ([len(fresh)] if fresh else [])
        known = pl.concat([known, got.filter("is_new").unique().drop("is_new")])
    assert sorted(map(int, known["id"])) == list(range(1, len(expected) + 1))


def test_a_name_is_never_numbered_by_guess() -> None:
    known = named([("a", "1"), ("a", "1")]).with_columns(id=pl.Series(["7", "8"]))
    with pytest.raises(ContractBroken, match="known by two ids"):
        numbered_ids(named([("a", "2")]), known, lambda count: range(count))
    with pytest.raises(ContractBroken, match="is null"):
        numbered_ids(pl.DataFrame({"scope": ["a"], "key": [None]}), known[:1], lambda count: range(count))
    with pytest.raises(ContractBroken, match="2 documents need an id, and 1 numbers"):
        numbered_ids(named([("a", "2"), ("a", "3")]), known[:1], lambda count: range(9, 10))
