"""Three drawings that the chapters share: the pipeline with "you are here", the model, and one step of TAPO."""

import matplotlib.pyplot as plt

CHAPTERS = (
    ("01", "CoT data\na teacher's chains"), ("02", "CoT SFT\nthe form of\nthinking"),
    ("03", "TAPO by hand\nevery number"), ("04", "TAPO\nlearning\nby trying"), ("05", "does it hold?\ntests, seeds"),
    ("06", "name your\npictures"), ("07", "your own\ndata set"),
)  # fmt: skip


def _draw(size: tuple[float, float], boxes: dict[str, tuple], arrows: list[tuple[str, str]], dark=()) -> None:
    """boxes: key -> (x, y, width, height, text), centres in inches; arrows: (from, to). dark: filled boxes."""
    figure, axis = plt.subplots(figsize=size)
    axis.set(xlim=(0, size[0]), ylim=(0, size[1]), aspect="equal")
    axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    for key, (x, y, width, height, text) in boxes.items():
        fill, ink = ("#333333", "white") if key in dark else ("#f0f0f0", "black")
        corner = (x - width / 2, y - height / 2)
        axis.add_patch(plt.Rectangle(corner, width, height, facecolor=fill, edgecolor="black"))
        axis.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
    for start, end in arrows:
        (x, y, w, h, _), (x2, y2, w2, h2, _) = boxes[start], boxes[end]
        across = abs(x2 - x) > (w + w2) / 2  # from side to side, else from edge to edge
        sign = 1 if (x2 > x if across else y2 > y) else -1
        tail = (x + sign * w / 2, y) if across else (x, y + sign * h / 2)
        head = (x2 - sign * w2 / 2, y2) if across else (x2, y2 - sign * h2 / 2)
        axis.annotate("", head, tail, arrowprops={"arrowstyle": "->"})
    plt.show()


def pipeline(here: str) -> None:
    """All chapters in a row, the one whose number is `here` ("00" for none) filled."""
    boxes = {n: (0.65 + 1.32 * i, 0.5, 1.1, 0.75, f"{int(n)} {text}") for i, (n, text) in enumerate(CHAPTERS)}
    numbers = list(boxes)
    _draw((9.3, 1.0), boxes, list(zip(numbers, numbers[1:])), dark=(here,))


def model() -> None:
    """A picture through the tower and a question through the tokenizer to the language model and its adapter."""
    _draw((9.3, 2.1), {
        "picture": (0.7, 1.6, 1.1, 0.5, "picture"), "question": (0.7, 0.5, 1.1, 0.5, "question"),
        "tower": (2.5, 1.6, 1.3, 0.6, "vision tower\n(frozen)"), "tokenizer": (2.5, 0.5, 1.3, 0.5, "tokenizer"),
        "image": (4.4, 1.6, 1.3, 0.6, "image tokens\nvectors"), "text": (4.4, 0.5, 1.3, 0.6, "text tokens\nvectors"),
        "language": (6.4, 1.05, 1.4, 0.9, "language model\n(frozen, 4 bits)"),
        "adapter": (6.4, 1.85, 1.4, 0.36, "LoRA adapter (trained)"),
        "answer": (8.5, 1.05, 1.3, 0.6, "next token,\nagain and again"),
    }, [("picture", "tower"), ("tower", "image"), ("question", "tokenizer"), ("tokenizer", "text"),
        ("image", "language"), ("text", "language"), ("adapter", "language"), ("language", "answer")],
        dark=("adapter",))  # fmt: skip


def tapo_step() -> None:
    """One step of TAPO: three pictures, rollouts, rewards, one group of advantages, two losses, one update."""
    _draw((9.3, 3.0), {
        "positive": (0.8, 2.5, 1.3, 0.6, "positive\nsame class"), "anchor": (0.8, 1.5, 1.3, 0.6, "anchor"),
        "negative": (0.8, 0.5, 1.3, 0.6, "negative\nthe look-alike"),
        "rollouts2": (2.8, 2.5, 1.3, 0.6, "5 answers"), "rollouts": (2.8, 1.5, 1.3, 0.6, "5 answers"),
        "reward": (4.6, 2.0, 1.1, 0.7, "reward\nname, form"),
        "group": (6.3, 2.0, 1.3, 0.7, "advantages\nof one group\nof ten"),
        "kl": (5.0, 0.5, 1.9, 0.7, "the same answers,\nscored under\nthe look-alike"),
        "loss": (8.3, 1.5, 1.5, 0.9, "loss:\nadvantage x ratio\n- gamma KL, entropies"),
        "policy": (8.3, 0.4, 1.5, 0.5, "policy, one update"),
    }, [("positive", "rollouts2"), ("anchor", "rollouts"), ("rollouts2", "reward"),
        ("rollouts", "reward"), ("reward", "group"), ("group", "loss"), ("negative", "kl"),
        ("kl", "loss"), ("rollouts", "kl"), ("rollouts2", "kl"), ("loss", "policy")], dark=("group", "kl"))  # fmt: skip
