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


def question(rng, think: bool = True) -> str:
    """One of the ten phrasings, drawn with `rng` (a numpy Generator), with the format instruction."""
    text = QUESTIONS[int(rng.integers(len(QUESTIONS)))]
    return f"{text} {THINK_INSTRUCTION if think else ANSWER_INSTRUCTION}"


def closed_question(text: str, options: list[str]) -> str:
    """A closed-world prompt: the bare question, the options, the format instruction."""
    return f"{text} Options: {'; '.join(options)}. {THINK_INSTRUCTION}"


def messages(text: str, answer: str | None = None) -> list[dict]:
    """One image and one question as chat messages; with `answer`, a training example."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    if answer is None:
        return [user]
    return [user, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
