"""The paper's protocol from archives on disk to a table with the paper's figures beside, for one data set or all six.

    python -m finer1_lite.reproduce bird=CUB_200_2011 pet=pets --profile l4 --questions FOLDER --chains stage1.json

What lies under `runs/PROFILE/reproduce` is not made again, so a run that was killed goes on. Run `--methods base`
first: the paper's 77.43 and 71.94 test the evaluation. Departures beside those of the profile: without `--chains` and
`--teacher` the base is its own teacher; RL takes the pictures of SFT on answers, the paper others of the same classes.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from datasets import Image as ImageColumn

from .config import PROFILES, Profile, get_profile
from .cot.build import Sampler, Task, build_chains, describe_questions, explained_prompt
from .cot.chains import load_chains, save_chains
from .cot.concepts import choose_concepts, sentence_encoder
from .data import benchmarks
from .data.formats import ClosedWorld, read_chats, read_closed_world, write_closed_world
from .data.health import check_health
from .data.sources import load_images
from .data.splits import few_shot
from .evaluate.answers import METHODS, WITHOUT_CHAIN, ask
from .evaluate.paper import paper_figures
from .evaluate.protocols import Encoder, closed_prompts, protocol_frame, shuffled
from .evaluate.siglip import Siglip
from .files import write_csv
from .loop import Checkpoints
from .policy.inputs import VisionCache
from .policy.load import ADAPTER_FILES, Policy, load_base, load_policy, load_processor
from .prompts import bare_question, instructed, question, questions_for
from .recipes import chain_rows, dapo_setting, look_alike_classes, one_per_class, room_for, sft_rows
from .rewards import loose_reward
from .samplers import TripletSampler
from .sft import Row, fitted, train_sft
from .tapo import Tapo, rehearse
from .teachers.endpoint import Endpoint
from .teachers.policy import sampler_of

READERS = {  # what a picture shows -> its reader, what its classes are called
    "bird": (benchmarks.cub_200, "species"), "car": (benchmarks.stanford_cars, "model"),
    "dog": (benchmarks.stanford_dogs, "breed"), "flower": (benchmarks.flowers_102, "species"),
    "pet": (benchmarks.oxford_pets, "breed"), "aircraft": (benchmarks.fgvc_aircraft, "variant"),
}  # fmt: skip
SHOWN = {  # protocol and rule of the table -> the paper's protocol and metric
    ("closed, official order", "as released"): ("closed", "accuracy"), ("closed, shuffled", "corrected"): None,
    ("open, inclusion", "as released"): ("open", "inclusion"),
    ("open, similarity", "as released"): ("open", "similarity"),
}  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """One data set: its pictures to train on, and its test questions with the picture of each (columns as `ask`)."""

    noun: str
    train: Dataset
    asked: Dataset
    questions: ClosedWorld

    @property
    def phrasings(self) -> tuple[str, ...]:
        """How is asked in training."""
        return questions_for(self.noun, READERS[self.noun][1])


def read_domain(noun: str, folder: Path, released: Path | None, base: Policy, out: Path) -> Domain:
    """A data set of READERS, split as the released question files are, else at random with questions of our own."""
    entries, seed = READERS[noun][0](folder), base.profile.seed
    parts = {part: _file(released, noun, part) for part in ("seen", "unseen")} if released else {}
    loaded = load_images(entries)
    print(f"{noun}: {loaded.report().splitlines()[0]}", *(f"left out: {p}: {why}" for p, why in loaded.skipped))
    seen = {row["ground_truth"] for row in read_closed_world(parts["seen"]).rows} if parts else None
    splits = few_shot(loaded.data, seed=seed, seen=seen)
    if not parts:  # every test picture is asked about once
        parts = {part: out / "questions" / f"{noun} {part}.jsonl" for part in ("seen", "unseen")}
        test = splits["test"]
        if not all(path.exists() for path in parts.values()):
            nearest = look_alike_classes(VisionCache(base.model, base.processor, test["image"]), test["label"][:])
            for part, path in parts.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                mine = test.filter(lambda seen, part=part: seen == (part == "seen"), input_columns="seen")
                write_closed_world(path, mine, nearest, seed, questions_for(noun, READERS[noun][1]), official=True)
    rows, place = [], {entry.path.name: entry.path for entry in entries if entry.split != "train"}
    for part, path in parts.items():
        for row in read_closed_world(path).rows:
            own = path.parent / row["image_path"]
            picture = own if own.is_file() else place.get(Path(row["image_path"]).name)
            if picture is None:
                raise FileNotFoundError(f"{path} asks about {row['image_path']}, which {folder} does not have")
            rows.append(row | {"image": str(picture), "label": row["ground_truth"], "seen": part == "seen"})
    columns = {key: [row[key] for row in rows] for key in ("image", "label", "seen")}
    asked = Dataset.from_dict(columns).cast_column("image", ImageColumn())
    twice = check_health({"train": splits["train"], "test": asked}).problems  # told; the test set stays as it is
    print(*(problem for problem in twice if problem.startswith("Pictures in two splits")), sep="\n")
    return Domain(noun, splits["train"], asked, ClosedWorld(rows))


def _file(folder: Path, noun: str, part: str) -> Path:
    found = [p for p in folder.rglob("*.jsonl") if noun in p.name and re.search(rf"(?<!un){part}", p.name)]
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files in {folder} are called as `*{noun}*{part}*.jsonl`, not one")
    return found[0]


class Lab:
    """All stages on the pictures of some domains together, as the paper trains one model for all six."""

    def __init__(
        self, profile: Profile, folders: dict[str, Path], released: Path | None, out: Path,
        teacher: Callable[[Sequence, Path], Sampler] | None = None, encoder: str = "intfloat/e5-large-v2",
    ):  # fmt: skip
        self.profile, self.out, self.encoder, self.base = profile, out, encoder, load_base(profile)
        self.domains = [read_domain(noun, folder, released, self.base, out) for noun, folder in folders.items()]
        self.images = concatenate_datasets([d.train.select_columns(["image"]) for d in self.domains])["image"]
        self.domain_of = [d for d in self.domains for _ in range(len(d.train))]  # of each training picture
        self.labels = [label for d in self.domains for label in d.train["label"]]
        self.cache = VisionCache(self.base.model, self.base.processor, self.images)
        self.teacher = teacher or (lambda _, kept: sampler_of(self.base, self.cache, profile.seed, kept=kept))

    def ask(self, rng: np.random.Generator, image: int, think: bool = True) -> str:
        """A prompt about a training picture, in the words of its domain."""
        return question(rng, think, self.domain_of[image].phrasings)

    def chains(self) -> list[Row]:
        """Rows for CoT SFT of chains by the teacher, who is told the label; kept in `chains.jsonl`."""
        path, seed = self.out / "chains.jsonl", self.profile.seed
        if not path.exists():
            choose = partial(choose_concepts, encode=sentence_encoder(self.encoder, download=True))  # may be missing
            voice, rows, first = self.teacher(self.images, self.out / "voice.jsonl"), [], 0
            for d in self.domains:
                names, rng = d.train["label"][:], np.random.default_rng(seed)
                tasks = [Task(first + i, names[i], bare_question(rng, d.phrasings)) for i in one_per_class(names)]
                built = build_chains(tasks, voice, voice, choose, known_names=sorted(set(names)),
                                     questions=describe_questions(d.noun), prompt=explained_prompt)  # fmt: skip
                rows, first = rows + chain_rows(tasks, built, self.cache), first + len(names)
            save_chains(path, rows)
        return sft_rows(load_chains(path), self.cache, self.labels)

    def sft(self, method: str, chats: tuple[Dataset, str | None] | None) -> None:
        """Stage 1. chats: chains as they were released, and their system turn; else own ones."""
        if (self.out / method / ADAPTER_FILES[1]).exists():
            return
        system = chats[1] if chats and method == "cot_sft" else None
        policy = load_policy(replace(self.profile, system=system), seed=self.profile.seed)
        if method == "sft_answers":
            rng, config = np.random.default_rng(self.profile.seed), self.profile.sft_answers
            names = [(self.ask(rng, i, False), f"<answer> {name} </answer>") for i, name in enumerate(self.labels)]
            rows = [(asked, seen, name) for (asked, name), seen in zip(names, self.cache.get(range(len(names))))]
        elif chats is None:
            rows, config = self.chains(), self.profile.sft
        else:
            data, config = chats[0], self.profile.sft
            seen = VisionCache(policy.model, policy.processor, data["image"]).get(range(len(data)))
            rows = list(zip(data["question"], seen, data["completion"]))
        checkpoints = Checkpoints(self.out / "checkpoints" / method)
        train_sft(policy, rows, fitted(config, len(rows)), self.profile.seed, self.out / f"{method}.csv",
                  checkpoints=checkpoints)  # fmt: skip
        policy.save(self.out / method)

    def loop(self, method: str) -> Tapo:
        """Stage 2, from CoT SFT where that is done; look-alikes are of the same domain."""
        start = self.out / "cot_sft"
        policy = load_policy(self.profile, start if start.exists() else None, self.profile.seed)
        config, loss = dapo_setting(self.profile) if method == "dapo" else (self.profile.tapo, self.profile.loss)
        names = [f"{d.noun} {label}" for d, label in zip(self.domain_of, self.labels)]  # "pug" is a dog and a pet
        nearest = look_alike_classes(self.cache, names)
        nearest = {n: [other for other in near if other.split()[0] == n.split()[0]] for n, near in nearest.items()}
        sampler = TripletSampler(names, nearest, self.profile.seed)
        return Tapo(policy, self.cache, self.labels, sampler, config, loss, self.profile.seed, loose_reward, self.ask)

    def price(self, methods: list[str]) -> str:
        """Hours that are to come at most, told by one step of TAPO at its full length on this machine."""
        trial, tapo = rehearse(self.loop("tapo")), self.profile.tapo
        rollouts = tapo.questions * (tapo.num_anchor + tapo.num_positive)
        batch = trial["rollout_s"] / math.ceil(rollouts / self.profile.rollout_batch)
        asked = sum(len(d.asked) for d in self.domains) * 3 * len(methods)
        judging = asked / self.profile.eval_batch * batch / 3600
        steps = tapo.steps * len({"dapo", "tapo"} & set(methods)) / 3600
        rounds = f"{trial['rollout_s'] * tapo.max_rounds * steps + trial['update_s'] * steps:.1f}"
        return f"at most {rounds} hours for RL and {judging:.1f} for {asked} answers to judge"

    def judge(self, method: str, encode: Encoder | None) -> pd.DataFrame:
        """`protocol_frame` of a method's answers to all questions of all domains, which are kept."""
        policy, frames = self.base, []
        if method != "base":
            policy = load_policy(self.profile, self.out / method, trainable=False)
        think, seed = method not in WITHOUT_CHAIN, self.profile.seed
        for d in self.domains:
            cache, answers = VisionCache(policy.model, policy.processor, d.asked["image"]), {}
            prompts = {"open": [instructed(row["question"], think) for row in d.questions.rows],
                       "official": closed_prompts(d.questions, think),
                       "closed": closed_prompts(shuffled(d.questions, seed), think)}  # fmt: skip
            for protocol, asked in prompts.items():
                path = self.out / "answers" / f"{method} {d.noun} {protocol}.jsonl"
                answers[protocol] = ask(policy, cache, d.asked, asked, f"{method}, {d.noun}, {protocol}", path)
            frame = protocol_frame(answers, d.noun, encode, seed)
            frames.append(frame.assign(method=method, domain=d.noun))
        return pd.concat(frames)


