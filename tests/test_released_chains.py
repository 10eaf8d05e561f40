"""Released chains in their parts, whatever the headings and marks, and the table of those that we have."""

from pathlib import Path

import pytest

from finer1_lite.config import RESULTS
from finer1_lite.cot.chains import ChainError
from studies.released_chains import parse_released, same_class, speaks_of, table

RELEASED = Path(__file__).parents[1].parent / "shared" / "data" / "stage1_chains_202.json"
RESULT = RESULTS / "released_chains.txt"
NAMES = ["Sage Thrasher", "Brown Thrasher", "Wren (Troglodytes)"]
ITEMS = "1. Sage Thrasher\n2. Brown Thrasher: redder\n   - a long tail\n3. Wren (Troglodytes) - small\n"
PLAIN = (
    " Analysis of Visual Features:\nA grey bird.\n\n", f" Candidate Subcategories:\nThese are possible:\n{ITEMS}\n",
    " Comparison Process:\n1. Wren:\n   - Comparison: smaller.\n\n",
    " Final Prediction:\nThe prediction is: Sage Thrasher",
)  # fmt: skip


def completion(*parts):
    return f"<think>{''.join(parts)}</think>\n\n<answer>Sage Thrasher</answer>"


@pytest.mark.parametrize("options", [
    PLAIN[1], f"## 2. Candidate Subcategories (Breeds)\n{ITEMS}\n", f" Step 2: Options\n{ITEMS}\n",
    " Candidates\n1. **Sage Thrasher**:\n- grey\n- long\n2. **Brown Thrasher**\n- red\n3. **Wren (Troglodytes)**\n",
    "Candidates\n* Sage Thrasher – grey\n* Brown Thrasher - red\n* Wren (Troglodytes), a dwarf\n",
    "Options:\nOption 1: Sage Thrasher\nOption 2: Brown Thrasher\nOption 3: Wren (Troglodytes)\n",
    "Candidates: Sage Thrasher, Brown Thrasher or Wren (Troglodytes).\n",
    f"Candidates\n- Sage Thrasher\n- a Robin\n\nThe analysis of candidate subcategories: \n{ITEMS}\n\n\n---\n\n",
])  # fmt: skip
def test_parts_are_the_text_cut_at_its_headings(options):
    parts = (PLAIN[0], options, *PLAIN[2:])
    assert parse_released(completion(*parts)) == (parts, NAMES, "Sage Thrasher")


@pytest.mark.parametrize("text", ["A wren.", completion(PLAIN[0], *PLAIN[2:]), completion(*PLAIN[:3])])
def test_what_is_no_chain_is_refused(text):
    with pytest.raises(ChainError, match="is missing"):
        parse_released(text)


def test_names_are_compared_loosely():
    assert same_class("BMW X3 SUV 2012", "BMW X3 (2012)") and same_class("bee balm", "Monarda didyma (Bee Balm)")
    assert not same_class("Wren", "Wrentit") and not same_class("BMW M3 2012", "BMW M4 2012")
    assert speaks_of("the 747-400 is longer", "Boeing 747-400", ["Boeing 747-300"])
    assert not speaks_of("the 747-400 is longer", "Boeing 747-300", ["Boeing 747-400"])


@pytest.mark.skipif(not RELEASED.exists(), reason="the released chains are not on this machine")
def test_the_released_half_gives_the_result_file():
    printed = table(RELEASED).round(3).to_string(index=False)
    assert RESULT.read_text(encoding="utf-8").split("\n", 1)[1].strip("\n") == printed.strip("\n")
