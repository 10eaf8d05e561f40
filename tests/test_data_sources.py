"""Pictures from folders, tables and the Hub: what a user's folder may hold, and the split made of it."""

import importlib.util
import io
import os
import subprocess
import sys
import time
import unicodedata
import warnings
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image

from finer1_lite import images
from finer1_lite.data.names import clean_name, clean_names
from finer1_lite.data.sources import Entry, counts, folder_entries, hub_images, load_images, table_entries
from finer1_lite.data.splits import few_shot
from finer1_lite.images import as_rgb, read_image


def picture(path, size=(40, 30), mode="RGB", color=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color or 128).save(path, **how)
    return path


def world(root, classes=("wren", "finch"), n=3):
    for name in classes:
        for i in range(n):
            picture(root / name / f"{i}.png", color=(10 * i, 0, 0))
    return root


@pytest.mark.parametrize("raw, clean", [
    ("Wren; Jenny_Wren", "Wren, Jenny Wren"), ("a__b \t c", "a b c"), ("Gr&uuml;nfink", "Grünfink"),
    (unicodedata.normalize("NFD", "Éider"), "Éider"), ("ab\u200bc", "ab c"), ("Rot\xadkehlchen", "Rotkehlchen"),
    ("Ｗｒｅｎ", "Wren"), ("São", "São"), ("707-320", "707-320"),
])  # fmt: skip
def test_names_are_cleaned_for_people(raw, clean):
    assert clean_name(raw) == clean


@pytest.mark.parametrize("raw, clean", [
    (["001.Laysan_Albatross", "118.House_Sparrow"], ["Laysan Albatross", "House Sparrow"]),
    (["n02085620-Chihuahua", "n02106662-German_shepherd"], ["Chihuahua", "German shepherd"]),
    (["707-320", "737-200"], ["707-320", "737-200"]),  # aircraft: the number is the name
    (["001.Laysan_Albatross", "House_Sparrow"], ["001.Laysan Albatross", "House Sparrow"]),
    (["2012_Audi_A4", "2011_BMW_M3"], ["2012 Audi A4", "2011 BMW M3"]), (["1", "2", "3M"], ["1", "2", "3M"]),
    (["01_finch", "02_finch"], ["01 finch", "02 finch"]),  # without the number they would be one
    (["1.wren", "2.finch", "10.gull", "311.tern"], ["wren", "finch", "gull", "tern"]),
    (["1_wren", "2_finch", "10_gull"], ["wren", "finch", "gull"]), (["1) wren", "12) gull"], ["wren", "gull"]),
    (["n03773504-missile", "n04008634-missile", "n02085620-Chihuahua"],
     ["n03773504-missile", "n04008634-missile", "Chihuahua"]),
    (["911 Carrera", "718 Cayman"], ["911 Carrera", "718 Cayman"]), (["5 GT", "3 Series"], ["5 GT", "3 Series"]),
    (["3_Series", "5_Series", "7_GT"], ["3 Series", "5 Series", "7 GT"]),
    (["737-MAX", "747-SP"], ["737-MAX", "747-SP"]),
])  # fmt: skip
def test_numbers_of_classes_go_where_every_class_has_one(raw, clean):
    assert list(clean_names(raw).values()) == clean


@pytest.mark.parametrize("names", [["1", "10", "21"], ["class_3", "wren"], ["n02085620", "n02085621"], ["A310", "Q7"]])
def test_names_that_are_only_numbers_are_warned_of(names):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        clean_names(names)
    expected = [] if names[0] == "A310" else [f"the model cannot know class '{clean_name(names[0])}'; give names"]
    assert len(said) == len(expected) and all(text in str(w.message) for text, w in zip(expected, said))


