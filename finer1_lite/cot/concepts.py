r"""Which concepts say most about one image: the information bottleneck of the paper's Stage 1.

A teacher describes the image several times; the descriptions are split into concepts. With the embeddings A
of this image's captions, B of its concepts and C of the captions of other images (rows of length one), a
concept's score is an InfoNCE bound on what it tells about the image:

    score_j = sum_i log( e^{A_i.B_j / tau} / (e^{A_i.B_j / tau} + sum_k e^{B_j.C_k / tau}) )

A concept scores high if this image's captions keep saying it and other images' captions do not. A misreading
that one caption holds and the others do not scores low. Concepts above mean + 0.4 std stay, at least three.

Source: the paper (arXiv 2602.07605, Stage 1) cites arXiv 2502.14044 and prints no formula; formula, tau and
threshold are those of that work's released code. Departures: the candidate concepts are those of this image's
own captions, as Stage 1 has one image per class; std is that of the population (nothing says which); the text
encoder is a bag of concepts by default instead of e5-large-v2, so that nothing has to be downloaded.
"""

import re
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

TAU, K_STD, AT_LEAST = 0.1, 0.4, 3
Encoder = Callable[[list[str]], torch.Tensor]


def split_concepts(description: str) -> list[str]:
    """The phrases of a description, lower-cased, each once, in order.

    >>> split_concepts("Red crown, brown back; a 2.5 cm beak.")
    ['red crown', 'brown back', 'a 2.5 cm beak']
    """
    pieces = re.split(r"[,;\n]|[.!?](?=[\s,;]|$)", description.lower())
    return list(dict.fromkeys(p.strip() for p in pieces if p.strip()))


def embed_phrases(texts: list[str], vocabulary: list[str]) -> torch.Tensor:
    """Each text (N of them) as the bag of its concepts over a vocabulary of D: (N, D), rows of length one.

    On real data swap it for a text encoder (sentence-transformers, e5): any callable list[str] -> (N, D)
    tensor with rows of length one fits. Raises ValueError for a text without a concept of the vocabulary.

    >>> embed_phrases(["red crown, long tail", "long tail"], ["red crown", "long tail"]).round(decimals=2)
    tensor([[0.7100, 0.7100],
            [0.0000, 1.0000]])
    """
    place = {concept: d for d, concept in enumerate(vocabulary)}
    bags = torch.zeros(len(texts), len(vocabulary))
    for row, text in zip(bags, texts, strict=True):
        known = [place[c] for c in split_concepts(text) if c in place]
        if not known:
            raise ValueError(
                f"{text!r} holds no concept of the vocabulary; build the vocabulary from all texts"
            )
        row[known] = 1.0
    return normalize(bags, dim=1)


def concept_scores(
    captions: torch.Tensor, concepts: torch.Tensor, others: torch.Tensor, tau: float = TAU
) -> torch.Tensor:
    """How much each concept tells about one image: (b,), each <= 0, higher is more telling.

    captions A (a, D), concepts B (b, D), others C (c, D), rows of length one. Source: see the module.

    >>> image, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> concept_scores(image, torch.eye(2), other, tau=1.0)
    tensor([-0.3133, -1.3133])
    """
    for name, rows in {"captions": captions, "concepts": concepts, "others": others}.items():
        if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != concepts.shape[-1]:
            raise ValueError(
                f"{name} must be (n, D) with n > 0 and the D of the concepts, got {tuple(rows.shape)}"
            )
    if tau <= 0:
        raise ValueError(f"tau must be positive, got {tau}")
    positive = captions @ concepts.T / tau  # (a, b)
    negative = torch.logsumexp(concepts @ others.T / tau, dim=1)  # (b,)
    return (positive - torch.logaddexp(positive, negative)).sum(dim=0)


def select_concepts(
    scores: torch.Tensor, names: list[str], k_std: float = K_STD, at_least: int = AT_LEAST
) -> list[str]:
    """Names (b) with a score (b,) above mean + k_std * std, `at_least` so many (or all), in the order given.

    >>> select_concepts(torch.tensor([-9.0, -1.0, -8.0, -2.0]), ["a", "b", "c", "d"], at_least=1)
    ['b', 'd']
    """
    if scores.shape != (len(names),):
        raise ValueError(f"{len(names)} names need as many scores, got shape {tuple(scores.shape)}")
    if not names:
        return []
    enough = int((scores > scores.mean() + k_std * scores.std(correction=0)).sum())
    best = torch.argsort(scores, descending=True, stable=True)[: max(enough, at_least)]
    return [names[i] for i in sorted(best.tolist())]


