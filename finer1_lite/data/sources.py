"""Pictures from a folder for each class, a table of paths or a data set of the Hub, and what is left out of them."""

import io
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import pandas as pd
from datasets import ClassLabel, Dataset, Value, concatenate_datasets, load_dataset
from datasets import Image as ImageColumn
from PIL.Image import DecompressionBombWarning
from tqdm.auto import tqdm

from ..files import read_csv, read_jsonl
from ..images import BROKEN_EXIF, SUFFIXES, read_image
from .names import clean_names

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
PART = re.compile(  # "train", "train_images", "train_val_images", "images-train", "test2017", "ValSet"
    rf"(?:images?[-_ ]*)?({'|'.join(sorted(SPLITS, reverse=True))})"
    r"(?:[-_ ]*(?:images?|imgs?|pictures?|photos?|dataset|data|set|split|mini|val|\d+))*",
)


@dataclass(frozen=True)
class Entry:
    """One picture file and what is known of it."""

    path: Path
    label: str
    family: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Loaded:
    """What `load_images` or `hub_images` made, and what is not in it."""

    data: Dataset
    skipped: list[tuple[Path, str]]  # with the reason
    renamed: list[tuple[str, str]]  # raw name, clean name
    lost: list[str]  # classes of which no picture can be read
    mended: list[Path]  # whose broken EXIF is left out: the data set holds them as PNG

    def report(self) -> str:
        """What was left out, what is scarce and what was renamed, in words."""
        sizes, lines = Counter(self.data["label"]), [f"no picture left: {name}" for name in self.lost]
        lines.insert(0, f"{len(self.data)} pictures of {len(sizes)} classes")
        lines += [f"one picture only: {name}" for name in sorted(sizes) if sizes[name] == 1]
        lines += [f"left out: {path.parent.name}/{path.name}: {reason}" for path, reason in self.skipped]
        lines += [f"broken EXIF, ignored: {path.parent.name}/{path.name}" for path in self.mended]
        return "\n".join(lines + [f"renamed: {raw} -> {clean}" for raw, clean in self.renamed])


def folder_entries(folder: str | Path) -> list[Entry]:
    """A folder for each class, `folder/Class/*.jpg`, perhaps below families and `train`, `val` and `test`; sorted.

    The class is the uppermost folder that holds pictures, or the one above where most such share a name with another;
    its family is the next one up. What was decided or passed over (but for hidden files) is printed. ValueError where
    there are no class folders, and where a folder that is named as a split lies beside others.
    """
    folder = Path(folder)
    found, said = _pictures(folder)
    parts = _parts(folder, found)
    bare = {home: tuple(name for name in home if name not in parts) for home in found}
    if () in bare.values() or not bare:
        place = folder.joinpath(*next((home for home in bare if not bare[home]), ()))
        advice = "put each class's pictures into a folder with its name"
        raise ValueError("; ".join([f"{place} has no class folders: {advice}", *said]))
    classes = _classes(set(bare.values()))
    said += [f"{name!r} is taken for {part}" for name, part in sorted(parts.items()) if name.lower() not in SPLITS]
    families = {c[:-1] for c in classes.values()}
    if families != {()}:
        *_, above, label = first = min(classes.values(), key=lambda c: (-len(c), c))
        family = f" of the family {above!r}" if len(families) > 1 else ""
        said.append(f"classes are the inner folders: {'/'.join(first)} is {label!r}{family}")
    if deeper := ["/".join(p) for p, c in classes.items() if p != c]:
        said.append(f"folders inside a class are part of it: {min(deeper)}")
    if said:
        print(f"{folder}:", *said, sep="\n  ")
    entries = []
    for home, path in bare.items():
        *_, above, label = "", *classes[path]
        split = next((parts[name] for name in home if name in parts), None)
        entries += [Entry(file, label, (len(families) > 1 and above) or None, split) for file in found[home]]
    return sorted(entries, key=lambda entry: entry.path)


