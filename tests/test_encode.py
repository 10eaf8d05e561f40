"""A real sentence encoder, made here and tiny, and what the bottleneck keeps of the bird world."""

import pytest
import torch

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species
from finer1_lite.config import ASSETS
from finer1_lite.cot.build import DESCRIBE
from finer1_lite.cot.concepts import bottleneck_effect, choose_concepts, sentence_encoder, split_concepts
from finer1_lite.teachers.local import LocalTeacher

CAPTIONS = [["Red crown, long tail.", "Red crown; a hat."], ["Blue back, long tail.", "Blue back."]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sentence-transformers model: one layer of BERT with random weights and a vocabulary of twelve words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", "red", "crown", "long", "tail", "blue", "back"]
    (place / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(place / "bert")
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place / "bert")
    layer = Transformer(str(place / "bert"))
    SentenceTransformer(modules=[layer, Pooling(16)], device="cpu").save(str(place / "whole"))
    return place / "whole"


def test_rows_have_length_one_follow_the_texts_and_take_the_prefix(folder):
    encode, plain = sentence_encoder(folder), sentence_encoder(folder, prefix="")
    rows = encode(["red crown", "long tail", "red crown"])
    assert rows.shape == (3, 16) and rows.dtype == torch.float32 and rows.device.type == "cpu"
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(rows[0], rows[2])
    assert not torch.allclose(rows[0], rows[1], atol=1e-2)
    torch.testing.assert_close(rows[:1], plain(["query: red crown"]))
    assert not torch.allclose(rows[:1], plain(["red crown"]), atol=1e-2)


def test_it_fits_the_bottleneck(folder):
    kept = choose_concepts(CAPTIONS, sentence_encoder(folder))
    assert [set(own) for own in kept] == [{"red crown", "long tail", "a hat"}, {"blue back", "long tail"}]  # at least 3


def test_effect_by_hand():
    """Three classes. Said: red crown (true of 1), a hat (of none), blue back (of 2), long tail (of all), twice."""
    captions = [["Red crown. A hat."], ["Blue back.", "blue back, long tail"], ["Long tail"]]
    truth = [{"red crown", "long tail"}, {"blue back", "long tail"}, {"blue back", "long tail"}]
    effect = bottleneck_effect(captions, [["red crown"], ["blue back"], []], truth)
    bits = 1.5849625007 + 0.5849625007  # log2(3 / 1) + log2(3 / 2)
    expected = {"all": [5 / 3, 4 / 5, (0 + 1 + 2 + 2) / 4, bits / 4], "kept": [2 / 3, 1, 1 / 2, bits / 2]}
    assert list(effect.columns) == ["concepts", "true", "others", "bits"] and list(effect.index) == list(expected)
    for name, row in expected.items():
        assert effect.loc[name].tolist() == pytest.approx(row)


def test_the_bottleneck_keeps_what_is_true_and_tells_birds_apart():
    """Eight birds as the tiny base describes them: some of what it says is wrong."""
    birds = [s for s in all_species() if not s.common][::20]
    pictures = [draw(s, 5) for s in birds]
    base = LocalTeacher.from_pretrained(ASSETS / "base", pictures, max_new_tokens=48, batch_size=32)
    texts = base([(i, question) for i in range(len(birds)) for question in DESCRIBE])
    captions = [texts[i : i + len(DESCRIBE)] for i in range(0, len(texts), len(DESCRIBE))]
    truth = [set(split_concepts(s.describe())) for s in birds]
    every, kept = bottleneck_effect(captions, choose_concepts(captions), truth).to_dict("records")
    assert kept["true"] > every["true"] and kept["others"] < every["others"] and kept["bits"] > every["bits"]
    assert 3 <= kept["concepts"] < every["concepts"]
