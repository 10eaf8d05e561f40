"""Figures of the chapters. Okabe and Ito's colours are safe for the colour-blind, styles and hatches for grey."""

import io
from base64 import b64encode
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from PIL import Image

from .images import as_rgb

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
INCH = 80  # pixels of a page
STYLES, HATCHES = ("-", "--", ":", "-."), ("", "//", "..", "xx", "\\\\")
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def _panels(rows: int, columns: int, **how):
    figure, axes = plt.subplots(rows, columns, squeeze=False, **how)
    figure.set_layout_engine("tight", pad=0.4)
    for axis in axes.flat:
        axis.axis("off")
    return figure, list(axes.flat)


def finding(text: str) -> None:
    """A bold sentence above a table, made of the table's own numbers, so that it is true of any run."""
    display(Markdown(f"**{text}**"))


def folded(table: pd.DataFrame, summary: str) -> HTML:
    """A long table that opens with a click: `summary` is what the page shows of it."""
    return HTML(f"<details><summary>{escape(summary)}</summary>{table.to_html()}</details>")


def image_grid(images, titles=None, columns: int = 6, side: float = 1.6) -> None:
    """Images in rows of `columns`, `side` inches wide, each with a small title of one or more lines."""
    cards = "".join(_card(image, title, side) for image, title in zip(images, titles or [""] * len(images)))
    width = f"repeat({columns}, minmax(0, {side * INCH:.0f}px))"
    display(HTML(f'<div style="display:grid;gap:10px;grid-template-columns:{width}">{cards}</div>'))


def texts_beside(images, texts, titles) -> None:
    """One row for each text: its images on the left (lists, as `titles`), beside them the text, not a picture of it."""
    rows = []
    for pictures, text, names in zip(images, texts, titles):
        cards = "".join(_card(picture, name, 1.6) for picture, name in zip(pictures, names))
        said = f'<div style="white-space:pre-wrap;text-align:left;max-width:44em">{escape(text)}</div>'
        rows.append(f'<div style="display:flex;gap:16px;margin:8px 0"><div>{cards}</div>{said}</div>')
    display(HTML("".join(rows)))


def _card(image: Image.Image, title: str, side: float) -> str:
    small = as_rgb(image)
    small.thumbnail((300, 300))
    small.save(file := io.BytesIO(), "JPEG", quality=88)  # birds are noisy: PNG would take several times as much
    source = f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
    picture = f'<img src="{source}" style="width:{side * INCH:.0f}px">'
    return (f'<figure style="margin:0">{picture}<figcaption style="white-space:pre-line;font-size:85%;line-height:1.3">'
            f"{escape(title)}</figcaption></figure>")  # fmt: skip


def curves(histories: dict[str, list[dict]], keys: dict[str, str], window: int = 1):
    """One panel for each key of logged rows (key -> axis label), one line for each run: means over `window` rows."""
    rows = -(-len(keys) // 3)
    figure, axes = _panels(rows, 3, figsize=(10, 2.4 * rows))
    for axis, (key, label) in zip(axes, keys.items()):
        axis.axis("on")
        for i, (name, history) in enumerate(histories.items()):
            logged = pd.DataFrame(history)
            if key in logged:
                logged = logged.dropna(subset=[key])
                means = logged[key].astype(float).rolling(window, min_periods=1).mean()
                axis.plot(logged["step"], means, color=COLORS[i], linestyle=STYLES[i % 4], label=name)
        axis.set(xlabel="step", ylabel=label)
    axes[0].legend(frameon=False)
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
        if self.handle:
            self.handle.update(figure)
        else:
            self.handle = display(figure, display_id=True)


def bars(table: dict[str, dict[str, float]], errors=None, ylabel: str = "accuracy", axis=None):
    """Grouped bars: group -> method -> value (0-1); `errors` alike: half-widths or (low, high) distances."""
    groups, methods = list(table), list(next(iter(table.values())))
    axis = axis or plt.subplots(figsize=(1.2 + 3.2 * len(groups), 3.2), layout="tight")[1]
    for i, method in enumerate(methods):
        x = np.arange(len(groups)) + (i - (len(methods) - 1) / 2) * 0.8 / len(methods)
        values = [table[g][method] for g in groups]
        error = None if errors is None else np.array([errors[g][method] for g in groups]).T
        drawn = axis.bar(x, values, 0.74 / len(methods), yerr=error, capsize=3, color=COLORS[i], hatch=HATCHES[i % 5],
                         edgecolor="white", label=method)  # fmt: skip
        axis.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
    axis.set(ylabel=ylabel, ylim=(0, 1.08))
    axis.set_xticks(range(len(groups)), groups)
    axis.legend(frameon=False, ncols=len(methods), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return axis.figure


def token_strip(tokens: list[str], values, label: str, limits: tuple[float, float]):
    """Tokens in reading order, each on a cell whose brightness, within `limits`, is its value."""
    columns, (low, high) = 16, limits
    rows = -(-len(tokens) // columns)
    grid = np.full(rows * columns, np.nan)
    grid[: len(tokens)] = values
    figure, (axis,) = _panels(1, 1, figsize=(columns * 0.72, rows * 0.36 + 0.3))
    shown = axis.imshow(grid.reshape(rows, columns), cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for i, token in enumerate(tokens):
        axis.text(i % columns, i // columns, token, ha="center", va="center", fontsize=8, parse_math=False,
                  color="white" if grid[i] < low + 0.45 * (high - low) else "black")  # fmt: skip
    figure.colorbar(shown, label=label, pad=0.01, fraction=0.03)
    return figure
