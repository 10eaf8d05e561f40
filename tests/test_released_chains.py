"""Released chains in their parts: nothing is lost, whatever the headings and marks; and what is no chain is refused."""

import json
from pathlib import Path

import pytest

from finer1_lite.cot.chains import ChainError, parse_prose, to_completion
from finer1_lite.cot.released import parse_released

RELEASED = Path(__file__).parents[1].parent / "shared" / "data" / "stage1_chains_202.json"
NAMES = ("Sage Thrasher", "Brown Thrasher", "Wren (Troglodytes)")
ITEMS = "1. Sage Thrasher\n2. Brown Thrasher: redder\n   - a long tail\n3. Wren (Troglodytes) - small\n"
PLAIN = (
    " Analysis of Visual Features:\nA grey bird.\n\n", f" Candidate Subcategories:\nThese are possible:\n{ITEMS}\n",
    " Comparison Process:\n1. Wren:\n   - Comparison: smaller.\n\n",
    " Final Prediction:\nThe prediction is: Sage Thrasher",
)  # fmt: skip


def completion(*parts):
    return f"<think>{''.join(parts)}</think>\n\n<answer>Sage Thrasher</answer>"


def changed(**parts):
    named = dict(zip(("analysis", "options", "comparison", "prediction"), PLAIN))
    return completion(*(named | parts).values())


def test_parts_are_the_text_cut_at_its_headings():
    chain = parse_released(completion(*PLAIN))
    assert chain.text == completion(*PLAIN)
    assert (chain.opening + chain.analysis, chain.options_text, chain.comparison, chain.prediction) == (
        "<think>" + PLAIN[0], *PLAIN[1:]
    )  # fmt: skip
    assert (chain.options, chain.answer) == (NAMES, "Sage Thrasher")


@pytest.mark.parametrize("options", [
    f"## 2. Candidate Subcategories (Breeds)\n{ITEMS}\n", f"**Candidates:**\n{ITEMS}\n", f" Step 2: Options\n{ITEMS}\n",
    " Candidates\n1. **Sage Thrasher**:\n- grey\n- long\n2. **Brown Thrasher**\n- red\n3. **Wren (Troglodytes)**\n",
    "Candidates\n**1. Sage Thrasher**\n**2. Brown Thrasher**\n**3. Wren (Troglodytes)**\n",
    "Candidates\n* Sage Thrasher – grey\n* Brown Thrasher - red\n* Wren (Troglodytes), a dwarf\n",
    "Candidates\n - Sage Thrasher:\n    - grey\n\n - Brown Thrasher:\n    - red\n\n - Wren (Troglodytes)\n\n",
    "Options:\nOption 1: Sage Thrasher\nOption 2: Brown Thrasher\nOption 3: Wren (Troglodytes)\n",
    "Candidates\nPossible species include Sage Thrasher, Brown Thrasher, and Wren (Troglodytes).\n",
    "Candidates: Sage Thrasher, Brown Thrasher or Wren (Troglodytes).\n",
    f"Candidates\n- Sage Thrasher\n- a Robin\n\nThe analysis of candidate subcategories: \n{ITEMS}\n\n\n---\n\n",
])  # fmt: skip
def test_forms_of_headings_and_lists(options):
    chain = parse_released(changed(options=options))
    assert (chain.options, chain.options_text) == (NAMES, options)
    assert chain.text == changed(options=options)


@pytest.mark.parametrize("item, name", [
    ("**Boeing 737-300**: long", "Boeing 737-300"), ("Audi A6 (C4), larger", "Audi A6 (C4)"),
    ("BMW Z4 (though less likely due to its size)", "BMW Z4"), ("BMW M5 (not a coupe)", "BMW M5 (not a coupe)"),
    ("Wren (small, brown)", "Wren (small, brown)"), ("St. Bernard.", "St. Bernard"),
])  # fmt: skip
def test_name_of_an_item(item, name):
    assert parse_released(changed(options=f"Candidates\n- {item}\n")).options == (name,)


def test_without_headings_the_comparison_begins_at_the_gap_or_after_the_list():
    options = f"The analysis of candidate subcategories: \nFrom what is seen:\n{ITEMS}"
    why, comparison = "\nThese share a shape.\n\n\n", "- Sage Thrasher vs. Wren: larger.\n\n Comparing these:\n- x\n\n"
    chain = parse_released(changed(options=options + why, comparison=comparison))
    assert (chain.options_text, chain.comparison) == (options + why, comparison)
    bullets = "The analysis of candidate subcategories:\n- Sage Thrasher\n- Wren\n\n\n"
    assert parse_released(changed(options=bullets, comparison=comparison)).options == ("Sage Thrasher", "Wren")
    chain = parse_released(changed(options=options, comparison="The Wren is small.\n"))
    assert (chain.options_text, chain.options, chain.comparison) == (options[:-1], NAMES, "\nThe Wren is small.\n")


