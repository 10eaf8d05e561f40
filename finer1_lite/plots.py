"""Pictures that the chapters share: images, also with texts, tokens, training curves (also live), bars.

The colours are Okabe and Ito's, which the colour-blind can tell apart; line styles and hatches tell them
apart in grey.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import display
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image

from .images import as_rgb

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
STYLES, HATCHES = ("-", "--", ":", "-."), ("", "//", "..", "xx", "\\\\")
plt.rcParams.update({"figure.dpi": 80, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
if get_ipython() is not None:  # pictures of birds are noisy: as PNG a chapter would weigh several megabytes
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 88})


def image_grid(images, titles=None, columns: int = 6, side: float = 1.6):
    """Images in rows of `columns`, each with a small title of one or more lines."""
    rows = -(-len(images) // columns)
    height = side + 0.2 + 0.15 * max(title.count("\n") + 1 for title in titles or [""])
    figure, axes = plt.subplots(rows, columns, figsize=(columns * side, rows * height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes.flat, images)):
        axis.imshow(as_rgb(image) if isinstance(image, Image.Image) else image)
        axis.set_title(titles[i] if titles else "", fontsize=8)
    figure.tight_layout(pad=0.3)
    return figure


def smooth(values, window: int) -> np.ndarray:
    """Running mean over the last `window` values (fewer at the start)."""
    values = np.asarray(values, float)
    return np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])


def curves(histories: dict[str, list[dict]], keys: dict[str, str], window: int = 1, columns: int = 3):
    """One panel for each key of the logged rows (key -> axis label), one line for each run."""
    rows = -(-len(keys) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(keys) :]:
        axis.axis("off")
    for axis, (key, label) in zip(axes.flat, keys.items()):
        for i, (name, history) in enumerate(histories.items()):
            points = [(row["step"], row[key]) for row in history if row.get(key) is not None]
            if points:
                steps, values = zip(*points)
                axis.plot(steps, smooth(values, window), color=COLORS[i], linestyle=STYLES[i % 4], label=name)
        axis.set(xlabel="step", ylabel=label)
    axes.flat[0].legend(frameon=False)
    figure.tight_layout()
    return figure


class LiveCurves:
    """An `on_step` callback that redraws `curves` in the notebook every `every` steps."""

    def __init__(self, name: str, keys: dict[str, str], every: int = 10, window: int = 5):
        self.name, self.keys, self.every, self.window = name, keys, every, window
        self.history, self.handle = [], None

    def __call__(self, row: dict) -> None:
        self.history.append(row)
        if len(self.history) % self.every == 0:
            self.draw()

    def draw(self) -> None:
        """Draw or redraw now."""
        figure = curves({self.name: self.history}, self.keys, self.window)
        plt.close(figure)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)


def bars(table: dict[str, dict[str, float]], errors=None, ylabel: str = "accuracy", axis=None):
    """Grouped bars: group -> method -> value (0-1); `errors` has the same shape.

    errors: half-widths or (low, high) distances. axis: where to draw, instead of a new figure.
    """
    groups, methods = list(table), list(next(iter(table.values())))
    width = 0.8 / len(methods)
    figure, axis = (axis.figure, axis) if axis else plt.subplots(figsize=(1.2 + 3.2 * len(groups), 3.2))
    for i, method in enumerate(methods):
        x = np.arange(len(groups)) + (i - (len(methods) - 1) / 2) * width
        values = [table[g][method] for g in groups]
        error = None if errors is None else np.array([errors[g][method] for g in groups]).T
        axis.bar(x, values, width * 0.92, yerr=error, capsize=3, color=COLORS[i], hatch=HATCHES[i % 5],
                 edgecolor="white", label=method)  # fmt: skip
        tops = values if error is None else values + (error if error.ndim == 1 else error[1])
        for place, value, top in zip(x, values, tops):
            axis.text(place, top + 0.015, f"{value:.2f}", ha="center", fontsize=8)
    axis.set(ylabel=ylabel, ylim=(0, 1.08))
    axis.set_xticks(range(len(groups)), groups)
    axis.legend(frameon=False, ncols=len(methods), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.tight_layout()
    return figure


def poster(images, titles, table: dict[str, dict[str, float]], errors, ylabel: str):
    """The story in one picture: a row of images over grouped bars (see `bars`)."""
    figure = plt.figure(figsize=(9, 5))
    rows = figure.add_gridspec(2, len(images), height_ratios=[1, 1.7])
    for i, (image, title) in enumerate(zip(images, titles)):
        axis = figure.add_subplot(rows[0, i])
        axis.imshow(image)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    bars(table, errors, ylabel, axis=figure.add_subplot(rows[1, :]))
    figure.tight_layout()
    return figure


def texts_beside(images, texts, titles=None, side: float = 1.9, width: int = 92, lines: int = 26):
    """One row for each text: its images on the left (a list for each row), the text, wrapped, on the right.

    titles: one for each image, in the same lists. Texts are cut after `lines` lines.
    """
    wrapped = [[w for line in t.splitlines() for w in textwrap.wrap(line, width) or [""]] for t in texts]
    heights = [max(side + 0.3, 0.16 * (1 + min(len(w), lines + 1))) for w in wrapped]
    across = max(len(row) for row in images)
    figure, axes = plt.subplots(
        len(texts), across + 1, figsize=(side * across + 0.068 * width, sum(heights)), squeeze=False,
        gridspec_kw={"width_ratios": [side] * across + [0.068 * width], "height_ratios": heights},
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for i, row in enumerate(images):
        for axis, image, title in zip(axes[i], row, titles[i] if titles else [""] * across):
            axis.imshow(as_rgb(image) if isinstance(image, Image.Image) else image)
            axis.set_title(title, fontsize=8)
        text = "\n".join(wrapped[i][:lines] + ["..."] * (len(wrapped[i]) > lines))
        axes[i, -1].text(0, 1, text, va="top", family="monospace", fontsize=7.5, parse_math=False)
    figure.tight_layout(pad=0.4)
    return figure


def token_strip(tokens: list[str], values, label: str, columns: int = 16, limits=None):
    """Tokens in reading order, each on a cell whose brightness is its value; `label` names the values."""
    rows = -(-len(tokens) // columns)
    grid = np.full(rows * columns, np.nan)
    grid[: len(tokens)] = values
    low, high = limits or (np.nanmin(grid), np.nanmax(grid))
    figure, axis = plt.subplots(figsize=(columns * 0.72, rows * 0.36 + 0.3))
    shown = axis.imshow(grid.reshape(rows, columns), cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for i, token in enumerate(tokens):
        color = "white" if grid[i] < low + 0.45 * (high - low) else "black"
        place = {"ha": "center", "va": "center", "color": color, "fontsize": 8, "parse_math": False}
        axis.text(i % columns, i // columns, token, **place)
    axis.axis("off")
    figure.colorbar(shown, label=label, pad=0.01, fraction=0.03)
    figure.tight_layout(pad=0.3)
    return figure


def forest(panels: dict[str, list[tuple[str, float, float, float]]], xlabel: str, width: float = 4.2):
    """One panel for each key: rows of (label, mean, low, high) as dots with intervals beside a line at zero.

    Where the interval leaves zero out the dot is full, else hollow.
    """
    rows = max(len(panel) for panel in panels.values())
    figure, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), 0.8 + 0.27 * rows), sharey=True, squeeze=False)
    for axis, (title, panel) in zip(axes.flat, panels.items()):
        for y, (_, mean, low, high) in enumerate(panel):
            face = COLORS[0] if low > 0 or high < 0 else "white"
            axis.plot([low, high], [y, y], color=COLORS[0], linewidth=1.5)
            axis.plot(mean, y, "o", color=COLORS[0], markerfacecolor=face, markersize=6)
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel=xlabel, ylim=(len(panel) - 0.5, -0.5))
        axis.set_yticks(range(len(panel)), [label for label, *_ in panel])
        axis.grid(axis="x", color="0.85")
    figure.tight_layout()
    return figure
