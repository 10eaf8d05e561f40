"""The page of results: figures from the tables, rounded to their intervals, the same in Markdown and HTML."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from finer1_lite.evaluate.statistics import over_seeds
from studies.page import MAKERS, Part, markdown, rounded, webpage, wide, write_page


def test_the_page_holds_the_figures_of_its_table(tmp_path):
    rows = [{"seed": s, "baseline": b, "protocol": "open", "split": "seen", "value": v + s / 50, "n": 9, "met": f"met {b}"}
            for s in (0, 1) for b, v in (("poor", 0.1), ("good", 0.5))]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "baselines.csv", index=False)
    paths = write_page(tmp_path)
    assert [p.name for p in paths] == ["summary.md", "summary.html"]
    text, page = (p.read_text() for p in paths)
    assert "2 seed(s)" in text and "best is `good` with 51 (38 to 64)%" in text  # t(1) = 12.7, half of a gap of 2 points
    lines = [line for line in text.splitlines() if line.startswith("| ") and "met" in line]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| good", "| poor"]  # best first
    for cell in re.findall(r"\d+ \(-?\d+ to \d+\)", text):
        assert cell in page
    assert "Ablations" not in text  # its table is not there


def test_pictures_are_inside_the_web_page(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG picture")
    part = Part("A & B", "First.\n\n- one\n- two", pd.DataFrame({"x": [None, "y"]}), "a.png")
    page = webpage(part, tmp_path)
    assert "data:image/png;base64,iVBORyBwaWN0dXJl" in page and "A &amp; B" in page and page.count("<li>") == 2
    assert "![A & B](a.png)" in markdown(part) and "| y |" in markdown(part)


def test_one_seed_has_no_interval_and_narrow_ones_get_a_decimal():
    one = over_seeds(pd.DataFrame([{"seed": 0, "m": "a", "s": "x", "value": 0.123}]), ["m", "s"])
    assert wide(one, "m", ["s"]).iloc[0].tolist() == ["a", "12.3"]
    assert rounded(0.5, 0.496, 0.504) == "50.0 (49.6 to 50.4)" and rounded(0.5, 0.4, 0.6) == "50 (40 to 60)"


def test_one_seed_makes_a_page_too(tmp_path):
    committed = Path(__file__).parents[1] / "studies" / "results"
    for name in ("transfer.csv", "baselines.csv", "why.csv"):
        rows = pd.read_csv(committed / name)
        rows[rows.seed == 0].to_csv(tmp_path / name, index=False)
    rows = pd.read_csv(committed / "ablations.csv")
    rows.assign(each_seed=0.5).to_csv(tmp_path / "ablations.csv", index=False)
    assert "## Transfer" in write_page(tmp_path)[0].read_text()


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="make study"):
        write_page(tmp_path)


def test_the_committed_page_is_that_of_the_committed_tables(tmp_path):
    committed = Path(__file__).parents[1] / "studies" / "results"
    for name in [*MAKERS, "differences.csv", "story.png"]:
        shutil.copy(committed / name, tmp_path)
    assert write_page(tmp_path)[0].read_text() == (committed / "summary.md").read_text()
