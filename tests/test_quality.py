"""Measures of chains: each by hand, the table and its intervals, and the shipped chains."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from finer1_lite.birds.species import bird_truth, by_name
from finer1_lite.cot import quality as Q
from finer1_lite.cot.chains import Chain, to_completion

CHAINS = Path(__file__).parents[1] / "finer1_lite" / "birds" / "assets" / "reference" / "chains.jsonl"
GOOD = Chain("red crown, brown back.", ["a tarn", "b tarn"], "a tarn: fits. b tarn: blue back.", "a tarn")
POOR = Chain("The a tarn, as the description says.", ["b tarn", "c tarn", "b pell", "d tarn"], "b tarn: no.", "marl")


@pytest.mark.parametrize("analysis, share", [
    ("red crown, brown back.", 1), ("A blue back", 0), ("and its crown", None), ("", None),
    ("Red  Crown, blue back", 0.5), ("the bird has a red crown. a bird of the shore.", 1),
    ("long tail, hidden crown", 0), ("red crown, blue back, gray back", 1 / 3),
])  # fmt: skip
def test_attributes_are_true_false_or_neither(analysis, share):
    found = Q.true_share(analysis, {"red crown", "brown back"})
    assert math.isnan(found) if share is None else found == share


def test_similarity_of_templates_and_of_free_texts():
    same = ["the image shows a red bird with a long tail", "the image shows a red bird with a short tail"]
    assert Q.similarity(same) == [6 / 8, 6 / 8]  # six of eight runs of three words
    assert Q.similarity(["red crown", "blue crown"]) == [0, 0] and Q.similarity(["x y z"] * 3) == [1, 1, 1]
    assert math.isnan(Q.similarity(["alone"])[0])


def test_frame_and_table_by_hand():
    rows = [Q.Row(GOOD, "A tarn", "a tarn"), Q.Row(None, "a tarn", ""), Q.Row(POOR, "a tarn", "marl")]
    truth = [["red crown", "green back"], [], ["red crown"]]
    frame, table = Q.chain_frame(rows, truth), Q.quality_table(rows, truth).set_index("metric")
    assert frame.loc[1].dropna().to_dict() == {"readable": 0, "answer_is_label": 0}
    expected = {
        "readable": (2 / 3, 3), "answer_is_label": (1 / 3, 3), "candidates": (3, 2), "recall": (0.5, 2),
        "label_leak": (0.5, 2), "hint_leak": (0.5, 2), "coverage": (0.625, 2), "predicts_answer": (1, 2),
        "true_attributes": (0.5, 1), "similar_analyses": (0, 2),
    }  # fmt: skip
    assert {m: (table.value[m], table.n[m]) for m in expected} == {m: pytest.approx(v) for m, v in expected.items()}
    assert set(expected) == set(table.index) and "true_attributes" not in Q.chain_frame(rows)
    covered = [GOOD, POOR, Chain("x", ["a tarn", "b tarn"], "a tarn: fits. z tarn: blue.", "a tarn")]
    assert list(Q.chain_frame([Q.Row(chain, "a tarn", "a tarn") for chain in covered]).coverage) == [1, 0.25, 0.5]
    unread = Q.quality_table([Q.Row(None, "a tarn", "")]).set_index("metric")
    assert unread.value["readable"] == 0 and unread.n["similar_analyses"] == 0


def test_interval_is_the_bootstrap_over_chains_and_repeats():
    rows = [Q.Row(GOOD if i % 4 else POOR, "a tarn", "a tarn") for i in range(100)]
    table = Q.quality_table(rows, seed=1).set_index("metric")
    low, high = table.low["recall"], table.high["recall"]
    assert low < 0.75 < high and high - low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 100), rel=0.15)
    assert table.equals(Q.quality_table(rows, seed=1).set_index("metric"))


def test_completions_of_every_form_become_rows():
    text = to_completion(GOOD)
    assert Q.read_row(text, "b tarn") == Q.Row(GOOD, "b tarn", "a tarn")
    assert Q.read_row(text.replace("<answer> a", "<answer> b"), "a tarn") == Q.Row(GOOD, "a tarn", "b tarn")
    tagged = "<analysis>x</analysis><options>a; b</options><comparison>y</comparison><prediction>a</prediction>"
    assert Q.read_row(tagged, "a") == Q.Row(Chain("x.", ["a", "b"], "y.", "a"), "a", "a")
    assert Q.read_row(text.partition("Comparison")[0], "a tarn") == Q.Row(None, "a tarn", "")
    assert Q.read_row(text.partition("<answer>")[0], "a tarn") == Q.Row(GOOD, "a tarn", "")


def test_the_shipped_chains():
    lines = [json.loads(line) for line in CHAINS.read_text(encoding="utf-8").splitlines()]
    rows = [Q.read_row(line["messages"][1]["content"], line["label"]) for line in lines]
    value = Q.quality_table(rows, bird_truth(rows)).set_index("metric").value
    assert len(rows) >= 90 and all(value[["readable", "recall", "predicts_answer", "answer_is_label"]] == 1)
    assert value["label_leak"] == value["hint_leak"] == 0
    stated = [(row.label, phrase) for row in rows for phrase in row.chain.analysis.rstrip(".").split(", ")]
    true = [phrase in by_name()[label].describe().split(", ") for label, phrase in stated]
    assert value["true_attributes"] == pytest.approx(np.mean(true)) and len(true) == len(rows) * 8 and not all(true)
    covered = sum(f"{o}: " in r.chain.comparison for r in rows for o in r.chain.options)
    # a few more count, where a species that is no candidate has the family's word
    assert value["coverage"] == pytest.approx(covered / (4 * len(rows)), abs=0.01) and covered > 3 * len(rows)
    assert bird_truth([Q.Row(GOOD, "no bird", "")]) is None
