"""samplers.py: rules that 10,000 triplets keep, frequencies by chi square, the same sequence anywhere."""

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finer1_lite import samplers as S

CLASSES = [f"bird {c}" for c in "abcdefgh"]
LABELS = [name for name in CLASSES for _ in range(4)]
NEAREST = {name: CLASSES[i + 1 :] + CLASSES[:i] for i, name in enumerate(CLASSES)}  # the next letter first


def sampler(seed=0, labels=LABELS, nearest=NEAREST, **options):
    return S.TripletSampler(labels, nearest, seed, **options)


def chi_square_z(counts, expected=None):
    """Standard normal score of Pearson's chi square (Wilson-Hilferty); uniform unless expected is given."""
    counts = np.asarray(counts, dtype=float)
    expected = np.full(len(counts), counts.sum() / len(counts)) if expected is None else np.asarray(expected)
    k = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / np.sqrt(2 / (9 * k))


def test_chi_square_z_knows_fair_from_loaded():
    rng = np.random.default_rng(0)
    fair = [chi_square_z(np.bincount(rng.integers(0, 6, 6000), minlength=6)) for _ in range(200)]
    assert abs(np.mean(fair)) < 0.3 and 0.8 < np.std(fair) < 1.2
    loaded = rng.choice(6, 6000, p=[0.2, 0.16, 0.16, 0.16, 0.16, 0.16])
    assert chi_square_z(np.bincount(loaded)) > 4


# ---- labels and splits


def test_k_shot_takes_k_of_each_class():
    labels = LABELS[::-1]
    chosen = S.k_shot(labels, 3, seed=1)
    assert chosen == sorted(set(chosen)) and Counter(labels[i] for i in chosen) == dict.fromkeys(CLASSES, 3)
    assert chosen == S.k_shot(labels, 3, seed=1) != S.k_shot(labels, 3, seed=2)


def test_k_shot_is_nested_and_ignores_other_classes():
    two, three = S.k_shot(LABELS, 2, seed=5), S.k_shot(LABELS, 3, seed=5)
    assert set(two) < set(three)
    more = [*LABELS, "another bird", "another bird"]
    assert [i for i in S.k_shot(more, 2, seed=5) if i < len(LABELS)] == two


def test_k_shot_is_uniform():
    counts = Counter(i for seed in range(2000) for i in S.k_shot(["a"] * 10, 4, seed=seed))
    # draws without replacement: the counts' variance is that of the multinomial times (10 - 4) / (10 - 1)
    scaled = 800 + (np.array([counts[i] for i in range(10)]) - 800) / np.sqrt(6 / 9)
    assert abs(chi_square_z(scaled)) < 3.3


def test_k_shot_of_a_small_class():
    with pytest.raises(ValueError, match="class 'b' has 1 images, below k=2"):
        S.k_shot(["a", "a", "b"], 2, seed=0)
    assert S.k_shot(["a", "a", "b"], 2, seed=0, on_short="keep") == [0, 1, 2]
    for bad, message in (({"k": 0}, "k is 0"), ({"k": 1, "on_short": "drop"}, "on_short is 'drop'")):
        with pytest.raises(ValueError, match=message):
            S.k_shot(["a"], seed=0, **bad)


@pytest.mark.parametrize("classes, seen", [
    (100, 60), (200, 120), (196, 117), (120, 72), (102, 61), (37, 22), (5, 3),
])
def test_split_sizes_are_the_papers(classes, seen):
    names = [f"class {i:03}" for i in range(classes)]
    first, second = S.split_classes(names, seed=3)
    assert (len(first), len(second)) == (seen, classes - seen)
    assert sorted(first + second) == names and first == sorted(first) and second == sorted(second)


