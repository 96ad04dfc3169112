"""What answers of `/_bulk` mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_assets.index.answers import (
    CREATED,
    DELETED,
    MISSING,
    NEWER,
    REFUSED,
    UPDATED,
    Whole,
    judge_failure,
    judge_items,
)

SECRET = "nobody may read this"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["items", "index", "create", "status", "error", "type", "reason"]), inner, max_size=3
        )
    ),
)


def refused(status: int, kind: str, reason: str, **below: Any) -> dict[str, Any]:
    return {"index": {"status": status, "error": {"type": kind, "reason": reason, **below}}}


def test_each_item_is_judged_by_its_operation() -> None:
    items = [
        {"index": {"status": 201}}, {"index": {"status": 200}},
        {"delete": {"status": 200}}, {"delete": {"status": 404}},
        refused(409, "version_conflict_engine_exception", "[1]: version conflict"),
    ]  # fmt: skip
    verdict = judge_items({"items": items}, ["index", "index", "delete", "delete", "index"])
    assert verdict.whole is Whole.JUDGED
    assert verdict.codes == [CREATED, UPDATED, DELETED, MISSING, NEWER]


@pytest.mark.parametrize(
    "answer",
    [
        None, "", [], {}, {"items": {}}, {"items": []}, {"items": [{}]}, {"items": [None]}, {"items": [{"index": 201}]},
        {"items": [{"delete": {"status": 200}}]}, {"items": [{"index": {"status": "201"}}]}, {"errors": False},
        {"items": [{"index": {"status": 201}}] * 2}, {"items": [{"index": {"status": True}}]},
        {"items": [{"index": {"status": 302}}]},
    ],
)  # fmt: skip
def test_an_answer_that_does_not_fit_counts_for_nothing(answer: Any) -> None:
    assert judge_items(answer, ["index"]).whole is Whole.UNKNOWN


@given(JSON, st.lists(st.sampled_from(["index", "delete", "create"]), max_size=3))
def test_no_answer_breaks_the_judge(answer: Any, operations: list[str]) -> None:
    verdict = judge_items(answer, operations)
    if verdict.whole is Whole.JUDGED:
        assert len(verdict.codes) == len(operations)
        assert {position for position, code in enumerate(verdict.codes) if not code} == set(verdict.again)


def test_what_was_created_has_the_id_that_the_server_made() -> None:
    items = [{"create": {"status": 201, "_id": "a", "_seq_no": 7}}, {"index": {"status": 200, "_id": "b"}}]
    verdict = judge_items({"items": items}, ["create", "index"])
    assert verdict.codes == [CREATED, UPDATED]
    assert (verdict.ids, verdict.seq_nos) == (["a", None], [7, -1])


def test_without_the_id_of_what_was_created_an_answer_counts_for_nothing() -> None:
    assert judge_items({"items": [{"create": {"status": 201, "_seq_no": 7}}]}, ["create"]).whole is Whole.UNKNOWN


def test_what_may_have_been_done_all_the_same_is_told() -> None:
    items = [{"create": {"status": status, "error": {"type": "x"}}} for status in (429, 500, 503, 409, 400)]
    verdict = judge_items({"items": items}, ["create"] * 5)
    assert verdict.again == [0, 1, 2, 3]
    assert verdict.unsure == {1, 2, 3}
    assert verdict.codes == [0, 0, 0, 0, REFUSED]


def test_only_429_and_5xx_are_sent_again() -> None:
    items = [refused(status, "some_exception", "") for status in (429, 500, 503, 400, 413)]
    verdict = judge_items({"items": items}, ["index"] * 5)
    assert verdict.again == [0, 1, 2]
    assert verdict.failed == {1}
    assert verdict.codes == [0, 0, 0, REFUSED, REFUSED]
    assert verdict.busy


@pytest.mark.parametrize(
    ("item", "reason", "detail"),
    [
        (
            refused(400, "mapper_parsing_exception",
                    "failed to parse field [n] of type [float] in document with id '1'. "
                    f"Preview of field's value: '{SECRET}'",
                    caused_by={"type": "number_format_exception", "reason": SECRET}),
            "mapping_refused", "Field n of type float: mapper_parsing_exception, caused by number_format_exception.",
        ),
        (
            refused(400, "illegal_argument_exception", 'Document contains at least one immense term in field="author" '
                    f"(whose UTF8 encoding is longer than the max length 32766) … '{SECRET}'"),
            "value_too_large", "Field author: illegal_argument_exception.",
        ),
        (refused(400, SECRET, SECRET), "document_refused", "The server refused the document: status 400."),
        (refused(400, "x", f"failed to parse field [{SECRET}]"), "document_refused",
         "The server refused the document: x."),
        ({"index": {"status": 400, "error": SECRET}}, "document_refused",
         "The server refused the document: status 400."),
    ],
)  # fmt: skip
def test_a_refusal_keeps_type_and_field_and_drops_the_text(item: dict[str, Any], reason: str, detail: str) -> None:
    verdict = judge_items({"items": [item]}, ["index"])
    assert verdict.refusals == {0: (reason, detail)}


@pytest.mark.parametrize(
    ("status", "kind", "whole"),
    [
        (429, "", Whole.BUSY), (503, "", Whole.UNKNOWN), (500, "", Whole.UNKNOWN), (408, "", Whole.UNKNOWN),
        (413, "", Whole.TOO_LARGE), (400, "action_request_validation_exception", Whole.TOO_LARGE),
        (401, "", Whole.STOPPED), (403, "security_exception", Whole.STOPPED), (404, "", Whole.STOPPED),
        (429, "cluster_block_exception", Whole.STOPPED), (302, "", Whole.STOPPED), (405, "", Whole.STOPPED),
    ],
)  # fmt: skip
def test_a_status_of_the_whole_request_decides(status: int, kind: str, whole: Whole) -> None:
    assert judge_failure(status, kind).whole is whole
