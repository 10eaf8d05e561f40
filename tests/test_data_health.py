"""The health report: every fault that a folder can have is found and named, and sound data has none."""

import io

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture
from PIL import ImageEnhance

from finer1_lite.birds.dataset import load_birds
from finer1_lite.birds.fish import all_fish, draw, draw_folder
from finer1_lite.config import TapoConfig, get_profile
from finer1_lite.data.health import (
    BRACKETS,
    CONTAINED,
    LARGE,
    MAX_DISTANCE,
    SAME,
    SLIP,
    check_health,
    duplicate_pairs,
    picture_facts,
    similar_names,
)  # fmt: skip
from finer1_lite.data.sources import folder_entries, load_images
from finer1_lite.policy.load import load_base
from finer1_lite.rewards import accuracy_reward


def dataset(pictures, labels):
    columns = {"image": list(pictures), "label": list(labels)}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": Value("string")}))


def noise(seed, size=(80, 60)):
    """Pictures of different seeds have nothing in common."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Picture.fromarray(pixels).resize(size, Picture.Resampling.BICUBIC)


def saved(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Picture.open(file).convert("RGB")


def half(image):
    return image.resize((image.width // 2, image.height // 2))


def brighter(image, by=1.1):
    return ImageEnhance.Brightness(image).enhance(by)


EDITS = {
    "JPEG": lambda image: saved(image, 50), "half the size": half, "brighter": brighter,
    "all three": lambda image: saved(brighter(half(image)), 50), "strong JPEG": lambda image: saved(image, 20),
    "darker": lambda image: brighter(image, 0.8), "double the size": lambda i: i.resize((i.width * 2, i.height * 2)),
}  # fmt: skip


# ---- the distance


@pytest.fixture(scope="module")
def birds():
    return load_birds(per_class={"val": {True: 1, False: 1}, "test": {True: 1, False: 1}})


def test_different_birds_are_no_duplicates_at_the_default(birds):
    facts = picture_facts(birds)
    assert len(facts) == 704 and duplicate_pairs(facts).empty
    near = duplicate_pairs(facts, 60)  # the nearest of them are well beyond it
    assert near["distance"].min() >= MAX_DISTANCE + 8
    assert (near["label_a"] == near["label_b"]).any() and (near["label_a"] != near["label_b"]).any()


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_the_same_picture_is_found_again(birds, edit):
    images, labels = birds["train"][::8]["image"], birds["train"][::8]["label"]
    pairs = duplicate_pairs(picture_facts({"a": dataset(images, labels), "b": dataset(map(edit, images), labels)}))
    assert pairs["row_a"].tolist() == pairs["row_b"].tolist() == list(range(48))
    assert pairs["distance"].max() <= MAX_DISTANCE - 4 and not pairs["exact"].any()


def test_different_fish_are_no_duplicates_at_the_default():
    fish = [(draw(f, i), f.name) for f in all_fish() for i in range(12)]
    assert duplicate_pairs(picture_facts(dataset(*zip(*fish))), MAX_DISTANCE + 8).empty


def test_every_pair_is_compared_once():
    """Against a plain double loop, over several blocks and with groups of copies."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (150, 256), dtype=np.uint8)
    bits[[3, 70, 149]] = bits[0]  # copies in three blocks
    bits[100, :11] = 1 - bits[0, :11]  # and what differs by 11 and by 12 bits
    bits[101, :12] = 1 - bits[0, :12]
    bits[100, 11:], bits[101, 12:] = bits[0, 11:], bits[0, 12:]
    bits[5] = 1 - bits[4]  # all 256 bits apart
    facts = pd.DataFrame({
        "split": "a", "row": range(150), "label": "x", "bits": [np.packbits(b).tobytes() for b in bits], "pixels": b"",
    })  # fmt: skip
    found = duplicate_pairs(facts, 11)
    distance = (bits[:, None] != bits).sum(-1)
    expected = [(i, j, distance[i, j]) for i in range(150) for j in range(i + 1, 150) if distance[i, j] <= 11]
    assert list(found[["row_a", "row_b", "distance"]].itertuples(index=False, name=None)) == expected
    assert len(expected) == 6 + 4 + 1


@pytest.mark.parametrize("distance", [-1, 256])
def test_a_distance_without_meaning_is_refused(distance):
    with pytest.raises(ValueError, match="0 .. 255 bits"):
        duplicate_pairs(picture_facts(dataset([noise(0)], ["a"])), distance)


# ---- the report