def test_split_depends_on_the_seed_alone():
    assert S.split_classes(CLASSES, seed=1) == S.split_classes(CLASSES[::-1] * 2, seed=1)
    assert len({tuple(S.split_classes(CLASSES, seed=s)[0]) for s in range(30)}) > 10
    counts = Counter(name for s in range(1000) for name in S.split_classes(CLASSES, 0.5, s)[0])
    scaled = 500 + (np.array([counts[n] for n in CLASSES]) - 500) / np.sqrt(4 / 7)
    assert abs(chi_square_z(scaled)) < 3.3


def test_split_by_a_given_list():
    assert S.split_classes(CLASSES[:3], seen=["bird c"]) == (["bird c"], ["bird a", "bird b"])
    assert S.split_classes(CLASSES[:2], seen_fraction=1.0)[1] == []
    with pytest.raises(ValueError, match="does not have: .'owl'"):
        S.split_classes(CLASSES, seen=["owl"])
    with pytest.raises(ValueError, match="seen_fraction"):
        S.split_classes(CLASSES, seen_fraction=60)


@pytest.mark.parametrize("names, message", [
    (["House Finch", "house finch"], "differ only in case"),
    (["Wren", " Wren"], "differ only in case or spaces"),
    (["a", ""], "not a class name"), (["a", None], "not a class name"), (["a", 3], "not a class name"),
])
def test_names_that_are_no_classes(names, message):
    for use in (S.check_names, S.split_classes, lambda n: S.k_shot(n, 1, 0), lambda n: sampler(labels=n)):
        with pytest.raises(ValueError, match=message):
            use(names)


# ---- similarity


def test_nearest_classes_by_hand():
    labels = ["a", "a", "b", "c", "c"]
    # directions of the class means: 45, 42 and about 88 degrees
    embeddings = [[2.0, 0.0], [0.0, 0.5], [1.0, 0.9], [0.0, 3.0], [0.2, 3.0]]
    assert S.nearest_classes(labels, embeddings) == {"a": ["b", "c"], "b": ["a", "c"], "c": ["a", "b"]}
    # each image by itself: image 0 points at 0 degrees, image 1 at 90
    per_image = S.nearest_classes_per_image(labels, embeddings)
    assert per_image == {0: ["b", "c"], 1: ["c", "b"], 2: ["a", "c"], 3: ["a", "b"], 4: ["a", "b"]}


def test_nearest_classes_against_a_loop():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(len(LABELS), 5)).astype(np.float32)

    def unit(v):
        return v / np.sqrt((v * v).sum())

    units = [unit(row.astype(float)) for row in rows]
    means = {n: unit(sum(u for u, label in zip(units, LABELS) if label == n)) for n in CLASSES}
    for name, ranked in S.nearest_classes(LABELS, rows).items():
        similarity = {o: float(means[name] @ means[o]) for o in CLASSES if o != name}
        assert ranked == sorted(similarity, key=lambda o: -similarity[o])
    for i, ranked in S.nearest_classes_per_image(LABELS, rows).items():
        similarity = {o: float(units[i] @ means[o]) for o in CLASSES if o != LABELS[i]}
        assert ranked == sorted(similarity, key=lambda o: -similarity[o])


def test_similarity_ignores_length_and_order_of_images():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(len(LABELS), 5))
    expected = S.nearest_classes(LABELS, rows)
    assert S.nearest_classes(LABELS, rows * rng.uniform(0.1, 9, size=(len(LABELS), 1))) == expected
    order = rng.permutation(len(LABELS))
    assert S.nearest_classes([LABELS[i] for i in order], rows[order]) == expected
    assert S.nearest_classes(["c", "a", "b"], np.ones((3, 2)))["c"] == ["a", "b"]  # ties by name


def test_torch_embeddings_are_read():
    torch = pytest.importorskip("torch")
    rows = torch.randn(len(LABELS), 3, generator=torch.Generator().manual_seed(0))
    assert S.nearest_classes(LABELS, rows) == S.nearest_classes(LABELS, rows.numpy())


