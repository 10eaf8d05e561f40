"""samplers.py: rules that thousands of triplets keep, frequencies by chi square, the same sequence anywhere."""

import json
import resource
import time
import warnings
from collections import Counter

import numpy as np
import pytest

from finer1_lite import samplers as S

CLASSES = [f"bird {c}" for c in "abcdefgh"]
LABELS = [name for name in CLASSES for _ in range(4)]
NEAREST = {name: CLASSES[i + 1 :] + CLASSES[:i] for i, name in enumerate(CLASSES)}  # the next letter first


def sampler(seed=0, labels=LABELS, nearest=NEAREST, **options):
    return S.TripletSampler(labels, nearest, seed, **options)


def chi_square_z(counts):
    """Standard normal score of Pearson's chi square against equal counts (Wilson-Hilferty)."""
    counts = np.asarray(counts, dtype=float)
    k = len(counts) - 1
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    return ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / np.sqrt(2 / (9 * k))


def test_k_shot_takes_k_of_each_class():
    labels = LABELS[::-1]
    chosen = S.k_shot(labels, 3, seed=1)
    assert chosen == sorted(set(chosen)) and Counter(labels[i] for i in chosen) == dict.fromkeys(CLASSES, 3)
    assert chosen == S.k_shot(labels, 3, seed=1) != S.k_shot(labels, 3, seed=2)
    two, three = S.k_shot(LABELS, 2, seed=5), S.k_shot(LABELS, 3, seed=5)
    assert set(two) < set(three)
    more = [*LABELS, "another bird", "another bird"]  # does not change the draw of the other classes
    assert [i for i in S.k_shot(more, 2, seed=5) if i < len(LABELS)] == two
    with pytest.raises(ValueError, match="class 'b' has 1 images, below k=2"):
        S.k_shot(["a", "a", "b"], 2, seed=0)
    assert S.k_shot(["a", "a", "b"], 2, seed=0, on_short="keep") == [0, 1, 2]


def test_k_shot_is_uniform():
    counts = Counter(i for seed in range(2000) for i in S.k_shot(["a"] * 10, 4, seed=seed))
    # draws without replacement: the counts' variance is that of the multinomial times (10 - 4) / (10 - 1)
    scaled = 800 + (np.array([counts[i] for i in range(10)]) - 800) / np.sqrt(6 / 9)
    assert abs(chi_square_z(scaled)) < 3.3


@pytest.mark.parametrize("classes, seen", [(100, 60), (200, 120), (196, 117), (120, 72), (102, 61), (37, 22), (5, 3)])
def test_split_sizes_are_the_papers(classes, seen):
    names = [f"class {i:03}" for i in range(classes)]
    first, second = S.split_classes(names, seed=3)
    assert (len(first), len(second)) == (seen, classes - seen)
    assert sorted(first + second) == names and first == sorted(first) and second == sorted(second)


def test_split_depends_on_the_seed_alone():
    assert S.split_classes(CLASSES, seed=1) == S.split_classes(CLASSES[::-1] * 2, seed=1)
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
    (["House Finch", "house finch"], "differ only in case"), (["Wren", " Wren"], "differ only in case or spaces"),
    *[(["a", name], "labels must be strings with a letter or digit") for name in ("", " ", "...", "🐦", None, 3)],
])
def test_names_that_are_no_classes(names, message):
    for use in (S.split_classes, lambda n: S.k_shot(n, 1, 0), lambda n: sampler(labels=n)):
        with pytest.raises(ValueError, match=message):
            use(names)


def test_nearest_classes_by_hand():
    labels = ["a", "a", "b", "c", "c"]
    # directions of the class means: 45, 42 and about 88 degrees
    embeddings = [[2.0, 0.0], [0.0, 0.5], [1.0, 0.9], [0.0, 3.0], [0.2, 3.0]]
    assert S.nearest_classes(labels, embeddings) == {"a": ["b", "c"], "b": ["a", "c"], "c": ["a", "b"]}
    assert S.nearest_classes(["c", "a", "b"], np.ones((3, 2)))["c"] == ["a", "b"]  # ties by name
    order = [4, 2, 0, 3, 1]  # the order of the images does not matter
    moved = S.nearest_classes([labels[i] for i in order], [embeddings[i] for i in order])
    assert moved == S.nearest_classes(labels, embeddings)
    for broken in (np.ones((2, 3)), [[1, 0], [0, 0], [1, 1]], [[1, 0], [1, np.nan], [1, 1]]):
        with pytest.raises(ValueError, match="3 finite rows"):
            S.nearest_classes(["a", "b", "c"], broken)