def test_duplicates_are_told_apart_by_what_they_spoil():
    same, leaked, named = noise(0), noise(1), noise(2)
    data = DatasetDict(
        train=dataset([same, same, leaked, named, noise(3)], ["a", "a", "a", "a", "b"]),
        test=dataset([saved(leaked, 60), named, noise(4)], ["a", "b", "b"]),
    )
    health = check_health(data)
    where = [tuple(row) for row in health.duplicates.drop(columns="distance").itertuples(index=False)]
    assert where == [
        ("train", 0, "a", "train", 1, "a", True), ("train", 2, "a", "test", 0, "a", False),
        ("train", 3, "a", "test", 1, "b", True),
    ]  # fmt: skip
    splits, names, twice = (p for p in health.problems if p.startswith("Pictures") and "side" not in p)
    assert splits == (
        "Pictures in two splits (2): train[2] 'a' and test[0] 'a', train[3] 'a' and test[1] 'b'."
        " What was trained on must not be tested on: drop one of each."
    )
    assert names.startswith("Pictures under two names (1): train[3] 'a' and test[1] 'b'. Look at them")
    assert twice.startswith("Pictures twice in a class (1): train[0] 'a' and train[1] 'a'. Drop one")


def test_sound_data_has_no_problem():
    data = DatasetDict(
        train=dataset([noise(i) for i in range(8)], ["Wren"] * 4 + ["Finch"] * 4),
        test=dataset([noise(i) for i in range(8, 11)], ["Wren", "Finch", "Unseen Tit"]),
    )
    health = check_health(data)
    assert health.problems == [] and health.duplicates.empty and health.names.empty
    assert health.tokens is None and health.step_tokens is None
    assert health.counts.columns.tolist() == ["train", "test"]  # as given, not by the alphabet
    assert health.counts.to_dict() == {
        "train": {"Finch": 4, "Unseen Tit": 0, "Wren": 4}, "test": {"Finch": 1, "Unseen Tit": 1, "Wren": 1},
    }  # fmt: skip


def test_the_faults_of_the_drawn_folder_are_found(tmp_path):
    loaded = load_images(folder_entries(draw_folder(tmp_path, per_class=5)))
    assert len(loaded.skipped) == 2  # files that are no pictures are the loader's business
    health = check_health(loaded.data)
    (pair,) = health.duplicates.itertuples()
    assert {pair.label_a, pair.label_b} == {fish.name for fish in all_fish()[:2]} and pair.exact
    assert len(health.problems) == 2
    assert health.problems[0].startswith("Pictures under two names (1)")
    assert health.problems[1].startswith(
        "Classes with less than 4 images to learn from and one to test on (1): 'unknown shape' (1)"
    )


def test_classes_too_small_for_their_split():
    data = DatasetDict(
        train=dataset([noise(i) for i in range(7)], ["Wren"] * 4 + ["Finch"] * 3),
        test=dataset([noise(9), noise(10)], ["Finch", "Unseen Tit"]),
    )
    assert check_health(data).problems == [
        "Classes with less than 4 images in train (1): 'Finch' (3). Add images, or leave the class out.",
        "Classes without an image in test (1): 'Wren' (0). Add images, or leave the class out.",
    ]


def test_one_folder_needs_the_shots_and_a_test_image():
    (problem,) = check_health(dataset([noise(i) for i in range(9)], ["Wren"] * 5 + ["Finch"] * 4)).problems
    assert problem.startswith("Classes with less than 4 images to learn from and one to test on (1): 'Finch' (4). Add")


def test_sizes_and_sides(monkeypatch):
    pictures = [noise(0, (60, 100)), noise(1, (100, 60)), noise(2, (300, 300)), noise(3, (30, 90)), noise(4, (900, 4))]
    monkeypatch.setattr("finer1_lite.data.health.LARGE", 89_999)  # a real one would take seconds
    assert LARGE == 24_000_000
    health = check_health(dataset(pictures, ["a"] * 5))
    assert health.sizes.loc["all"].to_dict() == {
        "images": 5, "shortest_side": 4, "median_width": 100, "median_height": 90, "longest_side": 900, "portrait": 2,
        "landscape": 2, "tiny": 2, "large": 1, "thin": 1,
    }  # fmt: skip
    tiny, large, thin = health.problems
    assert tiny.startswith("Pictures with a side below 56 pixels (2): all[3] (30 x 90), all[4] (900 x 4). Details")
    assert "(1): all[2] (300 x 300)" in large and "(1): all[4] (900 x 4)" in thin


