"""Measures of chains: each by hand, the table and its intervals, and the two sets of chains that exist."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from finer1_lite.birds.species import by_name
from finer1_lite.cot import quality as Q
from finer1_lite.cot.chains import Chain, to_completion
from finer1_lite.cot.released import ReleasedChain
from finer1_lite.evaluate.answers import judge, save_predictions

ROOT = Path(__file__).parents[1]
CHAINS = ROOT / "finer1_lite" / "birds" / "assets" / "reference" / "chains.jsonl"
RELEASED = ROOT.parent / "shared" / "data" / "stage1_chains_202.json"

GOOD = Chain("red crown, brown back.", ["a tarn", "b tarn"], "a tarn: fits. b tarn: blue back.", "a tarn")
POOR = Chain("The a tarn, as the description says.", ["b tarn", "c tarn", "b pell", "d tarn"], "b tarn: no.", "e marl")
BLANK = dict(opening="<think>", analysis="", options_text="", comparison="", prediction="", ending="")


def released(**parts):
    return ReleasedChain(**BLANK | {"options": ("Cape Wren", "House Wren"), "answer": "Cape Wren"} | parts)


# ---- names


@pytest.mark.parametrize("a, b, same", [
    ("Honda Odyssey", "Honda Odyssey Minivan 2012", True), ("BMW X3 SUV 2012", "BMW X3 (2012)", True),
    ("BMW X3 SUV 2012", "a white BMW X3 SUV", True),
    ("bee balm", "Monarda didyma (Bee Balm)", True), ("Wren", "House Wren", True),
    ("colt's foot", "Colt’s Foot", True),
    ("Wren", "Wrentit", False), ("moon orchid", "Angraecum (Comet Orchid)", False), ("", "Wren", False),
    ("BMW M3 2012", "BMW M4 2012", False),
])  # fmt: skip
def test_same_class(a, b, same):
    assert Q.same_class(a, b) == Q.same_class(b, a) == same


@pytest.mark.parametrize("text, name, others, said", [
    ("the 747-400 is longer", "Boeing 747-400", ["Boeing 747-300"], True),
    ("the 747-400 is longer", "Boeing 747-300", ["Boeing 747-400"], False),
    ("Boeing 747 models", "Boeing 747-300", ["Boeing 747-400"], False),
    ("The Z4 is smaller.", "BMW Z4", ["BMW M6"], True),
    ("a Spitfire's wing", "Supermarine Spitfire", ["Hawker Hurricane"], True),
    ("black and white", "Black and Tan Coonhound", ["Beagle"], False), ("two house wrens", "House Wren", [], True),
    ("a wren", "House Wren", ["Cape Wren"], False), ("(bee balm)", "Monarda didyma (Bee Balm)", [], True),
])  # fmt: skip
def test_speaks_of(text, name, others, said):
    assert Q.speaks_of(text, name, others) == said


# ---- one chain


def test_recall_and_leaks():
    assert Q.recall(GOOD, "a tarn") and Q.exact_recall(GOOD, "A Tarn") and not Q.label_leak(GOOD, "a tarn")
    assert not Q.recall(POOR, "a tarn") and Q.label_leak(POOR, "a tarn")
    cars = released(options=("Honda Odyssey",))
    assert Q.recall(cars, "Honda Odyssey Minivan 2012") and not Q.exact_recall(cars, "Honda Odyssey Minivan 2012")
    assert not Q.hint_leak(GOOD) and Q.hint_leak(POOR)
    assert Q.hint_leak(released(prediction="as the provided hints say")) and not Q.hint_leak(released())


def test_coverage_counts_candidates_not_other_names():
    assert Q.coverage(GOOD) == 1 and Q.coverage(POOR) == 0.25
    assert Q.coverage(Chain("x", ["a tarn", "b tarn"], "a tarn: fits. z tarn: blue.", "a tarn")) == 0.5
    assert math.isnan(Q.coverage(released(options=())))


def test_prediction_candidate_and_answer():
    assert Q.predicts_candidate(GOOD) and Q.predicts_answer(GOOD, "a tarn") and not Q.predicts_answer(GOOD, "b tarn")
    assert not Q.predicts_candidate(POOR) and not Q.predicts_answer(GOOD, "")
    assert not Q.predicts_candidate(Chain("x", ["a tarn", "b pell"], "y", "c pell"))  # the family is no name
    said = released(prediction="Unlike the House Wren it is big.\nThe prediction is: It is the Cape Wren (rare).")
    assert Q.predicts_candidate(said) and Q.predicts_answer(said, "Cape Wren")
    assert not Q.predicts_answer(said, "House Wren")  # what comes before the statement does not count
    third = released(options=("Red Cape Wren", "Blue Cape Wren"), prediction="The prediction is: a Blue Cape Wren")
    assert Q.predicts_answer(third, "Blue Cape Wren") and not Q.predicts_answer(third, "Red Cape Wren")
    other = released(prediction="The prediction is: a Robin")
    assert not Q.predicts_candidate(other) and not Q.predicts_answer(other, "Cape Wren")


@pytest.mark.parametrize("analysis, counts", [
    ("red crown, brown back.", (2, 0, 0)), ("A blue back", (0, 1, 0)),
    ("and its crown", (0, 0, 1)), ("its crown", (0, 0, 1)),
    ("Red  Crown, blue back", (1, 1, 0)), ("the bird has a red crown. a bird of the shore.", (1, 0, 1)),
    ("long tail, hidden crown", (0, 1, 1)), ("", (0, 0, 0)),
])  # fmt: skip
def test_attributes_are_true_false_or_neither(analysis, counts):
    assert Q.attribute_counts(analysis, {"red crown", "brown back"}) == counts


def test_words_of_each_part():
    assert Q.word_counts(GOOD) == {
        "words_analysis": 4, "words_options": 4, "words_comparison": 7, "words_prediction": 2, "words": 17,
    }  # fmt: skip
    assert Q.word_counts(released(options_text="Candidates:\n1. Cape Wren"))["words_options"] == 4


def test_distinctness_of_templates_and_of_free_texts():
    same = ["the image shows a red bird with a long tail", "the image shows a red bird with a short tail"]
    distinct, similar = Q.distinctness(same)
    assert distinct == [1, 1] and similar == [6 / 8, 6 / 8]  # six of eight runs of three words
    assert Q.distinctness(["red crown", "blue crown"])[1] == [0, 0]
    assert Q.distinctness(["x y z"] * 3) == ([1 / 3] * 3, [1, 1, 1])
    assert math.isnan(Q.distinctness(["alone"])[1][0])


# ---- a set


def test_frame_and_table_by_hand():
    rows = [Q.Row(GOOD, "a tarn", "a tarn"), Q.Row(None, "a tarn", ""), Q.Row(POOR, "a tarn", "e marl")]
    truth = [["red crown", "green back"], [], ["red crown"]]
    frame, table = Q.chain_frame(rows, truth), Q.quality_table(rows, truth).set_index("metric")
    assert frame.loc[1].dropna().to_dict() == {"readable": 0, "kit_form": 0, "answer_is_label": 0}
    expected = {
        "readable": (2 / 3, 3), "answer_is_label": (1 / 3, 3), "candidates": (3, 2), "four_candidates": (0.5, 2),
        "recall": (0.5, 2), "label_leak": (0.5, 2), "hint_leak": (0.5, 2), "coverage": (0.625, 2),
        "predicts_candidate": (0.5, 2), "predicts_answer": (1, 2), "true_attributes": (0.5, 1),
        "unverifiable": (0.5, 2), "words_prediction": (2, 2), "distinct_analysis": (1, 2), "similar_analyses": (0, 2),
    }  # fmt: skip
    assert {m: (table.value[m], table.n[m]) for m in expected} == {m: pytest.approx(v) for m, v in expected.items()}
    assert "true_attributes" not in Q.chain_frame(rows)


def test_interval_is_the_bootstrap_over_chains_and_repeats():
    rows = [Q.Row(GOOD if i % 4 else POOR, "a tarn", "a tarn") for i in range(100)]
    table = Q.quality_table(rows, seed=1).set_index("metric")
    low, high = table.low["recall"], table.high["recall"]
    assert low < 0.75 < high and high - low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 100), rel=0.15)
    assert table.equals(Q.quality_table(rows, seed=1).set_index("metric"))
    assert (low, high) != tuple(Q.quality_table(rows, seed=2).set_index("metric").loc["coverage", ["low", "high"]])


def test_bad_sets_are_refused():
    with pytest.raises(ValueError, match="no chains"):
        Q.quality_table([])
    with pytest.raises(ValueError, match="1 chains and 2 truths"):
        Q.chain_frame([Q.Row(GOOD, "a tarn", "a tarn")], [[], []])


# ---- texts and files


def test_completions_of_every_form_become_rows():
    text = to_completion(GOOD)
    assert Q.read_row(text, "b tarn") == Q.Row(GOOD, "b tarn", "a tarn")
    wrong = text.replace("<answer> a", "<answer> b")
    assert Q.read_row(wrong, "a tarn") == Q.Row(GOOD, "a tarn", "b tarn")
    tagged = "<analysis>x</analysis><options>a; b</options><comparison>y</comparison><prediction>a</prediction>"
    assert Q.read_row(tagged, "a").answer == "a" and isinstance(Q.read_row(tagged, "a").chain, Chain)
    assert Q.read_row(text.partition("Comparison")[0], "a tarn") == Q.Row(None, "a tarn", "")
    assert Q.read_row(text.partition("<answer>")[0], "a tarn") == Q.Row(GOOD, "a tarn", "")
    theirs = Q.read_row("<think>x\nCandidates\n- a\n- b\n\nFinal Prediction\na</think><answer>a</answer>")
    assert isinstance(theirs.chain, ReleasedChain) and theirs.label == "a"


def test_sampled_answers_from_their_file(tmp_path):
    texts = (to_completion(GOOD), to_completion(GOOD).replace("<answer> a", "<answer> b"), "<think>\nAnalysis: red")
    save_predictions(tmp_path / "tapo_open.jsonl", [judge(i, "a tarn", True, t) for i, t in enumerate(texts)])
    rows = Q.load_rows(tmp_path / "tapo_open.jsonl")
    assert [(row.chain, row.answer) for row in rows] == [(GOOD, "a tarn"), (GOOD, "b tarn"), (None, "")]
    assert list(Q.chain_frame(rows).predicts_answer[:2]) == [1, 0] and Q.bird_truth(rows) is None


@pytest.mark.parametrize("row", [{}, {"messages": []}, {"messages": [{"role": "user"}]}, {"text": None}])
def test_a_row_without_completion_is_named(tmp_path, row):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": "x"}, row]), encoding="utf-8")
    with pytest.raises(ValueError, match="row 2: no completion"):
        Q.load_rows(path)
    with pytest.raises(FileNotFoundError):
        Q.load_rows(tmp_path / "other.json")


def test_the_shipped_chains_by_the_command(capsys):
    Q.main([str(CHAINS)])
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    for metric in ("readable", "kit_form", "exact_recall", "predicts_candidate", "predicts_answer", "answer_is_label"):
        assert lines[metric] == ["1.000", "96", "1.000", "1.000"]
    assert lines["label_leak"][0] == lines["hint_leak"][0] == lines["unverifiable"][0] == "0.000"
    rows = Q.load_rows(CHAINS)
    stated = [(row.label, phrase) for row in rows for phrase in row.chain.analysis.rstrip(".").split(", ")]
    true = [phrase in by_name()[label].describe().split(", ") for label, phrase in stated]
    assert lines["true_attributes"][0] == f"{np.mean(true):.3f}" and len(true) == 96 * 8 and not all(true)
    covered = sum(f"{o}: " in r.chain.comparison for r in rows for o in r.chain.options)
    assert covered == 373  # the measure takes one more, where a species that is no candidate has the family's word
    assert lines["coverage"][0] == f"{(covered + 1) / (96 * 4):.3f}"


@pytest.mark.skipif(not RELEASED.exists(), reason="the released chains are not on this machine")
def test_the_released_half():
    """Of all 404 rows 94 name the label early, 263 mention hints, 368 number four candidates; here 202 rows.

    The two leaks agree with `test_cot.py`. Four candidates have 199 rows, as bulleted lists count here.
    """
    table = Q.quality_table(Q.load_rows(RELEASED)).set_index("metric")
    counts = {m: round(table.value[m] * 202) for m in ("readable", "label_leak", "hint_leak", "four_candidates")}
    assert counts == {"readable": 202, "label_leak": 49, "hint_leak": 142, "four_candidates": 199}
    assert table.value["recall"] > 0.94 > 0.6 > table.value["exact_recall"]
    assert table.value["coverage"] > 0.98 and table.n["coverage"] == 200
