"""The health report: every fault that a folder can have is found and named, and sound data has none."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture
from PIL import ImageEnhance

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.fish import all_fish, draw_folder
from finer1_lite.birds.render import draw
from finer1_lite.config import TapoConfig, get_profile
from finer1_lite.data.health import BRACKETS, CONTAINED, MAX_DISTANCE, SAME, STEP_IMAGES, check_health, similar_names
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
    image.save(file := io.BytesIO(), "JPEG", quality=quality)
    return Picture.open(file).convert("RGB")


@pytest.fixture(scope="module")
def birds():
    return dataset(*zip(*[(draw(s, i), s.name) for s in evaluation_species()[:50] for i in range(4)]))


def test_different_birds_are_no_duplicates(birds, monkeypatch):
    monkeypatch.setattr("finer1_lite.data.health.MAX_DISTANCE", 80)  # the nearest are well beyond its own
    pairs = check_health(birds).duplicates
    assert pairs["distance"].min() >= MAX_DISTANCE + 8
    assert (pairs["label_a"] == pairs["label_b"]).any() and (pairs["label_a"] != pairs["label_b"]).any()


@pytest.mark.parametrize("edit", [
    lambda image: saved(image, 20), lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    lambda image: image.resize((image.width // 2, image.height // 2)),
    lambda image: image.resize((image.width * 2, image.height * 2)),
], ids=["JPEG", "darker", "half the size", "double the size"])  # fmt: skip
def test_the_same_picture_is_found_again(birds, edit):
    images, labels = birds[::4]["image"], birds[::4]["label"]
    pairs = check_health({"a": dataset(images, labels), "b": dataset(map(edit, images), labels)}).duplicates
    assert pairs["row_a"].tolist() == pairs["row_b"].tolist() == list(range(50))
    assert pairs["distance"].max() <= MAX_DISTANCE - 4


def test_duplicates_are_told_apart_by_what_they_spoil():
    same, leaked, named = noise(0), noise(1), noise(2)
    data = DatasetDict(
        train=dataset([same, same, leaked, named, noise(3)], ["a", "a", "a", "a", "b"]),
        test=dataset([saved(leaked, 60), named, noise(4)], ["a", "b", "b"]),
    )
    health = check_health(data)
    first, *others = health.duplicates.drop(columns=["distance", "place_a", "place_b"]).values.tolist()
    assert first == ["train", 0, "a", "train", 1, "a"]
    assert others == [["train", 2, "a", "test", 0, "a"], ["train", 3, "a", "test", 1, "b"]]
    splits, names, twice, *_ = health.problems
    assert splits.startswith("Pictures in two splits (2): train[2] 'a' and test[0] 'a', train[3] 'a' and test[1] 'b'. ")
    assert names.startswith("Pictures under two names (1): train[3] 'a' and test[1] 'b'. Look at them")
    assert twice.startswith("Pictures twice in a class (1): train[0] 'a' and train[1] 'a'. Drop one: a")


def test_sound_data_has_no_problem():
    data = DatasetDict(
        train=dataset([noise(i) for i in range(8)], ["Wren"] * 4 + ["Finch"] * 4),
        test=dataset([noise(i) for i in range(8, 11)], ["Wren", "Finch", "Unseen Tit"]),
    )
    health = check_health(data)
    assert health.problems == [] and health.duplicates.empty and health.names.empty and health.tokens is None
    counts = {"train": {"Finch": 4, "Unseen Tit": 0, "Wren": 4}, "test": {"Finch": 1, "Unseen Tit": 1, "Wren": 1}}
    assert health.counts.to_dict() == counts and list(health.counts) == ["train", "test"]  # not by the alphabet


def test_the_faults_of_the_drawn_folder_are_found(tmp_path):
    loaded = load_images(folder_entries(draw_folder(tmp_path, per_class=5)))
    assert {p.name for p, _ in loaded.skipped} == {"cut_off.png", "notes.jpg"}
    assert "renamed: bell_cod -> bell cod" in loaded.report()
    health = check_health(loaded.data)
    (pair,) = health.duplicates.itertuples()
    assert {pair.label_a, pair.label_b} == {fish.name for fish in all_fish()[:2]}
    names, small = health.problems
    assert names.startswith("Pictures under two names (1)") and " a_friend_sent_this.png '" in names
    assert "less than 4 images to learn from and one to test on (1): 'unknown shape' (1). Add images" in small


def test_names_alike_and_classes_too_small_for_their_split():
    data = DatasetDict(
        train=dataset([noise(i) for i in range(7)], ["Wren"] * 4 + ["House Wren"] * 3),
        test=dataset([noise(9), noise(10)], ["House Wren", "Unseen Tit"]),
    )
    names, small, untested = check_health(data).problems
    assert names.startswith("Names, the first contained in the second (1): 'Wren' and 'House Wren'. To answer")
    assert small.startswith("Classes with less than 4 images in train (1): 'House Wren' (3). Add images")
    assert untested.startswith("Classes without an image in test (1): 'Wren' (0). Add images")


def test_sizes_and_sides():
    sizes = [(60, 100), (100, 60), (300, 300), (30, 90), (900, 4)]
    health = check_health(dataset([noise(i, size) for i, size in enumerate(sizes)], ["a"] * 5))
    assert health.sizes.loc["all"].to_dict() == {
        "images": 5, "shortest_side": 4, "median_width": 100, "median_height": 90, "longest_side": 900, "tiny": 2,
        "thin": 1,
    }  # fmt: skip
    tiny, thin = health.problems
    assert tiny.startswith("Pictures with a side below 56 pixels (2): all[3] (30 x 90), all[4] (900 x 4). Details")
    assert "(1): all[4] (900 x 4)" in thin


def test_tokens_are_those_of_the_processor():
    processor = load_base(get_profile("cpu")).processor
    sizes = [(112, 112), (60, 200), (90, 40), (500, 300), (900, 4)]  # the last one it refuses
    train = dataset([noise(i, size) for i, size in enumerate(sizes)], ["a"] * 5)
    data = DatasetDict(train=train, test=dataset([noise(9, (56, 56))], ["a"]))
    grids = processor.image_processor([noise(i, size) for i, size in enumerate(sizes[:4])], return_tensors="pt")
    counts = (grids["image_grid_thw"].prod(-1) // processor.image_processor.merge_size**2).tolist()
    assert len(set(counts)) > 2
    health = check_health(data, processor)
    assert health.tokens.loc["train"].tolist() == [min(counts), np.median(counts), max(counts), sum(counts)]
    assert health.step_tokens == round(np.mean(counts) * STEP_IMAGES)
    assert STEP_IMAGES == 3 * TapoConfig().questions


@pytest.mark.parametrize(("one", "other", "why"), [
    ("House Finch", "house  finch", SAME), ("House-Finch", "Housefinch", SAME), ("Café", "Cafe\u0301", SAME),
    ("Wren (male)", "Wren (female)", BRACKETS), ("Mallow", "tree mallow", CONTAINED),
    ("Tern", "Eastern Kite", CONTAINED),  # inside a word too, as the released reward looks for it
    ("Boeing 737-200", "Boeing 737-300", None), ("Wren", "Tern", None), ("Song Sparrow", "Fox Sparrow", None),
])  # fmt: skip
def test_names_that_are_alike(one, other, why):
    found = similar_names([other, one, "Something Else Entirely"])
    assert found["why"].tolist() == ([why] if why else [])
    if why == CONTAINED:
        assert found.iloc[0].tolist() == [one, other, why]
        assert accuracy_reward(f"<answer>{other}</answer>", one) == 1.0  # it is paid


@pytest.mark.parametrize(("data", "message"), [
    (Dataset.from_dict({"image": [], "label": []}), "no rows"),
    (dataset([noise(0), noise(1)], ["a", " "]), r"all\[1\] has the label ' '"),
    (dataset([noise(0)], ["0"]).cast_column("label", ClassLabel(1)), r"all\[0\] has the label 0; labels should be"),
    (dataset([None], ["a"]), r"all\[0\] has no readable picture"),
])  # fmt: skip
def test_bad_data_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        check_health(data)
