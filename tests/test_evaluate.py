"""Evaluation: what counts as right, options, killed runs, subsets, rows of results, bootstrap, the paper's figures."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from finer1_lite.birds.dataset import load_birds
from finer1_lite.config import get_profile
from finer1_lite.evaluate.answers import METHODS, ask, judge, load_predictions, prompts_for
from finer1_lite.evaluate.paper import paper_figures
from finer1_lite.evaluate.statistics import COLUMNS, bootstrap_difference, result_rows, subset_of, table
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy, add_adapter, load_base
from finer1_lite.prompts import instructed
from finer1_lite.recipes import one_per_class, tasks_of

FIGURE = ["method", "model", "protocol", "split", "metric"]


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


def test_a_label_without_a_letter_is_in_no_answer_and_is_not_asked_about():
    assert not judge(0, "...", True, "<answer> Wren </answer>").correct
    with pytest.raises(ValueError, match="'...' is not a class name"):
        ask(None, None, {"label": ["..."], "seen": [True]}, ["?"])


def test_rows_hold_each_split_apart():
    made = [judge(i, "a", i < 3, "<answer> a </answer>" if i in (0, 3) else "<answer> b c </answer>") for i in range(5)]
    made[1] = judge(1, "a", True, "<think>x</think><answer> b c </answer>", instructed("Which?"), ended=False)
    made[2] = judge(2, "a", True, "<answer> b c </answer>", instructed("Which?", think=False))
    rows = result_rows(made, "tapo", "open", 7)
    assert all(tuple(row) == COLUMNS for row in rows)
    found = {(r["split"], r["metric"]): (r["value"], r["n"]) for r in rows}
    assert found["seen", "accuracy"] == (pytest.approx(1 / 3, abs=1e-6), 3)
    assert found["unseen", "accuracy"] == (0.5, 2)
    assert found["seen", "words"][0] == pytest.approx((3 + 4 + 4) / 3, abs=1e-6)
    # The first one should have thought; nothing follows the answers of the two others, each in its form.
    assert found["seen", "format"][0] == found["seen", "ended"][0] == pytest.approx(2 / 3, abs=1e-6)
    assert found["unseen", "format"][0] == 0.0 and found["unseen", "ended"][0] == 1.0


def test_bootstrap_pairs_images_and_respects_classes():
    rng, classes = np.random.default_rng(0), [f"c{i}" for i in range(40) for _ in range(5)]
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


@pytest.fixture(scope="module")
def birds():
    return load_birds(0, {"val": {True: 1, False: 1}, "test": {True: 1, False: 0}})["val"]


class Watched(VisionCache):
    """Features that are asked for batch by batch; `stop` answers come, then the process is killed."""

    def __init__(self, base, images, part=None, stop=None):
        super().__init__(base.model, base.processor, images)
        self.part, self.stop, self.asked = part, stop, 0

    def get(self, indices):
        if self.asked == self.stop:
            self.lines = self.part.read_text().splitlines()  # another process sees this much, before anything is closed
            raise KeyboardInterrupt
        self.asked += len(indices)
        return super().get(indices)


@pytest.fixture(scope="module")
def small(birds):
    policy = load_base(replace(get_profile("cpu"), eval_batch=4, max_new_tokens=20))
    data = birds.select(range(0, 156, 13))
    prompts = [text + " Please." * (i % 5) for i, text in enumerate(prompts_for(data["label"], False, 0))]
    return policy, data, prompts


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    (policy, data, prompts), path = small, tmp_path_factory.mktemp("whole") / "base_open.jsonl"
    return ask(policy, Watched(policy, data["image"]), data, prompts, path=path), path


def test_a_killed_evaluation_goes_on_where_it_was(small, whole, tmp_path):
    (policy, data, prompts), (made, _), path = small, whole, tmp_path / "base_open.jsonl"
    killed = Watched(policy, data["image"], path, stop=8)
    with pytest.raises(KeyboardInterrupt):
        ask(policy, killed, data, prompts, path=path)
    assert len(killed.lines) == 8
    path.write_text("\n".join(killed.lines)[:-30])  # the last line was cut off as it was written
    again = Watched(policy, data["image"])
    assert ask(policy, again, data, prompts, path=path) == made  # text by text, though the last batch is asked anew
    assert again.asked == 8
    assert load_predictions(path) == made and [p.index for p in made] == list(range(12))
    done = Watched(policy, data["image"])
    assert ask(policy, done, data, prompts, path=path) == made and done.asked == 0


def test_answers_do_not_depend_on_path_or_batches(small, whole):
    (policy, data, prompts), (made, _) = small, whole
    other = Policy(policy.model, policy.processor, replace(policy.profile, eval_batch=7))
    alone = ask(other, Watched(policy, data["image"]), data, prompts)
    assert [p.label for p in alone] == data["label"] and {p.asked for p in alone} == {""}
    assert sum(a.text == b.text for a, b in zip(alone, made)) >= 11  # padding rounds: a near tie may fall otherwise


@pytest.mark.parametrize("change", ["label", "prompt", "image", "adapter", "base", "fewer"])
def test_a_file_of_other_questions_is_refused(small, whole, tmp_path, change):
    (policy, data, prompts), (made, kept) = small, whole
    path, labels, images = tmp_path / "a.jsonl", list(data["label"]), list(data["image"])
    path.write_bytes(kept.read_bytes())
    if change == "label":
        labels[5] = "wrong"
    elif change == "prompt":
        prompts = [*prompts[:11], "Who?"]
    elif change == "image":
        images[0] = images[1]
    elif change == "fewer":
        labels, images, prompts = labels[:11], images[:11], prompts[:11]
    elif change == "adapter":
        policy = add_adapter(load_base(policy.profile), 0)
    else:  # of the same name
        policy = load_base(policy.profile)
        policy.backbone.language_model.layers[-1].input_layernorm.weight.data[0] += 1e-3
    asked = {"label": labels, "seen": list(data["seen"])[: len(labels)]}
    with pytest.raises(ValueError, match="other questions, images or labels, or of another model") as error:
        ask(policy, Watched(policy, images), asked, prompts, path=path)
    assert str(path) in str(error.value) and "Move the file away" in str(error.value)
    assert load_predictions(path) == made  # and nothing is lost


def test_each_picture_needs_its_prompt_and_the_longest_come_first(small):
    policy, data, prompts = small
    cache, order = Watched(policy, data["image"]), []
    get, cache.get = cache.get, lambda indices: order.extend(indices) or get(indices)
    ask(policy, cache, data, prompts)
    lengths = [len(policy.processor.tokenizer(prompts[i])["input_ids"]) for i in order]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 3
    with pytest.raises(ValueError, match="11 prompts, 12 labels and 12 images"):
        ask(policy, cache, data, prompts[:11])


def test_a_subset_has_its_share_of_each_class():
    labels = [f"c{i}" for i, size in enumerate([4, 8, 20, 8]) for _ in range(size)]
    data = Dataset.from_dict({"label": labels, "row": list(range(40))})
    few = subset_of(data, 10, 0)
    assert [few["label"].count(f"c{i}") for i in range(4)] == [1, 2, 5, 2] and few["row"] == sorted(few["row"])
    assert subset_of(data, 10, 0)["row"] == few["row"] != subset_of(data, 10, 1)["row"]
    drawn = np.bincount([row for seed in range(400) for row in subset_of(data, 10, seed)["row"]], minlength=40)
    assert abs(drawn - 100).max() < 40  # every image has the same chance: one in four, 100 +- 9
    assert len(set(subset_of(data, 3, 0)["label"])) == 3 and len(subset_of(data, 40, 0)) == 40
    for n in (0, 41):
        with pytest.raises(ValueError, match="1 to 40"):
            subset_of(data, n, 0)


def test_stage_1_takes_one_image_of_each_class():
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
    # Beside it the paper's closed-world figures, of the methods that its table has.
    ends = {line.split("`")[1]: line.split(" | ")[-2:] for line in text.splitlines()[2:]}
    assert ends["base"] == ["77.4", "71.9 |"] and ends["tapo"] == ["89.0", "81.4 |"] and ends["dapo"] == ["-", "- |"]


def test_overall_is_the_mean_of_seen_and_unseen():
    keys = ["table", "method", "model", "protocol", "metric"]
    wide = paper_figures().pivot(index=keys, columns="split", values="value")[["seen", "unseen", "overall"]].dropna()
    assert len(wide) == 17  # rows of the paper's tables that have all three
    assert ((wide.seen + wide.unseen) / 2 - wide.overall).abs().max() < 0.0051


def test_figures_are_whole_agree_between_tables_and_have_this_kits_names():
    rows = paper_figures()
    assert set(rows.source) == {"arXiv 2602.07605"}
    assert not rows.duplicated(["table", *FIGURE]).any()
    again = rows.groupby(FIGURE).value
    assert again.size().max() > 1 and again.nunique().max() == 1
    percent = rows[rows.protocol.isin(["open", "closed"])]
    assert percent.value.between(0, 100).all() and set(percent.split) == {"seen", "unseen", "overall"}
    assert {*METHODS} - set(percent.method) == set()
