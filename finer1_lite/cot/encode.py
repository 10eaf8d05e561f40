"""A text encoder for `concepts.choose_concepts`, and what its choice is worth where the truth is known.

Captions of real pictures say the same thing in many words. The bag of concepts, the default there, takes "a crimson
cap" and "the crown is red" for two things; e5-large-v2, which arXiv 2502.14044 uses, does not.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import torch

from .concepts import Encoder, split_concepts


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
