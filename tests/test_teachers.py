"""Teachers on this machine: one with the library's own `generate`, rounds of self-teaching, a table of looks."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, all_species, describe
from finer1_lite.config import ASSETS, PROFILES
from finer1_lite.cot.build import Task
from finer1_lite.cot.chains import chat_row, check_chain, question_and_completion, to_completion
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_base
from finer1_lite.policy.rollout import forbidden_ids, rollout
from finer1_lite.prompts import QUESTIONS, instructed
from finer1_lite.teachers.guide import guide_chain, read_guide, write_guide_template
from finer1_lite.teachers.local import LocalTeacher
from finer1_lite.teachers.policy import sampler_of
from finer1_lite.teachers.selftaught import self_teach

# prompts of different length, so that all rows but one are padded
ASKED = [(0, "Describe the bird."), (1, instructed(QUESTIONS[0])), (2, "Describe the wing and the tail of the bird.")]
IMAGES = [draw(s, 7) for s in all_species()[3:90:30]]
ASK = "Which bird is this?"
TASKS = [Task(i, name, ASK) for i, name in enumerate(("wren", "finch", "robin"))]


@pytest.fixture(scope="module")
def policy():
    return load_base(replace(PROFILES["cpu"], quantize=False))


@pytest.fixture
def teacher(policy):
    def make(images=IMAGES, seed=0, **settings):
        return LocalTeacher(policy.model, policy.processor, images, seed, **{"max_new_tokens": 32} | settings)

    return make


def test_greedy_texts_are_those_of_our_own_decoding_in_any_batch(policy, teacher):
    cache = VisionCache(policy.model, policy.processor, IMAGES)
    prompts = [(question, cache.get([i])[0]) for i, question in ASKED]
    ours = rollout(policy, prompts, 1, None, temperature=0, max_new_tokens=32).texts
    assert teacher(temperature=0)(ASKED) == ours == teacher(temperature=0, batch_size=1)(ASKED) and "crown" in ours[0]
    assert teacher()([]) == []


def test_the_seed_decides_the_texts_and_leaves_other_draws_alone(teacher):
    first, again, other = (teacher(seed=seed, temperature=2.0, batch_size=2) for seed in (5, 5, 6))
    before = torch.get_rng_state()
    texts = first(ASKED), first(ASKED)
    assert texts == (again(ASKED), again(ASKED)) and texts[0] not in (texts[1], other(ASKED))
    assert torch.equal(before, torch.get_rng_state())


def test_only_temperature_and_top_p_decide_the_draw(policy, teacher, monkeypatch):
    """Qwen2.5-VL's own file takes the likeliest token whatever is drawn, and punishes repeated words."""
    drawn, greedy = teacher(temperature=2.0)(ASKED), teacher(temperature=0)(ASKED)
    assert drawn != greedy == teacher(temperature=2.0, top_p=1e-6)(ASKED) == teacher(temperature=1e-4)(ASKED)
    for name, value in {"top_k": 1, "top_p": 0.001, "repetition_penalty": 1.5, "temperature": 0.1}.items():
        monkeypatch.setattr(policy.model.generation_config, name, value)
    assert (teacher(temperature=2.0)(ASKED), teacher(temperature=0)(ASKED)) == (drawn, greedy)


def test_no_token_that_stands_for_an_image_is_drawn(policy, teacher, monkeypatch):
    made, generate = [], policy.model.generate
    monkeypatch.setattr(policy.model, "generate", lambda **how: made.append(generate(**how)) or made[-1])
    asked = ASKED[:1] * 16  # prompts of one length: what is new begins where they end
    teacher(temperature=1e4, max_new_tokens=100, batch_size=16)(asked)  # all tokens alike likely
    new = made[0][:, -100:]
    assert new.unique().numel() > 600 and not set(forbidden_ids(policy.model)) & set(new.unique().tolist())


def test_a_batch_that_does_not_fit_is_halved(policy, teacher, monkeypatch):
    generate = policy.model.generate

    def full(**inputs):
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        return generate(**inputs)

    expected = teacher(temperature=0)(ASKED)
    monkeypatch.setattr(policy.model, "generate", full)
    small = teacher(temperature=0, batch_size=4)
    with pytest.warns(RuntimeWarning, match="batch_size"):
        assert small(ASKED) == expected
    assert small.batch_size == 1


@pytest.mark.parametrize("four_bit, dtype", [(False, "float16"), (True, "float32")])
def test_a_model_is_loaded_from_a_folder(four_bit, dtype):
    """The vision tower is not packed, and computes in fp32 where the rest is in fp16."""
    how = {"four_bit": four_bit, "dtype": dtype, "temperature": 0, "max_new_tokens": 24}
    teacher = LocalTeacher.from_pretrained(ASSETS / "base", IMAGES, **how)
    assert "crown" in teacher(ASKED[:1])[0]
    model = teacher.model.model
    assert model.visual.dtype == torch.float32 and model.language_model.norm.weight.dtype == getattr(torch, dtype)
    packed = [name for name, layer in teacher.model.named_modules() if isinstance(layer, Linear4bit)]
    assert bool(packed) == four_bit and all(name.startswith("model.language_model.") for name in packed)


def chain(name, other="heron", looks="red crown"):
    return (
        f"<think>\nAnalysis: {looks}.\nCandidates: {name}; {other}.\nComparison: {name}: fits. {other}: blue back.\n"
        f"Prediction: {name}.\n</think>\n<answer> {name} </answer>"
    )