@pytest.mark.parametrize("embeddings, message", [
    (np.ones((2, 3)), r"\(3, dimensions\)"), (np.ones(3), "one row per image"),
    ([[1, 0], [0, 0], [1, 1]], "image 1 is zero or not finite"), ([[1, 0], [1, np.nan], [1, 1]], "image 1"),
])
def test_embeddings_that_make_no_sense(embeddings, message):
    with pytest.raises(ValueError, match=message):
        S.nearest_classes(["a", "b", "c"], embeddings)


def test_nearest_by_name():
    def embed_text(names):  # letter counts
        return np.array([[name.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for name in names])

    nearest = S.nearest_by_name(["house wren", "mouse wren", "owl", "house wren"], embed_text)
    assert nearest == {
        "house wren": ["mouse wren", "owl"], "mouse wren": ["house wren", "owl"],
        "owl": ["house wren", "mouse wren"],
    } and list(nearest) == sorted(nearest)


def test_nearest_by_table():
    table = {"a": ("c", "b"), "b": {"a": 0.2, "c": 0.2}}
    assert S.nearest_by_table(table) == {"a": ["c", "b"], "b": ["a", "c"]}
    for bad, message in (({"a": ["a"]}, "its own"), ({"a": ["b", "b"]}, "twice"),
        ({"a": ["B"], "b": []}, "case")):
        with pytest.raises(ValueError, match=message):
            S.nearest_by_table(bad)


# ---- triplets


@pytest.mark.parametrize("negative", ["similar", "random", "online"])
def test_ten_thousand_triplets_never_break_the_rules(negative):
    confusion = S.ConfusionCounts(CLASSES)
    for name in CLASSES[::2]:
        confusion.update(name, NEAREST[name][3])
    drawn = sampler(negative=negative, confusion=confusion).next(10_000)
    for anchor, positive, other in drawn:
        assert LABELS[positive] == LABELS[anchor] != LABELS[other] and positive != anchor
    if negative == "similar":
        assert all(LABELS[t.negative] == NEAREST[LABELS[t.anchor]][0] for t in drawn)
    if negative == "online":
        expected = {n: NEAREST[n][3 if n in CLASSES[::2] else 0] for n in CLASSES}
        assert all(LABELS[t.negative] == expected[LABELS[t.anchor]] for t in drawn)


def test_every_epoch_visits_every_anchor_once_in_a_new_order():
    s = sampler()
    epochs = [[t.anchor for t in s.next(len(s))] for _ in range(50)]
    assert all(sorted(epoch) == list(range(len(LABELS))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 50


def test_frequencies_are_uniform():
    drawn = sampler(negative="random").next(10_000 - 10_000 % len(LABELS))
    first_in_epoch = Counter(sampler(seed).next(1)[0].anchor for seed in range(6400))
    assert abs(chi_square_z([first_in_epoch[i] for i in range(len(LABELS))])) < 3.3
    positives = Counter((t.anchor, t.positive) for t in drawn)
    everyone = range(len(LABELS))
    pairs = [(i, j) for i in everyone for j in everyone if i != j and LABELS[i] == LABELS[j]]
    assert abs(chi_square_z([positives[p] for p in pairs])) < 3.3
    negative_classes = Counter((LABELS[t.anchor], LABELS[t.negative]) for t in drawn)
    assert abs(chi_square_z([negative_classes[a, b] for a in CLASSES for b in CLASSES if a != b])) < 3.3
    images = Counter(t.negative for t in sampler(7).next(9984))
    assert abs(chi_square_z([images[i] for i in range(len(LABELS))])) < 3.3


def test_positive_and_negative_are_drawn_independently():
    drawn = sampler(3).next(9984)
    table = Counter((t.positive % 4, t.negative % 4) for t in drawn)
    rows, columns = (Counter(x % 4 for x in column) for column in list(zip(*drawn))[1:])
    expected = {(a, b): rows[a] * columns[b] / len(drawn) for a in range(4) for b in range(4)}
    statistic = sum((table[cell] - mean) ** 2 / mean for cell, mean in expected.items())
    assert statistic < 27.9  # chi square with 9 degrees of freedom, p = 0.001


def test_seeds_differ_and_repeat():
    assert sampler(4).next(100) == sampler(4).next(100) != sampler(5).next(100)


def test_batches_do_not_change_the_sequence():
    s = sampler(6)
    pieces = [t for size in (1, 5, 50, 44) for t in s.next(size)]
    assert pieces == sampler(6).next(100)
    assert sampler().next(0) == [] and len(sampler()) == len(LABELS)


GOLDEN = [(13, 15, 19), (19, 16, 23), (0, 1, 5), (3, 0, 5), (28, 29, 1), (1, 3, 4)]
GOLDEN_SHOTS = [2, 3, 5, 6, 10, 11, 13, 15, 16, 19, 20, 22, 24, 25, 29, 30]
GOLDEN_SEEN = ["bird d", "bird f", "bird g", "bird h"]
PROGRAM = """
import json, sys
from finer1_lite import samplers as S
names = [f"bird {c}" for c in "abcdefgh"]
nearest = {n: names[i + 1:] + names[:i] for i, n in enumerate(names)}
labels = [n for n in names for _ in range(4)]
sampler = S.TripletSampler(labels, nearest, seed=0)
shots, seen = S.k_shot(labels, 2, seed=0), S.split_classes(names, seed=0)[0]
print(json.dumps([sampler.next(int(sys.argv[1])), shots, seen]))
"""


@pytest.mark.parametrize("hash_seed", ["0", "1", "12345"])
def test_same_seed_same_triplets_in_other_processes(hash_seed):
    root = Path(S.__file__).parents[1]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, "2000"], capture_output=True, text=True, check=True, env=environment)
    triplets, shots, seen = json.loads(run.stdout)
    assert [tuple(t) for t in triplets] == sampler(0).next(2000)
    assert (shots, seen) == (S.k_shot(LABELS, 2, seed=0), S.split_classes(CLASSES, seed=0)[0])


def test_same_seed_same_triplets_on_every_python():
    """Values written down once (Python 3.9 to 3.13 agree), so that an upgrade that changes them is seen."""
    assert sampler(0).next(6) == GOLDEN
    assert S.k_shot(LABELS, 2, seed=0) == GOLDEN_SHOTS
    assert S.split_classes(CLASSES, seed=0)[0] == GOLDEN_SEEN


@pytest.mark.parametrize("options", [
    {}, {"negative": "random"}, {"hardness": (0.0, 1.0), "curriculum_triplets": 60},
])
@pytest.mark.parametrize("stop", [0, 1, 31, 32, 33, 77])
def test_a_resumed_sampler_continues_the_sequence(options, stop):
    whole = sampler(8, **options).next(200)
    first = sampler(8, **options)
    begun = first.next(stop)
    state = json.loads(json.dumps(first.state_dict()))  # it survives JSON
    resumed = sampler(8, **options)
    resumed.next(13)  # whatever it did before
    resumed.load_state_dict(state)
    assert begun + resumed.next(200 - stop) == whole


def test_online_negatives_resume_with_their_counts():
    def fresh():
        return sampler(2, negative="online", confusion=S.ConfusionCounts(CLASSES, decay=0.9))

    def step(s):  # a policy that takes everything for the class two letters on
        batch = s.next(7)
        for t in batch:
            s.confusion.update(LABELS[t.anchor], NEAREST[LABELS[t.anchor]][1])
        return batch

    whole, first = fresh(), fresh()
    sequence = [step(whole) for _ in range(20)]
    begun = [step(first) for _ in range(9)]
    resumed = fresh()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + [step(resumed) for _ in range(11)] == sequence
    assert LABELS[sequence[-1][0].negative] == NEAREST[LABELS[sequence[-1][0].anchor]][1]


def test_state_of_another_run_is_rejected():
    state = sampler(1).state_dict()
    with pytest.raises(ValueError, match="seed=1, this one 2"):
        sampler(2).load_state_dict(state)
    with pytest.raises(ValueError, match="another run or data"):
        sampler(1, labels=LABELS[4:] + LABELS[:4]).load_state_dict(state)


@pytest.mark.parametrize("hardness, rank", [(1.0, 0), (0.0, 6), (0.5, 3), (0.9, 1)])
def test_hardness_picks_the_rank(hardness, rank):
    drawn = sampler(hardness=hardness).next(64)
    assert all(LABELS[t.negative] == NEAREST[LABELS[t.anchor]][rank] for t in drawn)


def test_curriculum_goes_from_easy_to_hard():
    s = sampler(hardness=(0.0, 1.0), curriculum_triplets=1000)
    ranks = [NEAREST[LABELS[t.anchor]].index(LABELS[t.negative]) for t in s.next(1500)]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] == 6 and set(ranks[1000:]) == {0}
    assert Counter(ranks[:1000]).keys() == set(range(7)) and s.current_hardness() == 1.0


