"""Pictures that one study needs: the story on one page, and differences with their intervals."""

import matplotlib.pyplot as plt

from finer1_lite.plots import COLORS, bars, show


def poster(images, titles, table: dict[str, dict[str, float]], errors, ylabel: str):
    """The story in one picture: a row of images over grouped bars (see `bars`)."""
    figure = plt.figure(figsize=(9, 5), layout="tight")
    rows = figure.add_gridspec(2, len(images), height_ratios=[1, 1.7])
    for i, (image, title) in enumerate(zip(images, titles)):
        axis = figure.add_subplot(rows[0, i])
        show(axis, image, title)
        axis.axis("off")
    return bars(table, errors, ylabel, axis=figure.add_subplot(rows[1, :]))


def forest(panels: dict[str, list[tuple[str, float, float, float]]], xlabel: str, width: float = 4.2):
    """One panel for each key: rows of (label, mean, low, high) as dots with intervals beside a line at zero.

    Where the interval leaves zero out the dot is full, else hollow.
    """
    rows = max(len(panel) for panel in panels.values())
    size = (width * len(panels), 0.8 + 0.27 * rows)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="tight")
    for axis, (title, panel) in zip(axes.flat, panels.items()):
        for y, (_, mean, low, high) in enumerate(panel):
            face = COLORS[0] if low > 0 or high < 0 else "white"
            axis.plot([low, high], [y, y], color=COLORS[0], linewidth=1.5)
            axis.plot(mean, y, "o", color=COLORS[0], markerfacecolor=face, markersize=6)
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel=xlabel, ylim=(len(panel) - 0.5, -0.5))
        axis.set_yticks(range(len(panel)), [label for label, *_ in panel])
        axis.grid(axis="x", color="0.85")
    return figure
