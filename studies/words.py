"""Which rows of `why.csv` and `transfer.csv` the page of results shows, in words."""

PROBES = {  # (measure, part) of why.csv, in words
    ("probe", "last layer"): "sees: a linear probe names the species",
    ("describes", "all eight"): "sees: describes all eight attributes rightly",
    ("recognises", "looks to name, unseen"): "knows: the guide's true sentence is the likeliest of four, unseen species",
    ("recalls", "looks to name, unseen"): "knows: writes the name for given looks, unseen species",
    ("separable", "look-alike"): "uses: a right name is told from a look-alike's (chance 50)",
    ("part is right", "analysis, unseen"): "uses: the chain's analysis is right, unseen species",
    ("says the look-alike", "redrawn"): "looks: names the look-alike when its marks are drawn in",
    ("says the look-alike", "picture"): "looks: names the look-alike when nothing is changed",
    ("says the label", "picture"): "looks: names the bird when nothing is changed",
    ("says the label", "marks hidden"): "looks: names the bird when the marks are hidden",
    ("says the label", "elsewhere hidden"): "looks: names the bird when as much is hidden elsewhere",
}
TASKS = {  # (task, measure, split) of transfer.csv, in words
    ("facts", "two steps", "seen"): "facts: the own name looked up in a second, text-only question; seen",
    ("facts", "two steps", "unseen"): "facts: the own name looked up in a second, text-only question; unseen",
    ("facts", "likeliest option", "unseen"): "facts: five options scored after the model's own chain; unseen",
    ("looks", "describe", "unseen"): "looks: attributes right in a description; unseen",
    ("looks", "part, in form", "unseen"): "looks: asked about one part, it answers that part only; unseen",
    ("recall", "food", "unseen"): "text alone: what it eats; unseen",
    ("common", "answer", "common"): "names of common species, never trained on; as an answer",
    ("common", "think", "common"): "names of common species, never trained on; thinking",
    ("fish", "part", "fish"): "fish: one part, in words for birds",
    ("fish", "name, guide, likeliest option", "fish"): "fish: the name among four, with their guide",
    ("shift", "clean", "unseen"): "naming, clean pictures; unseen",
    ("shift", "noise 100", "unseen"): "naming, heavy noise; unseen",
    ("shift", "blur 2", "unseen"): "naming, blurred; unseen",
    ("options", "4", "unseen"): "naming among 4 look-alikes; unseen",
    ("options", "32", "unseen"): "naming among 32; unseen",
}