def test_six_thousand_classes_take_seconds_and_keep_the_nearest():
    rows, labels = np.random.default_rng(0).normal(size=(6000, 16)), [f"class {i:04}" for i in range(6000)]
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = S.nearest_classes(labels, rows)
    S.TripletSampler(labels * 2, found, 0).identity()
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert time.process_time() - start < 10 and more < 200  # 2 s, 80 MB; to sort all took 55 s, 1500 MB
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for i in (0, 255, 256, 5999):
        order = np.argsort(-(unit @ unit[i]), kind="stable")[1 : S.NEAREST + 1]
        assert found[labels[i]] == [labels[j] for j in order]


@pytest.mark.parametrize("negative", ["similar", "random", "online"])
def test_ten_thousand_triplets_never_break_the_rules(negative):
    confusion = S.ConfusionCounts(CLASSES)
    for name in CLASSES[::2]:
        confusion.update(name, NEAREST[name][3])
    drawn = sampler(negative=negative, confusion=confusion).next(10_000)
    for anchor, positive, other in drawn:
        assert LABELS[positive] == LABELS[anchor] != LABELS[other] and positive != anchor
    if negative != "random":
        confused = CLASSES[::2] if negative == "online" else []
        expected = {n: NEAREST[n][3 if n in confused else 0] for n in CLASSES}
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
    positives, everyone = Counter((t.anchor, t.positive) for t in drawn), range(len(LABELS))
    pairs = [(i, j) for i in everyone for j in everyone if i != j and LABELS[i] == LABELS[j]]
    assert abs(chi_square_z([positives[p] for p in pairs])) < 3.3
    negative_classes = Counter((LABELS[t.anchor], LABELS[t.negative]) for t in drawn)
    assert abs(chi_square_z([negative_classes[a, b] for a in CLASSES for b in CLASSES if a != b])) < 3.3
    images = Counter(t.negative for t in sampler(7).next(9984))
    assert abs(chi_square_z([images[i] for i in range(len(LABELS))])) < 3.3


def test_the_sequence_depends_on_the_seed_and_not_on_batches():
    assert sampler(4).next(100) == sampler(4).next(100) != sampler(5).next(100)
    s = sampler(6)
    assert [t for size in (1, 5, 50, 44) for t in s.next(size)] == sampler(6).next(100)


def test_same_seed_same_triplets_on_every_python():
    """Values written down once (Python 3.9 to 3.13 agree), so that an upgrade that changes them is seen."""
    similar = [(13, 15, 19), (19, 16, 23), (0, 1, 5), (3, 0, 5), (28, 29, 1), (1, 3, 4)]
    apart = [(13, 15, 30), (19, 16, 28), (0, 1, 9), (3, 0, 18), (28, 29, 5), (1, 3, 9)]
    assert sampler(0).next(6) == similar and sampler(0, negative="random").next(6) == apart
    assert S.k_shot(LABELS, 2, seed=0) == [2, 3, 5, 6, 10, 11, 13, 15, 16, 19, 20, 22, 24, 25, 29, 30]
    assert S.split_classes(CLASSES, seed=0)[0] == ["bird d", "bird f", "bird g", "bird h"]


@pytest.mark.parametrize("options", [
    {}, {"negative": "random"}, {"hardness": (0.0, 1.0), "curriculum_triplets": 60},
])
@pytest.mark.parametrize("stop", [0, 31, 32, 33, 77])
def test_a_resumed_sampler_continues_the_sequence(options, stop):
    whole, first, resumed = (sampler(8, **options) for _ in range(3))
    begun = first.next(stop)
    state = json.loads(json.dumps(first.state_dict()))  # it survives JSON
    resumed.next(13)  # whatever it did before
    resumed.load_state_dict(state)
    assert begun + resumed.next(200 - stop) == whole.next(200)


def test_online_negatives_resume_with_their_counts():
    def fresh():
        return sampler(2, negative="online", confusion=S.ConfusionCounts(CLASSES, decay=0.9))

    def step(s):  # a policy that takes everything for the class two letters on
        batch = s.next(7)
        for t in batch:
            s.confusion.update(LABELS[t.anchor], NEAREST[LABELS[t.anchor]][1])
        return batch

    whole, first, resumed = fresh(), fresh(), fresh()
    sequence, begun = [step(whole) for _ in range(20)], [step(first) for _ in range(9)]
    state = first.state_dict()
    kept = json.dumps(state)
    step(first)
    assert json.dumps(state) == kept  # a saved state does not move with the sampler
    resumed.load_state_dict(json.loads(kept))
    assert begun + [step(resumed) for _ in range(11)] == sequence
    assert LABELS[sequence[-1][0].negative] == NEAREST[LABELS[sequence[-1][0].anchor]][1]
    for other in (sampler(3), sampler(2, labels=LABELS[4:] + LABELS[:4])):
        with pytest.raises(ValueError, match="another run or data"):
            other.load_state_dict(json.loads(kept))


