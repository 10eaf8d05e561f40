"""The ablations: what stands beside what, chains that differ in one thing, paired tables, intervals over seeds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finer1_lite.birds.fish import all_fish, draw_folder
from finer1_lite.config import ASSETS, get_profile
from finer1_lite.cot.build import Task
from finer1_lite.cot.chains import (
    ChainError,
    chat_row,
    load_chains,
    parse_prose,
    question_and_completion,
    save_chains,
    to_completion,
)  # fmt: skip
from finer1_lite.data.sources import folder_entries, load_images
from finer1_lite.data.splits import few_shot
from finer1_lite.evaluate.answers import Prediction, save_predictions
from finer1_lite.evaluate.statistics import interval, over_seeds
from finer1_lite.prompts import instructed, questions_for
from finer1_lite.recipes import one_per_class
from finer1_lite.samplers import ConfusionCounts
from finer1_lite.teachers.guide import guide_chain, read_guide
from studies import story
from studies.ablations import (
    CHAINS,
    TABLES,
    VARIANTS,
    chains_of,
    curve_rows,
    label_of,
    run_variant,
    table_rows,
    unstructured,
    verdict,
    watched,
)  # fmt: skip
from studies.report import difference
from studies.seeds import paired
from studies.story import Seed

REFERENCE = ASSETS / "reference"
RESULTS = Path(__file__).parents[1] / "studies/results"


def test_every_variant_is_shown_and_every_table_has_a_reference():
    shown = {name for names in TABLES.values() for name in names}
    assert set(VARIANTS) - set(CHAINS) <= shown and set(CHAINS) <= shown
    assert shown - set(VARIANTS) == {"base", "sft_answers", "cot_sft"}
    assert all(names[-1] in ("tapo", "cot_sft") and len(set(names)) == len(names) for names in TABLES.values())
    assert all(label_of(name) for name in shown)


def test_variants_change_one_thing_at_equal_cost():
    tapo = VARIANTS["tapo"]
    for name, variant in VARIANTS.items():
        changed = [field for field in ("loss", "sides", "negative", "start", "think")
                   if getattr(variant, field) != getattr(tapo, field)]  # fmt: skip
        assert variant.loss is None or sum(variant.sides) == 10
        alone = ("dapo", "cls_rl", "no_think_rl", "answers_rl", *CHAINS)  # methods of their own
        assert name in alone or len(changed) == (name != "tapo"), (name, changed)


def test_only_the_mean_per_micro_batch_depends_on_its_size(tmp_path, monkeypatch):
    lab, sizes = Seed(get_profile("cpu"), 0, tmp_path, per_class={"val": {True: 0, False: 0}, "test": {True: 0, False: 0}}), {}
    monkeypatch.setattr(lab, "rl", lambda run, config, *_, **__: sizes.update({run: config.micro_batch}))
    monkeypatch.setattr(lab, "answers", lambda *_, **__: [])
    for name in ("tapo", "micro_batch"):
        run_variant(lab, name)
    assert sizes == {"ablation_tapo": get_profile("cpu").tapo.micro_batch, "ablation_micro_batch": 4}


def test_unstructured_chains_say_the_same_without_a_comparison():
    rows = load_chains(REFERENCE / "chains.jsonl")[:5]
    for long, short in zip(rows, unstructured(rows), strict=True):
        (asked, thought), (same, bare) = question_and_completion(long), question_and_completion(short)
        assert asked == same and parse_prose(thought).analysis in bare and f"<answer> {long['label']} </answer>" in bare
        assert "Candidates" not in bare and len(bare) < len(thought)
        with pytest.raises(ChainError):
            parse_prose(bare)


def test_own_confusions_are_counted_by_the_reward():
    confusion = ConfusionCounts(["a tarn", "b tarn"])
    reward = watched(confusion)
    assert reward("<think>x</think> <answer> B Tarn </answer>", "a tarn")["accuracy"] == 0
    assert reward("<think>x</think> <answer> b tarn </answer>", "b tarn")["accuracy"] == 1
    reward("no answer at all", "b tarn")
    assert confusion.hardest("a tarn") == "b tarn" and confusion.hardest("b tarn") is None
    named = ConfusionCounts(["House-Finch", "Wren"])  # as folders spell it
    watched(named)("<answer>house finch</answer>", "Wren")
    assert named.hardest("Wren") == "House-Finch"


def _answers(folder, name, right):
    folder.mkdir(parents=True, exist_ok=True)
    made = [Prediction(i, f"c{i // 4}", i < 20, "", "", bool(r), bool(r)) for i, r in enumerate(right)]
    save_predictions(folder / f"{name}_open.jsonl", made)


def test_the_table_pairs_each_variant_with_its_reference(tmp_path):
    rng = np.random.default_rng(0)
    shown = {name for names in TABLES.values() for name in names}
    for seed in (0, 1, 2):
        reference = rng.random(40) < 0.6
        for name in shown:
            right = reference if name != "paper" else reference & (np.arange(40) % 4 == 0)
            _answers(tmp_path / f"seed{seed}", f"ablation_{name}" if name in VARIANTS else name, right)
    rows = pd.DataFrame(table_rows(tmp_path, [0, 1, 2]))
    assert len(rows) == 2 * sum(map(len, TABLES.values()))
    equal = rows[rows.variant != "paper"]
    assert (equal[["difference", "low", "high"]] == 0).all(axis=None)
    worse = rows[(rows.variant == "paper") & (rows.split == "unseen")].iloc[0]
    assert worse.high < 0 and worse.p < 0.05 and worse.accuracy < 0.25
    assert "worse than TAPO on unseen" in verdict(worse.to_dict())
    assert "that these seeds can tell" in verdict(equal.iloc[0].to_dict())


def test_a_difference_is_told_by_its_seeds(tmp_path):
    """Of several seeds Student's interval and its p; of one seed what its own images allow."""
    for seed, wins in enumerate((2, 4, 9)):
        _answers(tmp_path / f"seed{seed}", "a", np.arange(40) < wins)
        _answers(tmp_path / f"seed{seed}", "b", np.zeros(40))
    gap = difference(tmp_path, [0, 1, 2], "a", "b", "open", lambda *_: True)
    mean, low, high = interval([2 / 40, 4 / 40, 9 / 40])
    assert (gap["mean"], gap["low"], gap["high"]) == pytest.approx((mean, low, high), abs=1e-4)
    assert gap["low"] < 0 and gap["p"] > 0.05 and gap["n"] == 120
    alone = difference(tmp_path, [2], "a", "b", "open", lambda *_: True)
    assert alone["low"] < alone["mean"] == 0.225 < alone["high"] and np.isnan(alone["p"])


