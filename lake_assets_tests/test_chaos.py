"""A sample of `make chaos`: kill -9 at seeded instants, then a plain run. The whole is `make chaos`."""

from __future__ import annotations

import dataclasses
import random
import uuid

import pytest

from lake_assets_tests.chaos.kill import Instant, Ran, choose
from lake_assets_tests.chaos.scenario import STEPS
from lake_assets_tests.chaos.walk import Trial, Usual, differences, walk_killed, walk_usual, walker

SEED = "sample"
SAMPLE = [step for step in STEPS if step.name in ("ingest", "index rebuild")]


@pytest.fixture(scope="module")
def usual(opensearch_url: str) -> list[Usual]:
    return walk_usual(opensearch_url, f"test-{uuid.uuid4().hex[:12]}", SAMPLE)


def test_after_every_kill_a_plain_run_ends_like_the_walk_that_nobody_killed(
    opensearch_url: str, usual: list[Usual]
) -> None:
    trials: list[Trial] = []
    walk_killed(opensearch_url, f"test-{uuid.uuid4().hex[:12]}", usual, SEED, trials.append)
    assert {(trial.step, str(trial.instant)): trial.complaints for trial in trials if trial.complaints} == {}
    assert len(trials) == len(SAMPLE)
    assert sum(trial.was_killed for trial in trials) >= 1


def test_two_kills_in_the_load_do_not_hold_up_the_third_run(opensearch_url: str, usual: list[Usual]) -> None:
    step = STEPS[0]
    with walker(opensearch_url, f"test-{uuid.uuid4().hex[:12]}") as walking:
        step.prepare(walking.folder)
        for _ in range(2):  # of the two slots that the pool of OpenSearch's assets has
            assert walking.run(step, Instant(1, 0.0, True, "OpenSearch")).was_killed
        assert walking.complaints(walking.run(step), usual[0].state) == []


def test_what_differs_is_told(usual: list[Usual]) -> None:
    after = usual[-1].state
    assert differences(after, after) == []
    doubled = {**after.tables, "metrics/size": after["metrics/size"].vstack(after["metrics/size"].head(1))}
    lost = dict(list(after.index.items())[1:])
    count = len(after.index)
    assert differences(dataclasses.replace(after, tables=doubled, index=lost), after) == [
        f"metrics/size: {count + 1} rows instead of {count}, 1 others",
        f"index: {count - 1} documents instead of {count}, 1 differ",
    ]


def test_the_same_seed_chooses_the_same_instants(usual: list[Usual]) -> None:
    chosen = [[choose(choice, each.ran) for each in usual] for choice in (random.Random("a"), random.Random("a"))]
    assert chosen[0] == chosen[1]
    assert all(instant.event <= len(each.ran.events) for instant, each in zip(chosen[0], usual, strict=True))
    assert choose(random.Random("b"), Ran(seconds=2.0)).seconds < 2.0
