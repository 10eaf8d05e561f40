"""What is asked and in which form the answer is wanted: questions, instructions, chat messages."""

THINK_INSTRUCTION = "Think inside <think> </think>, then give the name inside <answer> </answer>."
ANSWER_INSTRUCTION = "Give only the name inside <answer> </answer>."
QUESTIONS = (
    "What species is the bird in this image?",
    "Which bird is this?",
    "What is the name of this bird?",
    "Can you name the bird in this image?",
    "Which species does this bird belong to?",
    "Do you know what bird this is?",
    "Please name the species of this bird.",
    "Tell me the name of the bird in this image.",
    "What bird is in this image?",
    "Could you identify this bird?",
)


def bare_question(rng) -> str:
    """One of the ten phrasings, drawn with `rng` (a numpy Generator)."""
    return QUESTIONS[int(rng.integers(len(QUESTIONS)))]


def instructed(text: str, think: bool = True, options: list[str] | None = None) -> str:
    """A full prompt: the bare question, the options of a closed-world question, the format instruction."""
    listed = f" Options: {'; '.join(options)}." if options else ""
    return f"{text}{listed} {THINK_INSTRUCTION if think else ANSWER_INSTRUCTION}"


def question(rng, think: bool = True) -> str:
    """An open-world prompt with a phrasing drawn with `rng`."""
    return instructed(bare_question(rng), think)


def messages(text: str, answer: str | None = None) -> list[dict]:
    """One image and one question as chat messages; with `answer`, a training example."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    if answer is None:
        return [user]
    return [user, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
