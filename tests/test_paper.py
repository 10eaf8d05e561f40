"""The paper's figures: they agree, nothing else is among them, and a run stands beside its own method."""

import pandas as pd
import pytest

from finer1_lite.evaluate.answers import METHODS
from finer1_lite.evaluate.paper import SOURCE, beside, other_figures, paper_figures
from finer1_lite.evaluate.statistics import COLUMNS
from studies.ablations import VARIANTS

KEY = ["method", "protocol", "split", "metric"]


def test_overall_is_the_mean_of_seen_and_unseen():
    keys = ["table", "method", "model", "protocol", "metric"]
    wide = paper_figures().pivot(index=keys, columns="split", values="value")[["seen", "unseen", "overall"]].dropna()
    assert len(wide) == 17  # rows of the paper's tables that have all three
    assert ((wide.seen + wide.unseen) / 2 - wide.overall).abs().max() < 0.0051


def test_a_figure_that_stands_in_two_tables_is_the_same():
    rows = paper_figures()
    again = rows.groupby(["method", "model", "protocol", "split", "metric"]).value
    assert again.size().max() > 1 and again.nunique().max() == 1


def test_figures_are_whole_and_the_names_are_this_kits():
    rows = paper_figures()
    assert not rows.duplicated(["table", "method", "model", "protocol", "split", "metric"]).any()
    percent = rows[rows.protocol.isin(["open", "closed"])]
    assert percent.value.between(0, 100).all() and set(percent.split) == {"seen", "unseen", "overall"}
    assert {*METHODS} - set(percent.method) == set()
    for table in ("components", "rollouts of anchor and positive", "training methods"):
        assert set(rows[rows.table == table].method) <= {*METHODS, *VARIANTS}


def test_circulating_figures_stay_apart_and_say_what_the_paper_has():
    paper, other = paper_figures(), other_figures()
    assert set(paper.source) == {SOURCE} and SOURCE not in set(other.source) and len(other) > 10
    assert (other.note != "").all()
    key, told = [*KEY, "model"], other[other.source.str.startswith("an earlier")]
    told = told.merge(paper.drop_duplicates(key), on=key, suffixes=("", "_paper"))
    assert len(told) == 9  # three rows of the main table: the note of each quotes the paper's figure
    assert all(f"{value:.2f}" in note for value, note in zip(told.value_paper, told.note))
    assert (told.value - told.value_paper).abs().max() > 25


def results(**values):
    """Rows of a results file: two seeds of each (method, protocol, split, metric)."""
    keys = [key.split("__") for key in values]
    return pd.DataFrame([
        dict(zip(COLUMNS, (m, split, protocol, metric, value + shift, 100, seed)))
        for (m, protocol, split, metric), value in zip(keys, values.values()) for seed, shift in ((0, -0.1), (1, 0.1))
    ])  # fmt: skip


def test_a_run_stands_beside_its_own_method():
    mine = results(tapo__closed__seen__accuracy=0.7, tapo__closed__unseen__accuracy=0.5, base__open__seen__accuracy=0.3,
                   tapo__open__unseen__similarity=0.4, base__open__seen__words=60)  # fmt: skip
    found = beside(mine)
    value = found.drop_duplicates(KEY).set_index(KEY)
    row = value.loc["tapo", "closed", "seen", "accuracy"]
    assert (row.paper, row.yours) == (88.97, pytest.approx(70))
    assert value.loc["tapo", "closed", "overall", "accuracy"].yours == pytest.approx(60)  # the mean of its halves
    assert value.loc["tapo", "open", "unseen", "similarity"].yours == pytest.approx(40)
    assert value.yours.notna().sum() == 4  # seen alone has no overall, and inclusion is not similarity
    assert value.loc["siglip", "closed", "seen", "accuracy"].paper == 88.33
    large = beside(mine, "Qwen2.5-VL-7B").query("method == 'tapo' and protocol == 'closed'")
    assert large.paper.tolist() == [91.71, 85.70, 88.71]


def test_accuracy_stands_beside_inclusion_and_bad_results_are_refused():
    found = beside(results(base__open__seen__accuracy=0.4, base__open__unseen__accuracy=0.2))
    found = found.query("metric == 'inclusion' and method == 'base'")
    assert found[["split", "paper", "yours"]].values.tolist() == [["overall", 36.03, pytest.approx(30)]]
    with pytest.raises(ValueError, match="lack metric"):
        beside(results(base__open__seen__accuracy=0.4).drop(columns="metric"))
    with pytest.raises(ValueError, match="above 1"):
        beside(results(base__open__seen__accuracy=40.0))