@pytest.mark.parametrize("heading", [
    "Comparison Process", "**Comparison:** in short", "### 3. Comparing them", "Let’s compare",
])  # fmt: skip
def test_headings_of_the_comparison(heading):
    assert parse_released(changed(comparison=f"{heading}\nSmall.\n")).comparison == f"{heading}\nSmall.\n"


@pytest.mark.parametrize("start", [
    "The prediction is: a", "**Final Answer**", "4. Conclusion:", " Step 4: Final Prediction",
])  # fmt: skip
def test_starts_of_the_prediction(start):
    assert parse_released(changed(prediction=f"{start}\nSage\n")).prediction == f"{start}\nSage\n"


def test_a_summary_stays_in_the_prediction_and_gives_the_names_where_no_list_does():
    summary = PLAIN[3] + "\n Final Answer:\nThe analysis of candidate subcategories: \nSage Thrasher, Wren\n\nIt fits."
    chain = parse_released(changed(options=" Candidates\nThere are several.\n\n", prediction=summary))
    assert (chain.prediction, chain.options) == (summary, ("Sage Thrasher", "Wren"))
    assert parse_released(changed(prediction=summary)).options == NAMES
    for none in ("There are none here.", "As it is, No bird of any kind was found here by anyone."):
        assert parse_released(changed(options=f" Candidates\n{none}\n\n")).options == ()


@pytest.mark.parametrize("text, message", [
    ("A wren.", "should be <think>"),
    (completion(*PLAIN).replace("</think>", ""), "should be <think>"),
    ("<think>" + "\n" * 9000, "should be <think>"),  # a model that ran empty: at once, not in minutes
    (completion(*PLAIN).replace(">Sage Thrasher<", "> <"), "with an answer"),
    (changed(options=""), "has no candidates"),
    (changed(prediction="It is a Sage Thrasher."), "has no prediction"),
])  # fmt: skip
def test_what_is_missing_is_named(text, message):
    with pytest.raises(ChainError, match=message):
        parse_released(text)


def test_to_chain_drops_headings_and_rules():
    chain = parse_released(changed(analysis="\n\n**Analysis:** A grey bird.\n\n---\n\n")).to_chain()
    assert (chain.analysis, chain.options) == ("A grey bird.", list(NAMES))
    assert (chain.comparison, chain.prediction) == ("1. Wren:\n   - Comparison: smaller.", "Sage Thrasher")
    assert parse_prose(to_completion(chain)) == chain


def test_to_chain_refuses_what_it_cannot_hold():
    with pytest.raises(ChainError, match="no candidates"):
        parse_released(changed(options=" Candidates\nNone.\n\n")).to_chain()
    with pytest.raises(ChainError, match="would be read as"):
        parse_released(changed(options="Candidates\n- A; B\n- C\n")).to_chain()
    with pytest.raises(ChainError, match="comparison is empty"):
        parse_released(changed(comparison="")).to_chain()


@pytest.mark.skipif(not RELEASED.exists(), reason="the released chains are not on this machine")
def test_all_released_rows():
    """Two rows have no candidates to name: the picture shows no airplane, and the teacher says so."""
    texts = [row["messages"][-1]["content"] for row in json.loads(RELEASED.read_text(encoding="utf-8"))]
    chains = [parse_released(text) for text in texts]
    assert [chain.text for chain in chains] == texts
    for chain in chains:
        parts = (chain.analysis, chain.options_text, chain.comparison, chain.prediction, chain.answer)
        assert all(part.strip() for part in parts)
    assert [i for i, chain in enumerate(chains) if not chain.options] == [9, 31]
    assert sum(len(chain.options) == 4 for chain in chains) == 199
    assert all(len(set(chain.options)) == len(chain.options) for chain in chains)  # a list of traits would repeat
    assert chains[24].options == ("Cirrus SR-20", "Cirrus SR-22", "Cirrus SR-20T", "Cirrus Vision SF50")
    assert chains[66].options[:3] == ("Mercedes-Benz S-Class", "Mercedes-Benz E-Class", "Mercedes-Benz CLS-Class")
    written = [chain.to_chain() for chain in chains if chain.options]
    assert [parse_prose(to_completion(chain)) for chain in written] == written