def choose_concepts(captions: list[list[str]], encode: Encoder | None = None) -> list[list[str]]:
    """The kept concepts of each image, from the captions of all images (two or more).

    `encode` is a text encoder as in `embed_phrases`; by default the bag of the concepts of these captions.
    Captions without a word are passed over; ValueError for an image that has no other.
    """
    spoken = [[c for c in own if split_concepts(c)] for own in captions]
    if empty := [i for i, own in enumerate(spoken) if not own]:
        raise ValueError(f"no caption with a word for image(s) {empty[:5]}; sample their descriptions again")
    names = [list(dict.fromkeys(p for c in own for p in split_concepts(c))) for own in spoken]
    vocabulary = sorted({name for own in names for name in own})
    encode = encode or (lambda texts: embed_phrases(texts, vocabulary))
    embedded = [encode(own) for own in spoken]
    chosen = []
    for i, own in enumerate(names):
        others = torch.cat([e for k, e in enumerate(embedded) if k != i] or [embedded[i][:0]])
        chosen.append(select_concepts(concept_scores(embedded[i], encode(own), others), own))
    return chosen


def sentence_encoder(name: str = "intfloat/e5-large-v2", prefix: str = "query: ", device: str | None = None) -> Encoder:
    """Sentence embeddings as an encoder: texts (N) to (N, D) on the CPU, rows of length one.

    name: a model of sentence-transformers, fetched from the Hub unless it is a folder. prefix: what the model wants
    before each text; "query: " is E5's, most others want "". Raises ImportError without sentence-transformers.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError('a sentence encoder needs: pip install "finer1_lite[teacher]"') from None
    model = SentenceTransformer(str(name), device=device, model_kwargs={"use_safetensors": True})

    def encode(texts: list[str]) -> torch.Tensor:
        rows = model.encode(
            list(texts), prompt=prefix, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        return rows.float().cpu()

    return encode


def bottleneck_effect(
    captions: Sequence[Sequence[str]], kept: Sequence[Collection[str]], truth: Sequence[Collection[str]]
) -> pd.DataFrame:
    """All concepts of the captions (row `all`) beside the kept ones (row `kept`); one image of each class.

    truth: the phrases that are true of each image. A concept counts once for each image that it is said of. Columns:

        concepts  how many for each image
        true      share that is true of its image
        others    of the true ones: of how many other classes they are true as well, on average
        bits      of the true ones: what they tell of the class, log2(classes / classes of which they are true)

    A mean over nothing is NaN. ValueError for lists of different length and for a kept concept that no caption of
    its image holds.

    >>> bottleneck_effect([["Red crown, long tail, a hat"], ["Long tail"]], [["red crown"], ["long tail"]],
    ...                   [{"red crown", "long tail"}, {"long tail"}]).round(2)
          concepts  true  others  bits
    all        2.0  0.75    0.67  0.33
    kept       1.0  1.00    0.50  0.50
    """
    if not len(captions) == len(kept) == len(truth):
        raise ValueError(f"captions, kept and truth differ in length: {len(captions)}, {len(kept)}, {len(truth)}")
    said = [{phrase for caption in own for phrase in split_concepts(caption)} for own in captions]
    for i, (own, chosen) in enumerate(zip(said, kept)):
        if strange := set(chosen) - own:
            raise ValueError(f"no caption of image {i} holds the kept concept {min(strange)!r}")
    return pd.DataFrame([_facts(said, truth), _facts([set(chosen) for chosen in kept], truth)], index=["all", "kept"])


def _facts(concepts: list[set[str]], truth: Sequence[Collection[str]]) -> dict[str, float]:
    pairs = [(concept, own) for said, own in zip(concepts, truth) for concept in said]
    classes = pd.Series([sum(concept in t for t in truth) for concept, own in pairs if concept in own], dtype=float)
    return {
        "concepts": pd.Series([len(said) for said in concepts], dtype=float).mean(),
        "true": pd.Series([concept in own for concept, own in pairs], dtype=float).mean(),
        "others": (classes - 1).mean(),
        "bits": np.log2(len(truth) / classes).mean(),
    }
