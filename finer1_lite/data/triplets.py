"""Triplets as a data set that the released TAPO code (on EasyR1 / verl) trains on; written and read back.

Each row has the released columns, as github.com/PKU-ICST-MIPL/FineR1_ICLR2026 reads them (in `TAPO/verl`): `images`,
`image_noisy` and `image_aug`, lists of one image, are anchor, positive and negative; `problem` is "<image>" and the
bare question, `answer` the label.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageColumn
from PIL import Image

from ..files import write_whole
from ..images import as_rgb
from ..prompts import THINK_INSTRUCTION
from ..samplers import Triplet

ROLES = {"images": "anchor", "image_noisy": "positive", "image_aug": "negative"}
FEATURES = Features({c: List(ImageColumn()) for c in ROLES} | dict.fromkeys(("problem", "answer"), Value("string")))
MARK = "<image>"


def export_triplets(
    triplets: Sequence[Triplet], images: Sequence[Image.Image], labels: Sequence[str],
    questions: Sequence[str], folder: str | Path,
) -> Path:  # fmt: skip
    """Write the triplets as a parquet file, images inside, and our instruction as `format_prompt.jinja`.

    Returns the folder `data`, to give as `data.train_files`; the instruction is for `data.format_prompt`.
    triplets: indices into `images` and `labels`. questions: the bare question of each triplet. Positive and negative
    are resized to the anchor's size, as the released code gives all three the anchor's placeholders. ValueError,
    before anything is written, for labels that do not fit, a question that holds "<image>", or too few questions.
    """
    for triplet, question in zip(triplets, questions, strict=True):
        anchor, positive, negative = (labels[i] for i in triplet)
        if anchor != positive or anchor == negative or triplet.anchor == triplet.positive or MARK in question:
            raise ValueError(f"the labels {anchor!r}, {positive!r}, {negative!r} or {question!r} do not fit")
    folder, rows = Path(folder), []
    for triplet, question in zip(triplets, questions):
        size, row = as_rgb(images[triplet.anchor]).size, {}
        for column, role in ROLES.items():
            picture = as_rgb(images[getattr(triplet, role)]).resize(size, Image.Resampling.BICUBIC)
            picture.save(png := io.BytesIO(), "PNG")
            row[column] = [{"bytes": png.getvalue(), "path": None}]
        rows.append(row | {"problem": f"{MARK}{question}", "answer": labels[triplet.anchor]})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    write_whole(folder / "format_prompt.jinja", "{{ content | trim }} " + THINK_INSTRUCTION)
    table = Dataset.from_list(rows, features=FEATURES).with_format("arrow")[:]
    # before 4.0 `datasets` had no "List" and refuses the file; its "Sequence" is understood by all
    types = table.schema.metadata[b"huggingface"].replace(b'"List"', b'"Sequence"')
    table = table.replace_schema_metadata({b"huggingface": types})
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    return folder / "data"


def read_triplets(path: str | Path) -> Dataset:
    """The triplets of `export_triplets` with the columns anchor, positive, negative, question and label.

    path: the parquet file or its folder `data`. Pictures are decoded when they are asked for.
    """
    rows = pq.read_table(path).to_pydict()
    made = {role: [images[0] for images in rows[column]] for column, role in ROLES.items()}
    made |= {"question": [text.removeprefix(MARK) for text in rows["problem"]], "label": rows["answer"]}
    features = dict.fromkeys(ROLES.values(), ImageColumn()) | dict.fromkeys(("question", "label"), Value("string"))
    return Dataset.from_dict(made, features=Features(features))