def test_the_committed_differences_are_those_of_the_committed_results():
    results = pd.read_csv(RESULTS / "results.csv").query("metric == 'accuracy'")
    for row in pd.read_csv(RESULTS / "differences.csv").itertuples():
        a, b = row.difference.split(" - ")
        gap = paired(results.query("protocol == @row.protocol and split == @row.split"), "method", a, b, ["split"]).iloc[0]
        assert (row.mean, row.low, row.high) == pytest.approx((gap["mean"], gap.low, gap.high), abs=1e-4)


def test_intervals_over_seeds_are_students_t():
    mean, low, high = interval([0.1, 0.2, 0.3, 0.4])
    half = 3.182446 * np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2
    assert (mean, high - mean, mean - low) == pytest.approx((0.25, half, half), abs=1e-5)
    assert np.isnan(interval([0.5])[1]) and np.isnan(interval([0.1] * 3)[1:]).all()  # seeds that do not differ
    rows = pd.DataFrame([{"seed": s, "method": m, "split": "seen", "value": s / 10 + (m == "b") * (0.2 + s / 100)}
                         for s in range(3) for m in "ab"])  # fmt: skip
    apart = over_seeds(rows, ["method"]).set_index("method")
    gap = paired(rows, "method", "b", "a", ["split"]).iloc[0]
    assert gap["mean"] == pytest.approx(0.21) and gap.low > 0.15 and apart.loc["b", "low"] < apart.loc["a", "high"]
    with pytest.raises(ValueError, match="same seeds"):
        paired(rows.iloc[:-1], "method", "b", "a", ["split"])


def test_a_variant_is_trained_asked_and_not_trained_again(tmp_path):
    for name in ("chains.jsonl", "cot_sft"):
        (tmp_path / name).symlink_to(REFERENCE / name)
    lab = Seed(get_profile("cpu"), 0, tmp_path, per_class={"val": {True: 0, False: 0}, "test": {True: 0, False: 1}})
    rows = [row["label"] for row in chains_of(lab, "chains_12")]
    assert len(rows) == 12 and rows == [row["label"] for row in chains_of(lab, "chains_24")][:12]
    made = run_variant(lab, "online_negative", steps=1)
    assert len(made) == 64 and 0.3 < np.mean([p.correct for p in made]) < 0.95
    log = pd.read_csv(tmp_path / "ablation_online_negative.csv")
    weights = tmp_path / "ablation_online_negative" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    assert len(log) == 1 and log.inter_kl.notna().all()
    assert run_variant(lab, "online_negative", steps=1) == made and weights.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "ablation_online_negative" / "adapter_config.json").read_text())["r"] == 16
    with pytest.raises(FileNotFoundError):
        curve_rows(tmp_path.parent, [7])
    with pytest.raises(ValueError, match="of another model.*Move the file away"):
        lab.answers("ablation_online_negative", tmp_path / "cot_sft")


@pytest.mark.filterwarnings("ignore:dynamic sampling kept")
def test_own_pictures_go_through_the_same_variants(tmp_path, monkeypatch):
    data = load_images(folder_entries(draw_folder(tmp_path / "fish", per_class=8, seed=0))).data
    splits = few_shot(data.filter(lambda label: label in {f.name for f in all_fish()}, input_columns="label"), test_per_class=2)
    profile, out = get_profile("cpu"), tmp_path / "run"
    brief = replace(profile, sft=replace(profile.sft, epochs=1), tapo=replace(profile.tapo, questions=2, max_rounds=1))
    lab = Seed(brief, 0, out, data=splits, questions=questions_for("fish"))
    with pytest.raises(ValueError, match="knows birds alone.*chains.jsonl"):
        run_variant(lab, "tapo", steps=1)
    guide = read_guide(tmp_path / "fish" / "guide.csv")
    tasks = [Task(i, lab.labels[i], lab.questions[0]) for i in one_per_class(lab.labels)]
    save_chains(out / "chains.jsonl", [
        chat_row(t.image_index, t.label, instructed(t.question), to_completion(guide_chain(guide, t.label))) for t in tasks
    ])  # fmt: skip
    asked, known = [], story.reinforce
    monkeypatch.setattr(story, "reinforce", lambda *a, ask, **how: asked.append(ask) or known(*a, ask=ask, **how))
    made = run_variant(lab, "random_negative", steps=1)
    assert "fish" in asked[0](np.random.default_rng(0))
    assert [p.label for p in made] == list(splits["test"]["label"]) and all("fish" in p.question for p in made)
    closed = lab.answers("closed", None, "closed", think=False)
    assert all(p.question.count(";") == 3 and "bird" not in p.question for p in closed)