def test_ranking_per_image_wins_over_the_class():
    nearest = NEAREST | {0: ["bird h"], 5: ["bird d"]}
    drawn = sampler(nearest=nearest).next(320)
    expected = {0: "bird h", 5: "bird d"}
    assert all(LABELS[t.negative] == expected.get(t.anchor, NEAREST[LABELS[t.anchor]][0]) for t in drawn)


def test_a_class_with_one_image():
    labels = ["a", "a", "b", "c", "c"]
    nearest = {"a": ["b"], "b": ["a"], "c": ["b"]}
    with pytest.raises(ValueError, match="class 'b' has one image"):
        sampler(labels=labels, nearest=nearest)
    drawn = sampler(labels=labels, nearest=nearest, on_single="skip").next(100)
    assert {t.anchor for t in drawn} == {0, 1, 3, 4} and {t.negative for t in drawn} == {2}
    with pytest.raises(ValueError, match="no class has two images"):
        sampler(labels=["a", "b"], nearest={"a": ["b"], "b": ["a"]}, on_single="skip")


def test_a_class_with_no_look_alike():
    nearest = NEAREST | {"bird a": [], "bird b": ["a class without images"]}
    with pytest.raises(ValueError, match="class 'bird a' has no look-alike"):
        sampler(nearest=nearest)
    drawn = sampler(nearest=nearest, on_no_lookalike="random").next(3200)
    seen = {LABELS[t.negative] for t in drawn if LABELS[t.anchor] == "bird b"}
    assert seen == set(CLASSES) - {"bird b"}
    assert all(LABELS[t.negative] == "bird d" for t in drawn if LABELS[t.anchor] == "bird c")
    sampler(nearest={}, negative="random").next(10)  # needs no ranking


