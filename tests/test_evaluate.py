"""Evaluation: what counts as right, shuffled options, rows of the results file, the paired bootstrap."""

import numpy as np
import pandas as pd
import pytest

from finer1_lite.birds.dataset import load_birds
from finer1_lite.config import get_profile
from finer1_lite.evaluate import COLUMNS, METHODS, bootstrap_difference, bootstrap_seeds, judge, make_options, predict, result_rows
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_base
from finer1_lite.report import table
from finer1_lite.story import look_alike_classes, one_per_class, tasks_of


@pytest.mark.parametrize("text, correct, strict", [
    ("<think>\nred crown\n</think>\n<answer> tunan tarn </answer>", True, True),
    ("<answer> Tunan Tarn </answer>", True, True),
    ("<answer> a tunan tarn or a b tarn </answer>", True, False),
    ("tunan tarn", True, True),
    ("<think>\ntunan tarn\n</think>\n<answer> b tarn </answer>", False, False),
    ("<think>\ntunan tarn", False, False),  # it broke off while thinking: no answer
    ("", False, False),
])  # fmt: skip
def test_only_the_answer_is_judged(text, correct, strict):
    made = judge(3, "tunan tarn", True, text)
    assert (made.correct, made.strict, made.index) == (correct, strict, 3)


def test_options_are_the_label_and_its_look_alikes_in_every_order():
    nearest = {"a": list("bcdef")}
    drawn = [make_options("a", nearest, np.random.default_rng(seed)) for seed in range(200)]
    assert all(sorted(options) == list("abcd") for options in drawn)
    places = np.bincount([options.index("a") for options in drawn], minlength=4)
    assert places.min() > 25  # 50 expected at each place


def test_rows_hold_each_split_apart():
    made = [judge(i, "a", i < 3, "<answer> a </answer>" if i in (0, 3) else "<answer> b c </answer>") for i in range(5)]
    rows = result_rows(made, "tapo", "open", 7)
    assert all(tuple(row) == COLUMNS for row in rows)
    found = {(r["split"], r["metric"]): (r["value"], r["n"]) for r in rows}
    assert found["seen", "accuracy"] == (pytest.approx(1 / 3, abs=1e-6), 3)
    assert found["unseen", "accuracy"] == (0.5, 2)
    assert found["seen", "words"][0] == pytest.approx((3 + 4 + 4) / 3, abs=1e-6)


def test_bootstrap_pairs_images_and_respects_classes():
    rng = np.random.default_rng(0)
    classes = [f"c{i}" for i in range(40) for _ in range(5)]
    b = (rng.random(200) < 0.5).astype(float)
    a = np.maximum(b, rng.random(200) < 0.3)
    mean, low, high = bootstrap_difference(a, b, classes)
    assert mean == pytest.approx((a - b).mean()) and 0 < low < mean < high
    assert bootstrap_difference(b, b, classes) == (0.0, 0.0, 0.0)
    # All images of a class alike: a class is then one observation, and the interval is about sqrt(5) wider.
    whole = np.repeat((rng.random(40) < 0.5).astype(float), 5)
    _, low1, high1 = bootstrap_difference(whole, np.zeros(200), classes)
    _, low2, high2 = bootstrap_difference(whole, np.zeros(200), [str(i) for i in range(200)])
    assert 1.6 < (high1 - low1) / (high2 - low2) < 3.0


def test_bootstrap_draws_seeds_again_too():
    classes = [str(i) for i in range(50)]
    found = bootstrap_seeds([np.ones(50), np.zeros(50)], [classes, classes])  # the two seeds disagree completely
    assert found == (0.5, 0.0, 1.0)


@pytest.fixture(scope="module")
def birds():
    return load_birds(0, {"val": {True: 1, False: 1}, "test": {True: 0, False: 0}})["val"]


def test_the_base_model_describes_and_cannot_name(birds):
    base = load_base(get_profile("cpu"))
    few = birds.select(range(0, 160, 4))
    cache = VisionCache(base.model, base.processor, few["image"])
    made = predict(base, cache, few, think=False, seed=0)
    assert [p.label for p in made] == few["label"] and all(p.text for p in made)
    assert np.mean([p.correct for p in made]) < 0.1
    assert predict(base, cache, few, think=False, seed=0) == made
    nearest = look_alike_classes(cache, few["label"])
    assert all(label not in others and len(others) == 39 for label, others in nearest.items())


def test_stage_1_takes_one_image_of_each_class(birds):
    labels = ["b", "a", "b", "a", "c"]
    assert one_per_class(labels) == [1, 0, 4]
    tasks = tasks_of(labels, 0)
    assert [t.label for t in tasks] == ["a", "b", "c"] and tasks == tasks_of(labels, 0)


def test_the_table_shows_the_spread_of_several_seeds():
    rows = [
        dict(zip(COLUMNS, (method, split, protocol, "accuracy", 0.5 + seed / 10, 10, seed)))
        for method in METHODS for split in ("seen", "unseen") for protocol in ("open", "closed") for seed in (0, 1)
    ]  # fmt: skip
    text = table(pd.DataFrame(rows))
    assert text.count("55.0 (50-60)") == 20 and [m for m in METHODS if f"`{m}`" in text] == list(METHODS)
    assert "(" not in table(pd.DataFrame(rows[::2])).splitlines()[2]
