"""Chapters are for humans: how long they may be, and what a saved page must not show."""

import json
import re
from pathlib import Path

import pytest

CHAPTERS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NUMBERED = [path for path in CHAPTERS if path.name[0].isdigit()]


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def words(cell: dict) -> int:
    """Words that are read on the way: no table, no code, no formula, no badge, nothing that is folded."""
    folded = r"(?s:```.*?```|<details>.*?</details>|\$\$.*?\$\$)|^\|.*$|^\[!\[.*$"
    return len(re.sub(folded, "", "".join(cell["source"]), flags=re.M).split())


def test_eight_chapters_of_about_thirteen_thousand_words():
    assert [path.name[:2] for path in NUMBERED] == [f"0{i}" for i in range(8)]
    counts = {path.name: sum(map(words, cells(path, "markdown"))) for path in NUMBERED}
    assert sum(counts.values()) <= 13_000 and max(counts.values()) <= 2_000, counts
    assert len((Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").split()) <= 1_000


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_cell_holds_one_idea_and_a_line_fits_the_page(path):
    for cell in cells(path, "markdown"):
        assert words(cell) <= 60, "".join(cell["source"])[:200]
    for cell in cells(path, "code"):
        source = "".join(cell["source"]).splitlines()
        assert max(map(len, source), default=0) <= 100, max(source, key=len)
        assert sum(line.startswith(("import", "from")) for line in source) <= 30
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert "redict before you run" in text or path.stem.startswith("06"), "nothing to predict"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_saved_page_is_whole_and_shows_no_plumbing(path):
    assert path.stat().st_size < 1_000_000
    for number, cell in enumerate(cells(path, "code")):
        assert cell["execution_count"] == number + 1, "execute the chapter from its top before it is committed"
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", output
            shown = json.dumps(output)
            assert not re.search(r"it/s\]|s/it\]|/home/|/root/|/tmp/", shown), shown[:200]
