"""Triplets as a data set that the released TAPO code (on EasyR1 / verl) trains on.

Each row has the released columns. What they hold was read from github.com/PKU-ICST-MIPL/FineR1_ICLR2026
(`TAPO/verl/utils/dataset.py`, `TAPO/verl/trainer/ray_trainer_new.py`):

    images       list of one image: the anchor
    image_noisy  list of one image: the positive. Answers are sampled from it beside the anchor's and share
                 their advantages (`worker.actor.is_noisy`); the name comes from NoisyRollout
    image_aug    list of one image: the negative. Answers are scored again under it, for the KL term; the name
                 comes from PAPO, where it is the anchor with patches blackened
    problem      "<image>" and the bare question; the format instruction comes from a template
    answer       the label

The names mislead: `image_aug`, in spite of "intra-class augmentation", is not the positive.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageColumn
from PIL import Image

from ..images import as_rgb
from ..prompts import THINK_INSTRUCTION
from ..samplers import Triplet

ROLES = {"images": "anchor", "image_noisy": "positive", "image_aug": "negative"}
TEXTS = ("problem", "answer")
FEATURES = Features({c: List(ImageColumn()) for c in ROLES} | {c: Value("string") for c in TEXTS})


def export_triplets(
    triplets: Sequence[Triplet], images: Sequence[Image.Image], labels: Sequence[str],
    questions: Sequence[str], folder: str | Path,
) -> Path:  # fmt: skip
    """Write the triplets in two forms and return the folder `data`, the one to give as `data.train_files`.

        data/train-00000-of-00001.parquet   with the images inside: needs nothing else
        triplets.jsonl, images/             the same rows with paths relative to `folder`; the released code
                                            looks for them from the folder that it is started in
        format_prompt.jinja                 our instruction, to give as `data.format_prompt`: with it a policy
                                            of chapter 2 is asked as it was taught

    triplets: indices into `images` and `labels`. questions: the bare question of each triplet. Positive and
    negative are resized to the anchor's size: an answer is scored under each of them with the anchor's
    placeholders, so all three must give the same number of image tokens. ValueError for a triplet whose
    labels do not fit, for a question that holds "<image>", and if there is not one question for each triplet.
    """
    if len(triplets) != len(questions):
        raise ValueError(f"{len(triplets)} triplets and {len(questions)} questions: each triplet needs one")
    texts = [{"problem": _problem(q), "answer": _answer(t, labels)} for t, q in zip(triplets, questions)]
    folder, inside, beside = Path(folder), [], []
    for part in ("images", "data"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for row, triplet in enumerate(triplets):
        pictures = _same_size(triplet, images)
        # the name of a file holds no label, which could be any text
        paths = {column: f"images/{row:06d}_{role}.png" for column, role in ROLES.items()}
        for column, path in paths.items():
            (folder / path).write_bytes(pictures[column])
        inside.append({c: [{"bytes": png, "path": None}] for c, png in pictures.items()} | texts[row])
        beside.append({c: [path] for c, path in paths.items()} | texts[row])
    lines = [json.dumps(row) + "\n" for row in beside]
    (folder / "triplets.jsonl").write_text("".join(lines), encoding="ascii", newline="\n")
    (folder / "format_prompt.jinja").write_text("{{ content | trim }} " + THINK_INSTRUCTION)
    _write_parquet(inside, folder / "data" / "train-00000-of-00001.parquet")
    return folder / "data"


def _answer(triplet: Triplet, labels: Sequence[str]) -> str:
    anchor, positive, negative = (labels[i] for i in triplet)
    if anchor != positive or anchor == negative:
        raise ValueError(
            f"{triplet} has the labels {anchor!r}, {positive!r}, {negative!r}; the first two must be one"
            " class, the third another: are the triplets of this data set?"
        )
    return anchor


def _problem(question: str) -> str:
    if "<image>" in question:
        raise ValueError(f"the question {question!r} holds <image>; give it bare, the mark is added here")
    return f"<image>{question}"


def _same_size(triplet: Triplet, images: Sequence[Image.Image]) -> dict[str, bytes]:
    """The three images in the anchor's size, as PNG files: column -> bytes."""
    pictures = {role: as_rgb(images[index]) for role, index in triplet._asdict().items()}
    size, files = pictures["anchor"].size, {}
    for column, role in ROLES.items():
        file = io.BytesIO()
        pictures[role].resize(size, Image.Resampling.BICUBIC).save(file, "PNG")  # the same size: no change
        files[column] = file.getvalue()
    return files


def _write_parquet(rows: list[dict], path: Path) -> None:
    """A parquet file that `datasets` of any version opens with the images decoded."""
    table = Dataset.from_list(rows, features=FEATURES).with_format("arrow")[:]
    # Before 4.0 `datasets` had no "List" and refuses the file; its "Sequence" is understood by all.
    types = table.schema.metadata[b"huggingface"].replace(b'"List"', b'"Sequence"')
    pq.write_table(table.replace_schema_metadata({b"huggingface": types}), path)
