"""Where pictures come from: a folder for each class, a table of paths, a data set of the Hub; and what is wrong with them.

Two steps. A reader gives *entries*, a path and a label each, without opening a picture: `counts` of them is the dry
run. `load_images` then opens every file, leaves out what cannot be read, says why, and gives a `datasets.Dataset` with
the columns `image` and `label`, and `family` and `split` where they are known. It holds paths; a picture is read
again when it is needed. The six benchmarks of the paper have readers of their own (`benchmarks`).
"""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets import Image as ImageColumn
from tqdm.auto import tqdm

from .images import SUFFIXES, read_image
from .names import clean_names

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Entry:
    """One picture file and what is known of it."""

    path: Path
    label: str
    family: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Loaded:
    """What `load_images` made. skipped: (path, reason); renamed: (raw name, clean name) where they differ."""

    data: Dataset
    skipped: list[tuple[Path, str]]
    renamed: list[tuple[str, str]]

    def report(self) -> str:
        """What was left out and what was renamed, in words."""
        lines = [f"{len(self.data)} pictures of {len(set(self.data['label']))} classes"]
        lines += [f"left out: {path.parent.name}/{path.name}: {reason}" for path, reason in self.skipped]
        return "\n".join(lines + [f"renamed: {raw} -> {clean}" for raw, clean in self.renamed])


def folder_entries(folder: str | Path) -> list[Entry]:
    """A folder for each class, `folder/Class/*.jpg`, perhaps below `train`, `val` and `test`; sorted.

    Hidden files and other kinds of files are passed over; folders inside a class's folder count. Raises
    NotADirectoryError, and ValueError where there are no class folders or a class folder is empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; give the one that holds a folder for each class")
    inside = _folders(folder)
    parts = [p for p in inside if p.name.lower() in SPLITS]
    if parts and len(parts) < len(inside):
        odd = next(p.name for p in inside if p not in parts)
        raise ValueError(f"{folder} holds {parts[0].name!r} beside {odd!r}: are its folders splits or classes?")
    homes = [(c, SPLITS[p.name.lower()]) for p in parts for c in _folders(p)] or [(c, None) for c in inside]
    if not homes:
        direct = sum(p.suffix.lower() in SUFFIXES for p in folder.iterdir())
        raise ValueError(
            f"{folder} has no class folders ({direct} pictures lie in it directly): put the pictures of each class into a"
            " folder with the class's name, or write a table and use table_entries"
        )
    entries = []
    for home, split in homes:
        pictures = _pictures(home)
        if not pictures:
            raise ValueError(f"the class folder {home} holds no picture ({', '.join(SUFFIXES[:4])}, ...); fill or remove it")
        entries += [Entry(path, home.name, split=split) for path in pictures]
    return entries


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """Picture files below a folder. `os.walk` does not follow links to folders, so a loop cannot trap it."""
    found = []
    for home, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(home, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES]
    return sorted(found)


def table_entries(path: str | Path) -> list[Entry]:
    """A CSV or JSONL with `path` and `label`, perhaps `family` and `split`; paths are relative to the table.

    ValueError naming the line for a missing field or an unknown split.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        rows = list(enumerate(csv.DictReader(lines.splitlines()), 2))
    else:
        rows = [(number, _object(path, number, line)) for number, line in enumerate(lines.split("\n"), 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no rows")
    entries = []
    for number, row in rows:
        cells = {k: str(row.get(k) or "").strip() for k in ("path", "label", "family", "split")}
        if not cells["path"] or not cells["label"]:
            raise ValueError(f"{path}, line {number}: a row needs path and label, it has {sorted(k for k in row if k)}")
        if cells["split"] and cells["split"].lower() not in SPLITS:
            raise ValueError(f"{path}, line {number}: unknown split {cells['split']!r}; use train, val or test")
        split = SPLITS.get(cells["split"].lower())
        entries.append(Entry(path.parent / cells["path"], cells["label"], cells["family"] or None, split))
    return entries


def _object(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: should be an object with path and label")
    return row


def counts(entries: Iterable[Entry]) -> pd.DataFrame:
    """The dry run: pictures of each class, by split where there are splits; fewest first. Opens no file."""
    frame = pd.DataFrame([{"class": e.label, "split": e.split or "all"} for e in entries])
    table = frame.value_counts(["class", "split"]).unstack(fill_value=0)
    table["pictures"] = table.sum(axis=1)
    return table.sort_values(["pictures"], kind="stable")


def load_images(entries: Sequence[Entry], decode: bool = True, workers: int = 8) -> Loaded:
    """The data set of `entries`, names cleaned, without the files that cannot be read.

    decode: open each picture wholly, about 5 ms for a photograph; False looks at headers alone, for hundreds of
    thousands. Raises ValueError where nothing is left, or as `names.clean_names`.
    """
    names = clean_names(e.label for e in entries)

    def fault(entry: Entry) -> str | None:
        try:
            read_image(entry.path, decode)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        faults = list(tqdm(pool.map(fault, entries), total=len(entries), desc="open pictures", mininterval=5))
    good = [e for e, reason in zip(entries, faults) if reason is None]
    skipped = [(e.path, reason) for e, reason in zip(entries, faults) if reason is not None]
    if not good:
        first = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"none of {len(entries)} pictures can be read{first}")
    columns = {"image": [str(e.path) for e in good], "label": [names[e.label] for e in good]}
    features = {"image": ImageColumn(), "label": Value("string")}
    for name in ("family", "split"):
        if any(getattr(e, name) for e in good):
            columns[name], features[name] = [getattr(e, name) for e in good], Value("string")
    data = Dataset.from_dict(columns, features=Features(features))
    return Loaded(data, skipped, [(raw, clean) for raw, clean in names.items() if raw != clean])


def hub_images(repo_id: str, image: str = "image", label: str = "label", **options) -> Loaded:
    """A data set of the Hub (downloads it) or of a local folder that `datasets.load_dataset` reads.

    image, label: its columns' names. Class numbers become names, the Hub's splits the column `split`. ValueError
    where a column is missing. Broken pictures show when they are read, as `datasets` decodes them late.
    """
    parts = load_dataset(repo_id, **options)
    parts = parts if isinstance(parts, dict) else {str(parts.split): parts}
    rows = {"image": [], "label": [], "split": []}
    for name, part in parts.items():
        if missing := {image, label} - set(part.column_names):
            raise ValueError(f"{repo_id} has no column {sorted(missing)[0]!r}; its columns: {part.column_names}")
        kind, values = part.features[label], part[label]
        rows["label"] += [kind.int2str(v) if isinstance(kind, ClassLabel) else str(v) for v in values]
        rows["image"] += part.cast_column(image, ImageColumn(decode=False))[image]
        rows["split"] += [SPLITS.get(name, "train")] * len(part)
    names = clean_names(rows["label"])
    rows["label"] = [names[raw] for raw in rows["label"]]
    features = Features({"image": ImageColumn(), "label": Value("string"), "split": Value("string")})
    return Loaded(Dataset.from_dict(rows, features=features), [], [(r, c) for r, c in names.items() if r != c])