@pytest.mark.parametrize("hardness, rank", [(1.0, 0), (0.0, 6), (0.5, 3), (0.9, 1)])
def test_hardness_picks_the_rank(hardness, rank):
    drawn = sampler(hardness=hardness).next(64)
    assert all(LABELS[t.negative] == NEAREST[LABELS[t.anchor]][rank] for t in drawn)


def test_curriculum_goes_from_easy_to_hard():
    s = sampler(hardness=(0.0, 1.0), curriculum_triplets=1000)
    ranks = [NEAREST[LABELS[t.anchor]].index(LABELS[t.negative]) for t in s.next(1500)]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] == 6 and set(ranks[1000:]) == {0}
    assert Counter(ranks[:1000]).keys() == set(range(7))


def test_classes_without_images_are_passed_over():
    nearest = {name: ["unseen", *others] for name, others in NEAREST.items()}
    assert sampler(nearest=nearest).next(50) == sampler().next(50)
    sampler(nearest={}, negative="random").next(10)  # needs no ranking


def test_the_only_image_of_a_class_is_its_positive_too():
    labels = [*LABELS, "bird i"]
    drawn = sampler(labels=labels, nearest=NEAREST | {"bird i": ["bird a"]}).next(3 * len(labels))
    assert all((t.positive == t.anchor) == (labels[t.anchor] == "bird i") for t in drawn)


@pytest.mark.parametrize("options, message", [
    ({"negative": "hard"}, "negative is 'hard'"), ({"negative": "online"}, "with confusion"),
    ({"hardness": 1.5}, "hardness"), ({"hardness": (0.0, 1.0)}, "curriculum_triplets"),
    ({"labels": ["a", "a"]}, "no look-alike"),
    ({"nearest": NEAREST | {"bird a": ["bird a"]}}, "its own"),
    ({"nearest": NEAREST | {"bird b": ["a class without images"]}}, "class 'bird b' has no look-alike"),
])
def test_sampler_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)


def test_confusion_counts_by_hand():
    c = S.ConfusionCounts(["a", "b", "c"], decay=0.5)
    for predicted in ("b", "b", "c"):
        c.update("a", predicted)
    assert c.counts["a"] == {"b": 0.75, "c": 1.0} and c.hardest("a") == "c"
    for predicted in ("a", None, "some words"):  # a right answer fades the counts, one that is no class is ignored
        c.update("a", predicted)
    assert c.counts["a"] == {"b": 0.375, "c": 0.5} and c.hardest("a", among=["b"]) == "b"
    for _ in range(3):
        c.update("a", "a")
    assert c.hardest("a", fallback="b") == "b"  # 0.0625 is below 0.1
    assert c.hardest("b") is None and c.counts["b"] == {}
    c.counts["b"] = {"c": 1.0, "a": 1.0}
    assert c.hardest("b") == "a"  # equal counts: by name


def test_fill_batch_refills_until_full():
    asked = []

    def draw(n, numbers=iter(range(1000))):
        asked.append(n)
        return [next(numbers) for _ in range(n)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled = S.fill_batch(draw, lambda items: [i % 3 == 0 for i in items], 8, max_rounds=7)  # full in the last
    assert filled.items == [0, 3, 6, 9, 12, 15, 18, 21] and filled.rounds == len(asked)
    assert asked[:2] == [8, 5] and filled.drawn == sum(asked) == 22


def test_fill_batch_gives_up_with_a_warning():
    with pytest.warns(RuntimeWarning, match="kept 0 of 80 groups in 20 rounds, 4 were asked for"):
        assert S.fill_batch(lambda n: [0] * n, lambda items: [False] * len(items), 4) == ([], 20, 80)
    with pytest.warns(RuntimeWarning, match="in 3 rounds"):
        filled = S.fill_batch(lambda n: list(range(n)), lambda x: [i == 0 for i in x], 5, max_rounds=3)
    assert filled.items == [0, 0, 0] and filled.rounds == 3