def test_classes_without_images_are_passed_over():
    nearest = {name: ["unseen", *others] for name, others in NEAREST.items()}
    assert sampler(nearest=nearest).next(50) == sampler().next(50)


@pytest.mark.parametrize("options, message", [
    ({"negative": "hard"}, "negative is 'hard'"), ({"on_single": "drop"}, "on_single"),
    ({"hardness": 1.5}, "hardness"),
    ({"hardness": (0.0, 1.0)}, "curriculum_triplets"), ({"negative": "online"}, "ConfusionCounts"),
    ({"labels": ["a", "a"]}, "1 class in the labels"),
    ({"nearest": NEAREST | {"bird a": ["bird a"]}}, "itself"),
    ({"labels": []}, "0 class"), ({"on_no_lookalike": "skip"}, "on_no_lookalike"),
])
def test_sampler_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)


# ---- confusion counts


def test_confusion_counts_by_hand():
    c = S.ConfusionCounts(["a", "b", "c"], decay=0.5, min_count=0.3)
    for predicted in ("b", "b", "c"):
        c.update("a", predicted)
    assert c.counts["a"] == {"b": 0.75, "c": 1.0} and c.hardest("a") == "c"
    c.update("a", "a")  # right answers fade the counts
    assert c.counts["a"] == {"b": 0.375, "c": 0.5}
    c.update("a", None)
    c.update("a", "some words")  # no class: ignored
    assert c.counts["a"] == {"b": 0.375, "c": 0.5}
    assert c.hardest("a", among=["b"]) == "b"
    c.update("a", "a")
    assert c.counts["a"] == {"b": 0.1875, "c": 0.25}
    assert c.hardest("a", fallback="b") == "b"  # 0.25 is below min_count
    assert c.hardest("b") is None and c.counts["b"] == {}