def _pictures(folder: Path) -> tuple[dict[tuple[str, ...], list[Path]], list[str]]:
    """The pictures of each folder, by its path from `folder`, and in words what else there is."""
    found, empty, passed = {}, [], Counter()
    os.listdir(folder)  # raises where there is no folder; `walk` would not
    for place, inside, names in os.walk(folder, followlinks=True):
        inside[:] = sorted(name for name in inside if not name.startswith((".", "__MACOSX")))
        home, files = Path(place).relative_to(folder).parts, [Path(place, n) for n in names if not n.startswith(".")]
        if pictures := [file for file in files if file.suffix.lower() in SUFFIXES]:
            found[home] = pictures
        elif not inside:
            empty.append("/".join(home))
        if home:
            passed.update(file.suffix.lower() or "without ending" for file in files if file not in pictures)
    passed["beside the class folders"] = len(found.pop((), ()))
    over = [f"{number} {ending}" for ending, number in passed.most_common() if number]
    said = {"without a picture": empty[:3] + [f"{len(empty) - 3} more"] * (len(empty) > 3), "files passed over": over}
    return found, [f"{what}: {', '.join(which)}" for what, which in said.items() if which]


def _parts(folder: Path, homes: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """The names of folders that are splits, with the split."""
    inside = defaultdict(set)
    for home in homes:
        for i, name in enumerate(home):
            inside[home[:i]].add(name)
    parts = {n: SPLITS[m[1]] for names in inside.values() for n in names if (m := PART.fullmatch(n.lower()))}
    for names in inside.values():
        if names & parts.keys() and names - parts.keys():
            one, other = min(names & parts.keys()), min(names - parts.keys())
            raise ValueError(f"{folder} holds {one!r} beside {other!r}: are they splits or classes? Rename one")
    return parts


def _classes(paths: set[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The class that each folder with pictures belongs to, both by their paths."""
    top = {p: next(p[:n] for n in range(1, len(p) + 1) if p[:n] in paths) for p in paths}
    uses = Counter(c[-1] for c in set(top.values()))
    inner = {c for c in top.values() if len(c) > 1}
    shared = {c for c in inner if uses[c[-1]] > 1}  # a few may be classes that lie in two places
    above = {c[:-1] for c in shared} if 2 * len(shared) > len(inner) else ()
    return {p: c[:-1] if c[:-1] in above else c for p, c in top.items()}


def table_entries(path: str | Path) -> list[Entry]:
    """A CSV or JSONL with `path` and `label`, perhaps `family` and `split`; paths are relative to the table.

    Paths may be written as Windows does. ValueError naming the line for a missing field, an unknown split, a path that
    can be none here, and as `files.read_csv`.
    """
    path, entries = Path(path), []
    rows = read_csv(path, ("path", "label")) if path.suffix.lower() == ".csv" else read_jsonl(path)
    for number, row in rows:
        cells = ("" if row.get(k) is None else str(row[k]).strip() for k in ("path", "label", "family", "split"))
        file, label, family, split = cells
        if not file or not label:
            raise ValueError(f"{path}, line {number}: a row needs path and label, it has {[k for k in row if k]}")
        if split and split.lower() not in SPLITS:
            raise ValueError(f"{path}, line {number}: unknown split {split!r}; use train, val or test")
        place, there = path.parent / file, PureWindowsPath(file)
        if not place.exists():
            if (os.sep == "/" and there.drive) or not file.isprintable():  # JSON takes "wren\table" for a tab
                raise ValueError(f"{path}, line {number}: {file!r} is no path here; write it from the table on, with /")
            place = path.parent / there.as_posix()
        entries.append(Entry(place, label, family or None, SPLITS.get(split.lower())))
    return entries


def counts(entries: Sequence[Entry]) -> pd.DataFrame:
    """The dry run: pictures of each class, by split, fewest first. Opens no file. Raises as `names.clean_names`."""
    names = clean_names(e.label for e in entries)
    rows = pd.DataFrame({"class": [names[e.label] for e in entries], "split": [e.split or "all" for e in entries]})
    table = pd.crosstab(rows["class"], rows["split"])
    return table.assign(pictures=table.sum(axis=1)).sort_values("pictures", kind="stable")


def load_images(entries: Sequence[Entry]) -> Loaded:
    """The data set of `entries`, names cleaned, without files that cannot be read or were listed before.

    Columns: image, label, and family and split where they are known. ValueError where nothing is left.
    """
    names = clean_names(e.label for e in entries)
    first, odd, usable = {e.path: e for e in reversed(entries)}, [], []
    for entry in entries:
        if not str(entry.path).isprintable() and "\\udc" in ascii(str(entry.path)):
            odd.append((entry.path, "its name is not UTF-8; rename it"))
        elif (other := first[entry.path]) is not entry:
            odd.append((entry.path, f"listed before, as {other.label!r}: a picture may be in one split only"))
        else:
            usable.append(entry)
    columns = {"image": [str(e.path) for e in usable], "label": [names[e.label] for e in usable]}
    columns |= {"family": [e.family for e in usable], "split": [e.split for e in usable]}
    data = Dataset.from_dict({name: values for name, values in columns.items() if any(values)})
    return _sound(data.cast_column("image", ImageColumn()), [e.path for e in usable], odd, names)


def _sound(data: Dataset, places: list[Path], skipped: list[tuple[Path, str]], names: dict[str, str]) -> Loaded:
    """`data` without what cannot be read at its place. Of pictures with broken EXIF, at which `datasets` would fail,
    it gets a copy as PNG; `skipped` is what is left out already."""
    stored = data.cast_column("image", ImageColumn(decode=False))

    def look(number: int) -> str | bytes | None:
        file = stored[number]["image"] or {"bytes": b"", "path": None}
        try:
            picture = read_image(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"]))
        except ValueError as error:
            return str(error)
        if BROKEN_EXIF in picture.info:
            picture.save(png := io.BytesIO(), "PNG")
            return png.getvalue()

    with warnings.catch_warnings(action="ignore", category=DecompressionBombWarning), ThreadPoolExecutor(8) as pool:
        found = list(tqdm(pool.map(look, range(len(data))), total=len(data), desc="open pictures", mininterval=5))
    skipped = skipped + [(place, reason) for place, reason in zip(places, found) if isinstance(reason, str)]
    copies = [number for number, png in enumerate(found) if isinstance(png, bytes)]
    rows = [stored[number] | {"image": {"path": None, "bytes": found[number]}} for number in copies]
    data = concatenate_datasets([data, Dataset.from_list(rows, features=data.features)]) if rows else data
    at = {number: len(found) + i for i, number in enumerate(copies)}
    data = data.select([at.get(number, number) for number, what in enumerate(found) if not isinstance(what, str)])
    if not len(data):
        raise ValueError(f"none of {len(skipped)} pictures can be read; the first: {skipped[:1]}")
    renamed, lost = [(raw, clean) for raw, clean in names.items() if raw != clean], set(names.values())
    return Loaded(data, skipped, renamed, sorted(lost - set(data["label"])), [places[n] for n in copies])


def hub_images(repo_id: str, image: str = "image", label: str = "label", **options) -> Loaded:
    """A data set of the Hub (downloads it) or of a local folder that `datasets.load_dataset` reads.

    image, label: its columns' names. Class numbers become names, the Hub's splits the column `split`; what cannot be
    read is left out. ValueError for a part that is no split ("unlabelled"), and for a row without a label.
    """
    parts = load_dataset(repo_id, **options)
    parts = parts if isinstance(parts, dict) else {str(parts.split): parts}
    pieces, raw, splits, places = [], [], [], []
    for name, part in parts.items():
        split = SPLITS.get(name.partition("[")[0].lower())  # "train[:10%]" is train
        if split is None and len(parts) > 1:
            raise ValueError(f"is the part {name!r} of {repo_id} train, val or test? split={name!r} takes it alone")
        kind, values = part.features[label], part[label][:]
        if None in values:
            raise ValueError(f"{repo_id}, {name}[{values.index(None)}] has no {label!r}: leave such rows out first")
        raw += [kind.int2str(v) if isinstance(kind, ClassLabel) else str(v) for v in values]
        splits += [split] * len(part)
        places += [Path(repo_id, f"{name}[{row}]") for row in range(len(part))]
        pieces.append(part.select_columns([image]).rename_columns({image: "image"}))
    names = clean_names(raw)
    data = concatenate_datasets(pieces).add_column("label", [names[r] for r in raw])
    return _sound(data.add_column("split", splits, feature=Value("string")), places, [], names)