def test_a_long_list_is_cut_after_three():
    (problem,) = check_health(dataset([noise(i, (20, 20)) for i in range(5)], ["a"] * 5)).problems
    assert "(5): all[0] (20 x 20), all[1] (20 x 20), all[2] (20 x 20) and more. Details" in problem


def test_a_turned_photograph_has_the_sides_that_a_viewer_shows(tmp_path):
    turned = Picture.Exif()
    turned[0x0112] = 6
    noise(0).save(tmp_path / "a.jpg", exif=turned)
    facts = picture_facts(dataset([str(tmp_path / "a.jpg"), noise(0).rotate(-90, expand=True)], ["a", "a"]))
    assert facts[["width", "height"]].values.tolist() == [[60, 80], [60, 80]]
    assert len(duplicate_pairs(facts)) == 1


def test_a_transparent_picture_is_what_a_viewer_shows():
    clear = noise(0)
    clear.putalpha(Picture.new("L", clear.size))  # all colour is still there, and none of it is seen
    facts = picture_facts(dataset([clear, Picture.new("RGB", clear.size, "white")], "ab"))
    assert duplicate_pairs(facts)["exact"].tolist() == [True]


def test_tokens_are_those_of_the_processor():
    processor = load_base(get_profile("cpu")).processor
    sizes = [(112, 112), (60, 200), (90, 40), (500, 300), (900, 4)]  # the last one it refuses
    data = DatasetDict(
        train=dataset([noise(i, size) for i, size in enumerate(sizes)], ["a"] * 5),
        test=dataset([noise(9, (56, 56))], ["a"]),
    )
    grids = processor.image_processor([noise(i, size) for i, size in enumerate(sizes[:4])], return_tensors="pt")
    counts = (grids["image_grid_thw"].prod(-1) // processor.image_processor.merge_size**2).tolist()
    assert len(set(counts)) > 2
    health = check_health(data, processor)
    assert health.tokens.loc["train"].tolist() == [min(counts), np.median(counts), max(counts), sum(counts)]
    assert health.step_tokens == round(np.mean(counts) * 3 * TapoConfig().questions)


# ---- names


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ("House Finch", "house  finch", SAME),
        ("House-Finch", "Housefinch", SAME),
        ("Café", "Cafe\u0301", SAME),  # two Unicode forms
        ("Wren (male)", "Wren (female)", BRACKETS),
        ("Mallow", "tree mallow", CONTAINED),
        ("Tern", "Eastern Kite", CONTAINED),  # inside a word too, as the released reward looks for it
        ("Grey Wagtail", "Gray Wagtail", SLIP),
        ("Wagtail", "Wagtial", SLIP),
        ("Cardinals", "Cardnals", SLIP),
        ("Audi A5 Coupe 2012", "Audi S5 Coupe 2012", SLIP),
        ("Boeing 737-200", "Boeing 737-300", None),
        ("Wren", "Tern", None),
        ("Cat", "Bat", None),
        ("Song Sparrow", "Fox Sparrow", None),
    ],
)
def test_names_that_are_alike(one, other, why):
    found = similar_names([other, one, "Something Else Entirely"])
    assert found["why"].tolist() == ([why] if why else [])
    if why == CONTAINED:
        assert found.iloc[0].tolist() == [one, other, why]
        assert accuracy_reward(f"<answer>{other}</answer>", one) == 1.0  # it is paid


def test_the_report_says_what_to_do_about_names():
    names = ["Wren", "House Wren", "wren", "Tit", "Jay"]
    problems = check_health(dataset([noise(i) for i in range(25)], names * 5)).problems
    assert problems[0].startswith("Names, the same but for case, spaces or punctuation (1): 'Wren' and 'wren'. If they")
    assert problems[1].startswith("Names, the first contained in the second (2): 'Wren' and 'House Wren', 'wren' and")
    assert "guarded_reward" in problems[1] and len(problems) == 2


# ---- what cannot be checked


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dataset.from_dict({"image": [], "label": []}), "no rows"),
        (dataset([noise(0)], ["a"]).remove_columns("label"), r"all has no column label; it has \['image'\]"),
        (dataset([noise(0), noise(1)], ["a", " "]), r"all\[1\] has the label ' '"),
        (dataset([noise(0)], ["0"]).cast_column("label", ClassLabel(1)), r"all\[0\] has the label 0; labels should be"),
        (dataset([None], ["a"]), r"all\[0\] has no readable picture"),
        ({"val": dataset([{"bytes": b"no picture", "path": None}], ["a"])}, r"val\[0\] has no readable picture, leave"),
    ],
)
def test_bad_data_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        check_health(data)