def table(results: pd.DataFrame) -> str:
    """Percent by protocol and split, a mean over the domains, with the paper's figure (over all six) in brackets."""
    paper, lines = paper_figures(), []
    for (protocol, rule), theirs in SHOWN.items():
        mine = results[(results.protocol == protocol) & (results.rule == rule)]
        for method, part in mine.groupby("method", sort=False):
            cells = []
            for split in ("seen", "unseen"):
                said = paper[(paper.method == method) & (paper.model == "Qwen2.5-VL-3B") & (paper.split == split)]
                said = said[(said.protocol == theirs[0]) & (said.metric == theirs[1])].value if theirs else ()
                own = 100 * part[part.split == split].accuracy.mean()
                cells.append(f"{own:.1f} ({said.iloc[0]:.1f})" if len(said) else f"{own:.1f}")
            lines.append(f"| {protocol}, {rule} | `{method}` | {cells[0]} | {cells[1]} |")
    return "\n".join(["| protocol | method | seen | unseen |", "|" + " --- |" * 4, *lines])


def run(lab: Lab, methods: list[str], chats: tuple[Dataset, str | None] | None, encode: Encoder | None) -> None:
    """All stages that the methods need, and `results.csv`, which grows with each."""
    frames = []
    if any(not (lab.out / m / ADAPTER_FILES[1]).exists() for m in methods if m in ("dapo", "tapo")):
        print(lab.price(methods), flush=True)
    for method in methods:
        if method in ("dapo", "tapo"):
            lab.sft("cot_sft", chats)
            if not (lab.out / method / ADAPTER_FILES[1]).exists():
                loop = lab.loop(method)
                loop.train(lab.out / f"{method}.csv", checkpoints=Checkpoints(lab.out / "checkpoints" / method))
                loop.policy.save(lab.out / method)
        elif method != "base":
            lab.sft(method, chats)
        frames.append(lab.judge(method, encode))
        write_csv(lab.out / "results.csv", pd.concat(frames).to_dict("records"))
        print(table(pd.concat(frames)), flush=True)


