r"""Which concepts say most about one image: the information bottleneck of the paper's Stage 1.

With the embeddings A of this image's captions, B of its concepts and C of the captions of other images, a concept's
score is an InfoNCE bound on what it tells about the image; concepts above mean + 0.4 std stay, at least three:

    score_j = sum_i log( e^{A_i.B_j / tau} / (e^{A_i.B_j / tau} + sum_k e^{B_j.C_k / tau}) )

Source: the paper (arXiv 2602.07605) cites arXiv 2502.14044, whose released code has formula, tau and threshold.
Departures: the candidate concepts are those of this image's own captions, as Stage 1 has one image per class; std is
that of the population; the text encoder is a bag of concepts by default, so that nothing has to be downloaded.
"""

import re
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

TAU, K_STD = 0.1, 0.4
Encoder = Callable[[list[str]], Tensor]  # N texts to (N, D), rows of length one


def split_concepts(description: str) -> list[str]:
    """The phrases of a description, lower-cased, each once, in order.

    >>> split_concepts("Red crown, brown back; a 2.5 cm beak.")
    ['red crown', 'brown back', 'a 2.5 cm beak']
    """
    pieces = re.split(r"[,;\n]|[.!?](?=[\s,;]|$)", description.lower())
    return list(dict.fromkeys(p.strip() for p in pieces if p.strip()))


def embed_phrases(texts: list[str], vocabulary: list[str]) -> Tensor:
    """Each of N texts as the bag of its concepts over a vocabulary of D: (N, D), rows of length one."""
    place = {concept: d for d, concept in enumerate(vocabulary)}
    bags = torch.zeros(len(texts), len(vocabulary))
    for row, text in zip(bags, texts):
        row[[place[c] for c in split_concepts(text) if c in place]] = 1.0
    return normalize(bags, dim=1)


def concept_scores(captions: Tensor, concepts: Tensor, others: Tensor, tau: float = TAU) -> Tensor:
    """How much each concept tells about one image: (b,), each <= 0, higher is more telling.

    captions A (a, D), concepts B (b, D), others C (c, D), rows of length one.

    >>> image, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> concept_scores(image, torch.eye(2), other, tau=1.0)
    tensor([-0.3133, -1.3133])
    """
    positive = captions @ concepts.T / tau  # (a, b)
    negative = torch.logsumexp(concepts @ others.T / tau, dim=1)  # (b,)
    return (positive - torch.logaddexp(positive, negative)).sum(dim=0)


def select_concepts(scores: Tensor, names: list[str], k_std=K_STD, at_least=3) -> list[str]:
    """Names (b) with a score (b,) above mean + k_std * std, `at_least` so many (or all), in the order given."""
    enough = int((scores > scores.mean() + k_std * scores.std(correction=0)).sum())
    best = torch.argsort(scores, descending=True, stable=True)[: max(enough, at_least)]
    return [names[i] for i in sorted(best.tolist())]


def choose_concepts(captions: list[list[str]], encode: Encoder | None = None) -> list[list[str]]:
    """The kept concepts of each image, from the captions of all images (two or more). encode: a text encoder; by
    default the bag of the concepts of these captions. ValueError for an image that has no caption with a word."""
    spoken = [[c for c in own if split_concepts(c)] for own in captions]
    if silent := [i for i, own in enumerate(spoken) if not own]:
        raise ValueError(f"no caption with a word for image(s) {silent[:5]}; sample their descriptions again")
    names = [split_concepts("\n".join(own)) for own in spoken]
    vocabulary = sorted({name for own in names for name in own})
    encode = encode or (lambda texts: embed_phrases(texts, vocabulary))
    embedded, chosen = [encode(own) for own in spoken], []
    for i, own in enumerate(names):
        others = torch.cat(embedded[:i] + embedded[i + 1 :])
        chosen.append(select_concepts(concept_scores(embedded[i], encode(own), others), own))
    return chosen


def sentence_encoder(name: str = "intfloat/e5-large-v2", prefix: str = "query: ") -> Encoder:
    """Sentence embeddings as an encoder: texts (N) to (N, D) on the CPU, rows of length one. name: a model of
    sentence-transformers (`pip install sentence-transformers`). prefix: what it wants before each text, often ""."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(name), model_kwargs={"use_safetensors": True})
    options = {"normalize_embeddings": True, "convert_to_tensor": True, "show_progress_bar": False}
    return lambda texts: model.encode(list(texts), prompt=prefix, **options).float().cpu()


def bottleneck_effect(
    captions: Sequence[Sequence[str]], kept: Sequence[Collection[str]], truth: Sequence[Collection[str]]
) -> pd.DataFrame:
    """All concepts of the captions (row `all`) beside the kept ones (row `kept`); one image of each class.

    truth: the phrases that are true of each image. A concept counts once for each image that it is said of. Columns:

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