SEEDS = [chat_row(0, "wren", instructed(ASK), chain("wren"))]


def taught(scripts, **how):
    """Run with students that say what `scripts` (one list of texts for each round) holds; returns rounds, calls."""
    trained, asked, texts = [], [], iter(scripts)

    def train(rows):
        trained.append([r["image_index"] for r in rows])
        return lambda prompts: asked.append(prompts) or next(texts)

    return list(self_teach(TASKS, SEEDS, train, rounds=len(scripts), **how)), trained, asked


def test_good_chains_join_and_the_next_student_learns_from_them():
    wrong = chain("finch").replace("Prediction: finch", "Prediction: heron").replace("> finch <", "> heron <")
    later = [chain("finch", looks="blue back"), chain("finch"), chain("robin"), ""]
    rounds, trained, asked = taught([[wrong, chain("finch"), "no chain", wrong], later, [""] * 4], tries=2)
    assert trained == [[0], [0, 1], [0, 1, 2]]  # the seed; then the finch too
    assert asked[0] == [(1, instructed(ASK))] * 2 + [(2, instructed(ASK))] * 2  # a task with a seed is not asked
    assert [(r.number, r.asked, r.accepted) for r in rounds] == [(1, 4, 1), (2, 4, 2), (3, 4, 0)]
    assert rounds[0].reasons == {"prediction is not the label": 2, "format": 1}
    assert "blue back" in question_and_completion(rounds[1].rows[1])[1]  # the later student's first good chain
    assert rounds[2].rows == rounds[1].rows  # what was accepted stays when a later student fails
    with pytest.raises(ValueError, match="no chain was accepted .*'format': 2.*more seed chains"):
        taught([["?", "?"]], tries=1)


def test_a_guides_chain_passes_quality_control():
    guide = {s.name: [describe(s.looks, [a]) for a in ATTRIBUTES] for s in all_species()}
    made = guide_chain(guide, "zatom tarn")
    assert made.prediction == "zatom tarn" and len(made.options) == 4
    assert check_chain(to_completion(made), "zatom tarn", list(guide)) == []
    mine = set(guide["zatom tarn"])
    assert all(len(mine & set(guide[name])) >= 5 for name in made.options)  # of eight: the look-alikes
    with pytest.raises(KeyError, match="dodo"):
        guide_chain(guide, "dodo")


def test_a_guide_is_read_as_excel_writes_it_and_a_broken_one_names_its_line(tmp_path):
    path = tmp_path / "guide.csv"
    path.write_bytes("\ufeffname,looks\r\nÉider,\"black crown, white back\"\r\n".encode())
    assert read_guide(path) == {"Éider": ["black crown", "white back"]}
    for rows, error in {
        "name\na": "needs the columns name, looks", "name,looks\na,red\na,b": "line 3: 'a' is named twice",
        "name,looks\n,red": "line 2: '' .*lacks its name", "name,looks\na, ;": "line 2: 'a' .*or looks",
        "name,looks\na": "line 2: 'a' .*or looks",
    }.items():  # fmt: skip
        path.write_text(rows)
        with pytest.raises(ValueError, match=error):
            read_guide(path)


def test_a_guide_is_compared_with_the_classes_of_the_data(tmp_path):
    path, classes = tmp_path / "guide.csv", ["bell cod", "sun perch", "tit"]
    write_guide_template(path, classes)
    assert path.read_text().split() == ["name,looks", "bell", "cod,", "sun", "perch,", "tit,"]
    with pytest.raises(ValueError, match="line 2: 'bell cod' .*lacks .*looks\nline 3: 'sun perch'"):
        read_guide(path, classes)
    with pytest.raises(FileExistsError, match="guide.csv is there already"):
        write_guide_template(path, classes)
    path.write_text("name,looks\nbell_cod,red\nSun Perch,blue\n")  # the first as its folder is spelt
    with pytest.raises(ValueError, match="guide.csv, line 3: .*no class 'Sun Perch'.*\nadd lines .*'sun perch', 'tit'"):
        read_guide(path, classes)
    assert list(read_guide(path, ["bell cod", "Sun Perch"])) == ["bell cod", "Sun Perch"]


def test_a_policy_that_was_killed_says_the_same_again(tmp_path, monkeypatch):
    policy = load_base(replace(PROFILES["cpu"], max_new_tokens=8, rollout_batch=2, quantize=False))
    cache, path = VisionCache(policy.model, policy.processor, IMAGES), tmp_path / "said.jsonl"
    asked = [(0, "Describe the bird."), (1, "Describe the bird."), (2, "What is it?")]
    sampler = lambda seed=0: sampler_of(policy, cache, seed, temperature=2.0, kept=path)  # noqa: E731
    one = sampler()
    first, again = one(asked), one(asked)
    assert first != again  # each call draws anew
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 4  # batches
    path.write_text("".join(lines[:2]) + lines[2][:20])  # killed in its second call, while it wrote
    two = sampler()
    assert (two(asked), two(asked)) == (first, again)
    monkeypatch.setattr("finer1_lite.teachers.policy.rollout", None)  # all is in the file: nothing is sampled
    three = sampler()
    assert (three(asked), three(asked)) == (first, again)
    with pytest.raises(TypeError):
        sampler(seed=1)(asked)
