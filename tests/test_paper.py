"""The paper's figures: they agree, nothing else is among them, and a run stands beside its own method."""

from finer1_lite.evaluate.answers import METHODS
from finer1_lite.evaluate.paper import SOURCE, other_figures, paper_figures

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


def test_circulating_figures_stay_apart_and_say_what_the_paper_has():
    paper, other = paper_figures(), other_figures()
    assert set(paper.source) == {SOURCE} and SOURCE not in set(other.source) and len(other) > 10
    assert (other.note != "").all()
    key, told = [*KEY, "model"], other[other.source.str.startswith("an earlier")]
    told = told.merge(paper.drop_duplicates(key), on=key, suffixes=("", "_paper"))
    assert len(told) == 9  # three rows of the main table: the note of each quotes the paper's figure
    assert all(f"{value:.2f}" in note for value, note in zip(told.value_paper, told.note))
    assert (told.value - told.value_paper).abs().max() > 25