def test_confusion_follows_the_policy():
    """A policy that confuses a with b, then learns that and confuses a with c: the hard negative follows."""
    c = S.ConfusionCounts(["a", "b", "c"], decay=0.9)
    hardest = []
    for step in range(60):
        c.update("a", "b" if step < 30 else "c")
        hardest.append(c.hardest("a"))
    assert hardest[:30] == ["b"] * 30 and hardest[45:] == ["c"] * 15


def test_confusion_errors_and_ties():
    c = S.ConfusionCounts(["b", "c", "a"], decay=1.0)
    c.update("a", "c")
    c.update("a", "b")
    assert c.hardest("a") == "b"  # equal counts: by name
    with pytest.raises(ValueError, match="'owl' is not one of the 3 classes"):
        c.update("owl", "a")
    with pytest.raises(ValueError, match="other classes"):
        c.load_state_dict({"counts": {"owl": {"a": 1.0}}})
    with pytest.raises(ValueError, match="decay"):
        S.ConfusionCounts(["a"], decay=0.0)


# ---- dynamic sampling


def source(items):
    iterator = iter(items)
    return lambda n: [item for _, item in zip(range(n), iterator)]


def test_fill_batch_refills_until_full():
    asked = []

    def draw(n, numbers=iter(range(1000))):
        asked.append(n)
        return [next(numbers) for _ in range(n)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled = S.fill_batch(draw, lambda items: [i % 3 == 0 for i in items], batch_size=8)
    assert filled.items == [0, 3, 6, 9, 12, 15, 18, 21] and filled.rounds == len(asked)
    assert asked[:2] == [8, 5] and filled.drawn == sum(asked) == 22


def test_fill_batch_gives_up_with_a_warning():
    with pytest.warns(RuntimeWarning, match="kept 0 of 80 groups in 20 rounds, 4 were asked for"):
        assert S.fill_batch(lambda n: [0] * n, lambda items: [False] * len(items), 4) == ([], 20, 80)
    with pytest.warns(RuntimeWarning, match="in 3 rounds"):
        filled = S.fill_batch(lambda n: list(range(n)), lambda x: [i == 0 for i in x], 5, max_rounds=3)
    assert filled.items == [0, 0, 0] and filled.rounds == 3


def test_fill_batch_full_in_the_last_round_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled = S.fill_batch(source(range(99)), lambda items: [i >= 4 for i in items], 2, max_rounds=3)
    assert filled.items == [4, 5] and filled.rounds == 3


def test_fill_batch_stops_when_the_source_is_empty():
    with pytest.warns(RuntimeWarning, match="kept 2 of 3"):
        assert S.fill_batch(source([1, 2, 3]), lambda items: [i != 2 for i in items], 9).items == [1, 3]


def test_fill_batch_never_returns_more_than_asked():
    assert S.fill_batch(lambda n: list(range(n + 5)), lambda items: [True] * len(items), 3).items == [0, 1, 2]


def test_fill_batch_errors():
    with pytest.raises(ValueError, match="2 values for 3 items"):
        S.fill_batch(lambda n: [1, 2, 3], lambda items: [True, True], 3)
    for bad in ({"batch_size": 0}, {"batch_size": 1, "max_rounds": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            S.fill_batch(lambda n: [1], lambda items: [True], **bad)