def test_two_names_that_become_one_are_named():
    for names, message in [(["a_b", "a b"], "'a_b' and 'a b' both read 'a b'"), (["Wren", "wren"], "only in case"),
                           (["__"], "'__' has no letter or digit once cleaned")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            clean_names(names)
    assert set(clean_names([unicodedata.normalize("NFD", "Éider"), "Éider"]).values()) == {"Éider"}  # two systems


def test_folder_of_classes_and_what_is_passed_over(tmp_path, capsys):
    world(tmp_path, n=2)
    for folder in (".git", "__MACOSX/wren", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("wren/.hidden.png", "wren/a.cr2", "wren/b.CR2", "finch/notes", "own.jpg", "guide.csv"):
        (tmp_path / file).touch()
    picture(tmp_path / "wren" / "2024" / "deep.JPG")
    assert [(e.label, e.path.name, e.split) for e in folder_entries(tmp_path)] == [
        ("finch", "0.png", None), ("finch", "1.png", None),
        ("wren", "0.png", None), ("wren", "1.png", None), ("wren", "deep.JPG", None),
    ]  # fmt: skip
    assert capsys.readouterr().out.split("\n  ")[1:] == [
        "without a picture: empty", "files passed over: 2 .cr2, 1 without ending, 1 beside the class folders",
        "folders inside a class are part of it: wren/2024\n",
    ]  # fmt: skip


@pytest.mark.parametrize("files, entries, told", [
    (["Airbus/A310", "Boeing/737-200"], [("A310", "Airbus", None), ("737-200", "Boeing", None)],
     "classes are the inner folders: Airbus/A310 is 'A310' of the family 'Airbus'"),
    (["train_images/wren", "Test2017/wren"], [("wren", None, "test"), ("wren", None, "train")],
     "'train_images' is taken for train"),
    (["TrainSet/Boeing/737", "ValSet/Boeing/737", "ValSet/Airbus/A310"],
     [("737", "Boeing", "train"), ("A310", "Airbus", "val"), ("737", "Boeing", "val")], "'ValSet' is taken for val"),
    (["A310/train", "A310/test", "F16/test"],
     [("A310", None, "test"), ("A310", None, "train"), ("F16", None, "test")], ""),
    (["train/wren", "Validation/wren", "test/wren"], [("wren", None, part) for part in ("val", "test", "train")], ""),
    (["images/tit", "images/wren"], [("tit", None, None), ("wren", None, None)], "images/tit is 'tit'"),
    (["tit/2023", "tit/2024", "wren/2024"], [("tit", None, None)] * 2 + [("wren", None, None)],
     "folders inside a class are part of it: tit/2023"),
    (["food/fig", "food/kiwi", "food/lime", "food/fruit/kiwi"],  # a class that lies in two places
     [("fig", "food", None), ("kiwi", "fruit", None), ("kiwi", "food", None), ("lime", "food", None)],
     "food/fruit/kiwi is 'kiwi' of the family 'fruit'"),
    (["fruit/lime", "tit"], [("lime", "fruit", None), ("tit", None, None)], "lime is 'lime' of the family 'fruit'"),
    (["train_val_images/fish/Abudefduf", "train_val_images/bird/Tit"],
     [("Tit", "bird", "train"), ("Abudefduf", "fish", "train")], "'train_val_images' is taken for train"),
])  # fmt: skip
def test_nested_folders_and_what_was_decided(tmp_path, capsys, files, entries, told):
    for name in files:
        picture(tmp_path / name / "0.png")
    assert [(e.label, e.family, e.split) for e in folder_entries(tmp_path)] == entries
    out = capsys.readouterr().out
    assert told in out and bool(told) == bool(out)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "no" / "classes").mkdir(parents=True)
    picture(tmp_path / "no" / "classes" / "a.jpg")
    world(tmp_path / "parts" / "train")
    picture(tmp_path / "parts" / "test" / "a.jpg")  # would be lost, or a class "test"
    (tmp_path / "empty" / "wren").mkdir(parents=True)
    world(tmp_path / "mixed", ("train/wren", "robin"))
    for name, error, message in [
        ("nowhere", FileNotFoundError, "nowhere"), ("no/classes", ValueError, "no class folders: put each"),
        ("parts", ValueError, "parts/test has no class folders"), ("mixed", ValueError, "are they splits or classes"),
        ("empty", ValueError, "empty has no class folders: .*; without a picture: wren"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            folder_entries(tmp_path / name)


def test_tables(tmp_path):
    text = "\ufeffpath,label,family\r\na.png,Éider,ducks\r\n\"b,c.png\",x\u2028y,\r\nc.png,0\r\n"
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert table_entries(tmp_path / "t.csv") == [
        Entry(tmp_path / "a.png", "Éider", "ducks"), Entry(tmp_path / "b,c.png", "x\u2028y"),
        Entry(tmp_path / "c.png", "0")]  # fmt: skip
    text = '{"path": "a.png", "label": "Éider", "split": "Validation"}\n\n{"path": "b.png", "label": 0}\n'
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8")
    assert table_entries(tmp_path / "t.jsonl") == [
        Entry(tmp_path / "a.png", "Éider", None, "val"), Entry(tmp_path / "b.png", "0")]  # fmt: skip


def test_paths_may_be_written_as_windows_does(tmp_path):
    picture(tmp_path / "wren" / "0.png"), picture(tmp_path / "odd\\1.png")
    (tmp_path / "t.csv").write_text("path,label\nwren\\0.png,wren\n.\\wren\\gone.png,wren\nodd\\1.png,tit\n")
    (tmp_path / "t.jsonl").write_text('{"path": "wren\\\\0.png", "label": "wren"}\n')
    assert [e.path.relative_to(tmp_path).as_posix() for e in table_entries(tmp_path / "t.csv")] == [
        "wren/0.png", "wren/gone.png", "odd\\1.png"]  # the last is a file's own name here
    assert table_entries(tmp_path / "t.jsonl")[0].path == tmp_path / "wren" / "0.png"


@pytest.mark.parametrize("name, text, error", [
    ("t.csv", "path,label\nC:\\data\\0.png,wren\n", r"line 2: 'C:.*' is no path here; write it from the table on"),
    ("t.csv", "path,label\nd:/data/0.png,wren\n", "line 2: 'd:/data/0.png' is no path here"),
    ("t.jsonl", '{"path": "wren\\table.png", "label": "wren"}', "line 1: .*table.png' is no path here; write it from"),
    ("t.csv", "file,label\na,b\n", "needs the columns path, label; 'path' is missing"),
    ("t.csv", "path,label,split\na.png,b,dev\n", "line 2: unknown split 'dev'"),
    ("t.jsonl", '{"path": "a", "label": "b"}\n{"path"\n', "line 2: "),
    ("t.csv", 'path,label\n"a\n.png",b\nc.png,\n', "line 2: a cell goes on in the next line; is a quote missing"),
    ("t.csv", 'path,label\na.png,b\n\n"c.png,d\ne.png,f\n', "line 4: a quote is not closed"),
    ("t.csv", 'path,label\n"a.png,b\nc.png,"d"\n', "line 2: ',' expected after"),
    ("t.csv", "path,label\na.png,b,c\n", "line 2: more cells than columns; put a cell that holds a comma into quotes"),
    ("t.csv", "path;label\na.png;b\n", "needs the columns path, label; 'path' is missing; separate the cells by"),
    ("t.csv", b"path,label\na.png,b\nb.png,\xc9ider\n", "line 3: not UTF-8; save the table as UTF-8"),
])  # fmt: skip
def test_a_broken_table_names_its_line(tmp_path, name, text, error):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=error):
        table_entries(tmp_path / name)


def test_counts_are_a_dry_run():
    table = counts([Entry("none", "a", None, "train")] * 3 + [Entry("none", "b", None, "test")])
    assert table.loc["a"].to_dict() == {"test": 0, "train": 3, "pictures": 3} and list(table.index) == ["b", "a"]


def test_scarce_and_lost_classes_are_reported_and_a_picture_counts_once(tmp_path):
    paths = [picture(tmp_path / f"{i}.png") for i in range(3)]
    (tmp_path / "broken.png").write_text("hello")
    entries = [Entry(paths[0], "wren"), Entry(paths[1], "wren"), Entry(paths[2], "finch"),
               Entry(tmp_path / "broken.png", "robin"), Entry(paths[0], "finch", None, "test")]  # fmt: skip
    loaded = load_images(entries)
    assert loaded.data["label"] == ["wren", "wren", "finch"] and loaded.lost == ["robin"]
    assert loaded.skipped[0] == (paths[0], "listed before, as 'wren': a picture may be in one split only")
    assert loaded.report().split("\n")[:3] == [
        "3 pictures of 2 classes", "no picture left: robin", "one picture only: finch"]  # fmt: skip


def test_no_pipe_is_waited_for_and_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    at_once, most, read = [], [], images.as_rgb

    def watched(image):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.05)
        at_once.pop()
        return read(image)

    monkeypatch.setattr(images, "as_rgb", watched)
    monkeypatch.setattr(images, "MANY_PIXELS", 10)
    paths = [picture(tmp_path / f"{i}.png") for i in range(4)]
    loaded = load_images([Entry(path, "wren") for path in (*paths, tmp_path / "pipe.png")])
    assert loaded.skipped == [(tmp_path / "pipe.png", "not a file")] and max(most) == 1
    odd = picture(tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png"))
    loaded = load_images([Entry(paths[0], "wren"), Entry(odd, "wren")])
    assert loaded.skipped[0][1] == "its name is not UTF-8; rename it"
    (tmp_path / "a.heic").write_text("no picture")
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(ValueError, match="Pillow can read; pip install pillow-heif"):
            images.read_image(tmp_path / "a.heic")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    (tmp_path / "pillow_heif.py").write_text("register_heif_opener = lambda: print('registered')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import finer1_lite.images as i; print(repr(i.HEIF))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "registered\n''\n"


def test_every_file_is_read_or_left_out_with_its_reason(tmp_path):
    home = tmp_path / "wren"
    whole = picture(home / "good.jpg", size=(400, 300), color=(200, 30, 60)).read_bytes()
    (home / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (home / "text.jpg").write_text("hello")
    picture(home / "cmyk.jpg", mode="CMYK", color=(0, 255, 255, 0))
    picture(home / "palette.png", mode="P", transparency=128)
    picture(home / "line.png", size=(1, 500))
    picture(home / "huge.png", size=(12_000, 9_000), mode="1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no noise besides the report
        loaded = load_images([*folder_entries(tmp_path), Entry(tmp_path / "gone.png", "wren")])
    reasons = {"cut.jpg": "cannot be read", "text.jpg": "not a picture", "line.png": "too long and thin",
               "huge.png": "12000 x 9000 pixels: too large", "gone.png": "the file is missing"}  # fmt: skip
    assert {path.name for path, _ in loaded.skipped} == set(reasons) and len(loaded.data) == 3
    assert all(reasons[path.name] in reason for path, reason in loaded.skipped)
    assert "left out: wren/cut.jpg: cannot be read" in loaded.report()
    with pytest.raises(ValueError, match="none of 1 pictures can be read; the first: .*gone.png.*the file is missing"):
        load_images([Entry(tmp_path / "gone.png", "wren")])


def test_a_picture_is_read_as_a_viewer_shows_it(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    assert read_image(picture(tmp_path / "turned.jpg", size=(40, 20), exif=turned)).size == (20, 40)
    deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    np.testing.assert_array_equal(np.asarray(as_rgb(Image.fromarray(deep)))[..., 0], deep >> 8)
    assert np.asarray(as_rgb(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))).min() == 255  # on white, not black


RATIONAL_MAKE = (b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\6\0\0\0\x0f\1\5\0\1\0\0\0&\0\0\0\0\0\0\0"
                 b"\6\0\0\0\0\0\0\0")  # and the camera was held upright
BROKEN = {"make.jpg": (RATIONAL_MAKE, (20, 40)), "text.png": (b"Exif\0\0hello world", (40, 20)),
          "cut.webp": (b"II", (40, 20))}  # fmt: skip


def test_of_a_picture_with_broken_exif_the_picture_is_read(tmp_path):
    picture(tmp_path / "wren" / "a.png", color=1)
    for name, (exif, _) in BROKEN.items():
        picture(tmp_path / "wren" / name, size=(40, 20), exif=exif)
    loaded = load_images(folder_entries(tmp_path))
    sizes = {"a.png": (40, 30)} | {name: size for name, (_, size) in BROKEN.items()}
    assert [image.size for image in loaded.data["image"]] == [sizes[name] for name in sorted(sizes)]
    assert loaded.skipped == [] and [path.name for path in loaded.mended] == sorted(BROKEN)
    assert "broken EXIF, ignored: wren/text.png" in loaded.report()


def test_the_hub_s_broken_pictures_are_left_out_and_told_at_once(tmp_path):
    world(tmp_path / "test", n=2)
    whole = picture(tmp_path / "train" / "wren" / "0.jpg", size=(400, 300)).read_bytes()
    for name in ("wren/1.jpg", "wren/2.jpg", "tit/3.jpg"):
        (tmp_path / "train" / "tit").mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(whole[:-15])
    picture(tmp_path / "train" / "wren" / "4.png", size=(40, 20), exif=BROKEN["text.png"][0])
    loaded = hub_images(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert loaded.lost == ["tit"] and [row["image"].size for row in loaded.data][:2] == [(400, 300), (40, 20)]
    assert loaded.data["label"] == ["wren", "wren", "finch", "finch", "wren", "wren"]
    assert loaded.data["split"] == ["train"] * 2 + ["test"] * 4
    left_out = [path.name for path, reason in loaded.skipped if "truncated" in reason]
    assert left_out == ["train[0]", "train[2]", "train[3]"]
    assert [path.name for path in loaded.mended] == ["train[4]"]


def test_the_hub_s_parts_class_numbers_and_columns(tmp_path):
    def parquet(name, *labels):
        Image.new("RGB", (4, 4)).save(file := io.BytesIO(), "PNG")
        features = Features({"photo": ImageColumn(), "kind": ClassLabel(names=["house_finch", "wren"])})
        data = {"photo": [{"bytes": file.getvalue(), "path": None}] * len(labels), "kind": labels}
        Dataset.from_dict(data, features=features).to_parquet(tmp_path / name)
        return str(tmp_path / name)

    files = {"train": parquet("a.parquet", 0, 1), "validation": parquet("b.parquet", 1)}
    names = {"image": "photo", "label": "kind", "cache_dir": str(tmp_path / "cache")}
    loaded = hub_images("parquet", data_files=files, **names)
    assert loaded.data["label"] == ["house finch", "wren", "wren"]
    assert loaded.renamed == [("house_finch", "house finch")]
    assert loaded.data["split"] == ["train", "train", "val"] and loaded.data[2]["image"].size == (4, 4)
    with pytest.raises(ValueError, match="is the part 'unlabelled' of parquet train, val or test"):
        hub_images("parquet", data_files=files | {"unlabelled": files["train"]}, **names)
    with pytest.raises(ValueError, match=r"parquet, train\[1\] has no 'kind'"):
        hub_images("parquet", data_files={"train": parquet("c.parquet", 0, None)}, **names)


def rows(sizes, source=None):
    labels = [name for name, n in sizes.items() for _ in range(n)]
    columns = {"image": list(range(len(labels))), "label": labels}
    return Dataset.from_dict(columns | ({"split": source} if source else {}))


def test_few_shot_split():
    data = rows({name: 10 for name in "abcdefghij"})
    made = few_shot(data, seed=3)
    ids = {name: set(part["image"]) for name, part in made.items()}
    assert len(ids["train"] | ids["val"] | ids["test"]) == 100 == sum(map(len, ids.values()))
    seen = set(made["train"]["label"])
    assert len(seen) == 6 and all(made["train"]["label"].count(c) == 4 for c in seen) and all(made["train"]["seen"])
    for name, per in (("val", {True: 2, False: 2}), ("test", {True: 4, False: 8})):
        part = made[name]
        assert all(part["label"].count(c) == per[c in seen] for c in "abcdefghij")
        assert part["seen"] == [c in seen for c in part["label"]]
    again, other = few_shot(data, seed=3), few_shot(data, seed=4)
    assert again["train"]["image"][:] == made["train"]["image"][:] != other["train"]["image"][:]
    assert max(few_shot(data, test_per_class=3)["test"]["label"].count(c) for c in "abcdefghij") == 3


def from_parts(data, made):
    return {name: {label: dict(Counter(data[i]["split"] for i in part["image"] if data[i]["label"] == label))
                   for label in sorted(set(part["label"]))} for name, part in made.items()}  # fmt: skip


def test_the_source_s_test_part_stays_whole_and_a_class_without_one_gives_what_it_has():
    data = rows({"a": 9, "b": 9}, source=(["train"] * 6 + ["test"] * 3) * 2)
    assert from_parts(data, few_shot(data, seen=["a"])) == {
        "train": {"a": {"train": 4}}, "val": {"a": {"train": 2}, "b": {"train": 2}},
        "test": {"a": {"test": 3}, "b": {"test": 3}},
    }  # fmt: skip
    parts = {"a": ["train"] * 9 + ["val"] * 3 + ["test"] * 3, "b": ["train"] * 4 + ["test"] * 5, "c": ["train"] * 8}
    data = rows({name: len(source) for name, source in parts.items()}, source=sum(parts.values(), []))
    assert from_parts(data, few_shot(data, seen="abc")) == {
        "train": {name: {"train": 4} for name in "abc"},
        "val": {"a": {"val": 2}, "b": {"test": 2}, "c": {"train": 2}},
        "test": {"a": {"test": 3}, "b": {"test": 3}, "c": {"train": 2}},
    }  # fmt: skip
    data = rows({"a": 12}, source=["train"] * 8 + ["val"] * 4)
    made = from_parts(data, few_shot(data, seen="a"))
    assert made == {"train": {"a": {"train": 4}}, "val": {"a": {"train": 2}}, "test": {"a": {"val": 4}}}


def test_small_classes():
    data = rows({"big": 9, "four": 4, "one": 1})
    with pytest.warns(UserWarning, match="never trained on: four, one"):
        made = few_shot(data, seen_fraction=1.0)
    assert set(made["train"]["label"]) == {"big"}
    assert "one" in made["test"]["label"] and "one" not in made["val"]["label"]
    for data, how in ((data, {"seen": ["four"]}), (rows({"a": 2, "b": 3}), {"seen_fraction": 1.0})):
        with pytest.raises(ValueError, match="too few images for 4 shots"):
            few_shot(data, **how)
    with pytest.raises(ValueError, match="seen classes that the data set does not have"):
        few_shot(data, seen=["dodo"])
    with pytest.raises(ValueError, match="60% of 1 class.* is none to train on: give the seen ones"):
        few_shot(rows({"a": 9}))


def test_most_pictures_of_all_classes():
    with pytest.warns(UserWarning, match="never trained on: one"):
        made = few_shot(rows({"big": 20, "nine": 9, "two": 2, "one": 1}), None, seen_fraction=1.0)
    assert Counter(made["train"]["label"]) == {"big": 16, "nine": 7, "two": 1}
    assert len(made["val"]) + len(made["test"]) == 32 - 24
    assert set(made["test"]["label"]) == {"big", "nine", "two", "one"}
    data = rows({"a": 9, "b": 9}, source=(["train"] * 6 + ["test"] * 3) * 2)
    assert from_parts(data, few_shot(data, None, seen_fraction=1.0))["train"] == {c: {"train": 6} for c in "ab"}