def main() -> None:
    """Run the paper's protocol, stage by stage; what is on disk is not made again."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", nargs="+", help=f"as in bird=CUB_200_2011; known are: {', '.join(READERS)}")
    parser.add_argument("--profile", default="l4", choices=list(PROFILES))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--questions", type=Path, help="the folder of the released question files; without: own ones")
    parser.add_argument("--chains", type=Path, help="the released chains of stage 1, a JSON file; without: own ones")
    parser.add_argument("--pictures", type=Path, default=Path(), help="where the pictures of these chains lie")
    parser.add_argument("--teacher", help="who writes chains instead: the name of a model behind --endpoint")
    parser.add_argument("--endpoint", help="its address, as http://localhost:8000/v1; the key: OPENAI_API_KEY")
    parser.add_argument("--encoder", default="intfloat/e5-large-v2", help="of sentences, for own chains; is fetched")
    parser.add_argument("--model", help="a folder or Hub id instead of the profile's: the authors' checkpoint, say")
    parser.add_argument("--similarity", help="a SigLIP for the open-world similarity: google/siglip-base-patch16-256")
    parser.add_argument("--out", type=Path, help="runs/PROFILE/reproduce")
    args = parser.parse_args()
    profile = get_profile(args.profile)
    profile = replace(profile, model_id=args.model or profile.model_id)
    out = args.out or profile.run_dir / "reproduce"
    chats = read_chats(args.chains, args.pictures) if args.chains else None
    if chats:
        profile = room_for(profile, load_processor(profile), chats[0]["completion"])
    folders = {noun: Path(folder) for noun, _, folder in (text.partition("=") for text in args.data)}
    if unknown := folders.keys() - READERS.keys():
        parser.error(f"unknown data {', '.join(unknown)}; write it as in bird=FOLDER, known are {', '.join(READERS)}")
    encode = Siglip(args.similarity, profile.device).texts if args.similarity else None
    teacher = partial(Endpoint, args.teacher, base_url=args.endpoint) if args.teacher else None
    run(Lab(profile, folders, args.questions, out, teacher, args.encoder), args.methods, chats, encode)


if __name__ == "__main__":
    main()
