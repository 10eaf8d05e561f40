"""Where pictures come from: a folder for each class, a table of paths, a data set of the Hub; and what is wrong with them.

Two steps. A reader gives *entries*, a path and a label each, without opening a picture: `counts` of them is the dry
run. `load_images` then opens every file, leaves out what cannot be read, says why, and gives a `datasets.Dataset` with
the columns `image` and `label`, and `family` and `split` where they are known. It holds paths; a picture is read
again when it is needed. The six benchmarks of the paper have readers of their own (`benchmarks`).
"""

import csv
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets, load_dataset
from datasets import Image as ImageColumn
from PIL.Image import DecompressionBombWarning
from tqdm.auto import tqdm

from ..images import SUFFIXES, read_image
from .names import NUMBER, clean_names

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
    """What `load_images` made. skipped: (path, reason); renamed: (raw name, clean name) where they differ; lost:
    classes of which no picture can be read."""

    data: Dataset
    skipped: list[tuple[Path, str]]
    renamed: list[tuple[str, str]]
    lost: list[str] = field(default_factory=list)

    def report(self) -> str:
        """What was left out, what is scarce and what was renamed, in words."""
        sizes = Counter(self.data["label"])
        lines = [f"{len(self.data)} pictures of {len(sizes)} classes"]
        lines += [f"no picture left: {name}" for name in self.lost]
        lines += [f"one picture only: {name}" for name in sorted(sizes) if sizes[name] == 1]
        numbered = [name for name in sizes if NUMBER.match(name)]
        if 2 * len(numbered) > len(sizes) > len(numbered):  # "001.Laysan Albatross": no model could say that
            odd = min(set(sizes) - set(numbered))
            lines.append(f"numbers stay in names as {numbered[0]!r}, for {odd!r} has none: leave its entries out first")
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
    for part in parts:
        if not _folders(part):
            raise ValueError(f"the split folder {part} has no class folders: put each class's pictures into one of its name")
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
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _pictures(folder: Path) -> list[Path]:
    """Picture files below a folder. `os.walk` does not follow links to folders, so a loop cannot trap it."""
    found = []
    for home, inner, files in os.walk(folder, onerror=_refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(home, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise error  # a folder without the right to list it: `os.walk` would pass it over in silence


def table_entries(path: str | Path) -> list[Entry]:
    """A CSV or JSONL with `path` and `label`, perhaps `family` and `split`; paths are relative to the table.

    ValueError naming the line for a missing field or an unknown split, and for a file that is not UTF-8.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(lines, newline=""))
        rows = [(reader.line_num, row) for row in reader]
    else:
        rows = [(number, _object(path, number, line)) for number, line in enumerate(lines.split("\n"), 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no rows")
    entries = []
    for number, row in rows:
        cells = {k: "" if row.get(k) is None else str(row[k]).strip() for k in ("path", "label", "family", "split")}
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
    """The dry run: pictures of each class, by split where there are splits; fewest first. Opens no file.

    Raises as `names.clean_names`: two spellings of one class show here.
    """
    entries = list(entries)
    names = clean_names(e.label for e in entries)
    frame = pd.DataFrame([(names[e.label], e.split or "all") for e in entries], columns=["class", "split"])
    table = frame.value_counts(["class", "split"]).unstack(fill_value=0)
    table["pictures"] = table.sum(axis=1)
    return table.sort_values(["pictures"], kind="stable")


def load_images(entries: Sequence[Entry], decode: bool = True, workers: int = 8) -> Loaded:
    """The data set of `entries`, names cleaned, without files that cannot be read or were listed before.

    decode: open each picture wholly, about 5 ms for a photograph; False looks at headers alone, for hundreds of
    thousands. Raises ValueError where nothing is left, or as `names.clean_names`.
    """
    names = clean_names(e.label for e in entries)

    first = {e.path: i for i, e in reversed(list(enumerate(entries)))}

    def fault(number: int, entry: Entry) -> str | None:
        if first[entry.path] != number:
            return f"listed before, as {entries[first[entry.path]].label!r}: a picture may be in one split only"
        try:
            read_image(entry.path, decode)
        except ValueError as error:
            return str(error)

    with warnings.catch_warnings(action="ignore", category=DecompressionBombWarning), ThreadPoolExecutor(workers) as pool:
        faults = list(tqdm(pool.map(fault, *zip(*enumerate(entries))), total=len(entries), desc="open pictures", mininterval=5))
    good = [e for e, reason in zip(entries, faults) if reason is None]
    skipped = [(e.path, reason) for e, reason in zip(entries, faults) if reason is not None]
    if not good:
        example = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"none of {len(entries)} pictures can be read{example}")
    columns = {"image": [str(e.path) for e in good], "label": [names[e.label] for e in good]}
    features = {"image": ImageColumn(), "label": Value("string")}
    for name in ("family", "split"):
        if any(getattr(e, name) for e in good):
            columns[name], features[name] = [getattr(e, name) for e in good], Value("string")
    data = Dataset.from_dict(columns, features=Features(features))
    lost = sorted(set(names.values()) - set(columns["label"]))
    return Loaded(data, skipped, [(raw, clean) for raw, clean in names.items() if raw != clean], lost)


def hub_images(repo_id: str, image: str = "image", label: str = "label", **options) -> Loaded:
    """A data set of the Hub (downloads it) or of a local folder that `datasets.load_dataset` reads.

    image, label: its columns' names. Class numbers become names, the Hub's splits the column `split`. The pictures stay
    in the files of `datasets`, however many they are; a broken one shows when it is read. ValueError where a column
    is missing or holds no pictures, and for a part that is no split, as "unlabelled".
    """
    parts = load_dataset(repo_id, **options)
    parts = parts if isinstance(parts, dict) else {str(parts.split): parts}
    pieces, raw, splits = [], [], []
    for name, part in parts.items():
        if missing := {image, label} - set(part.column_names):
            raise ValueError(f"{repo_id} has no column {sorted(missing)[0]!r}; its columns: {part.column_names}")
        if not isinstance(part.features[image], ImageColumn):
            raise ValueError(f"the column {image!r} of {repo_id} holds no pictures but {part.features[image]}")
        split = SPLITS.get(name.partition("[")[0].lower())  # "train[:10%]" is train
        if split is None and len(parts) > 1:
            raise ValueError(f"{repo_id} has a part {name!r}: is it train, val or test? split={name!r} takes it alone")
        kind, values = part.features[label], part[label][:]
        if None in values:
            raise ValueError(f"row {values.index(None)} of {name!r} in {repo_id} has no {label!r}: leave such rows out first")
        raw += [kind.int2str(v) if isinstance(kind, ClassLabel) else str(v) for v in values]
        splits += [split] * len(part)
        piece = part.select_columns([image])
        pieces.append(piece if image == "image" else piece.rename_column(image, "image"))
    names = clean_names(raw)
    data = concatenate_datasets(pieces).add_column("label", [names[r] for r in raw])
    data = data.add_column("split", splits, feature=Value("string"))
    return Loaded(data, [], [(r, c) for r, c in names.items() if r != c])
