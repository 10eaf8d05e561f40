"""The review desk in a real JupyterLab, worked with a real keyboard: every key ends as a line of the file, once."""

import json

import pytest
from review_browser import CHROMEDRIVER, CHROMIUM, Page, chromium, jupyter_lab, wait_for  # skips without selenium
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH")
MAKE = """
from PIL import Image
from finer1_lite.cot.chains import Chain, chat_row, to_completion
from finer1_lite.cot.desk import ReviewDesk

labels = ["tarn", "wick", "<b>rell</b> & 'fenn'"] + [f"bird{i}" for i in range(40)]
chains = [Chain("red crown.", [label, "kelt"], "kelt: blue crown.", label) for label in labels]
rows = [
    chat_row(i, label, "Which bird?", to_completion(chain), f"{i}.png")
    for i, (label, chain) in enumerate(zip(labels, chains))
]
images = [Image.new("RGB", (112, 112), (5 * i, 99, 99)) for i in range(len(rows))]
desk = ReviewDesk(rows, images, "NAME.jsonl", reviewer="ada")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="module")
def lab(home):
    with jupyter_lab(home) as running:
        yield running


@pytest.fixture(scope="module")
def driver(home):
    with chromium(home) as running:
        yield running


@pytest.fixture
def page(lab, driver, home, request):
    """A notebook of this test's own, with a desk and a cell behind it, shown and clicked."""
    sources = [MAKE.replace("NAME", request.node.name), "desk", "1 + 1"]
    cells = [
        {"cell_type": "code", "id": str(i), "metadata": {}, "outputs": [], "execution_count": None, "source": source}
        for i, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (home / f"{request.node.name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    page = Page(driver, lab.address(f"{request.node.name}.ipynb"))
    page.run()
    page.click()
    return page


@pytest.fixture
def decided(home, request):
    """Waits for so many lines, and gives all decisions in order."""
    path = home / f"{request.node.name}.jsonl"

    def read() -> list[dict]:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def lines(count: int) -> list[str]:
        wait_for(lambda: len(read()) >= count, lambda: f"{count} lines in {path.name}")
        lines.events = read()
        return [event["decision"] for event in lines.events]

    return lines


def edit_open(page):
    wait_for(lambda: page.focus() == "textarea", lambda: "the editor")
    return page.find("textarea")


def edit_closed(page):
    wait_for(lambda: not page.find("textarea").is_displayed() and page.focus() == "div", lambda: "the closed editor")


def test_every_key(page, decided):
    page.type("a")
    assert decided(1) == ["accept"]
    page.type("r")
    assert decided(2) == ["accept", "reject"]
    page.expect("2 of 43 decided", "<b>rell</b> & 'fenn'")

    page.type("e")
    text = edit_open(page)
    assert text.get_property("value").startswith("<think>\nAnalysis: red crown.")
    page.control(Keys.HOME)
    page.type(Keys.ARROW_DOWN, *[Keys.ARROW_RIGHT] * len("Analysis: "))
    page.type("a gray eye, ")  # letters of commands are letters here
    page.control(Keys.ENTER)
    assert decided(3) == ["accept", "reject", "edit"]
    assert decided.events[-1]["text"].startswith("<think>\nAnalysis: a gray eye, red crown.\n")
    edit_closed(page)

    page.type("u")
    assert decided(4)[-1] == "undo"
    page.expect("Taken back.", "\nred crown.")
    page.type("e")
    edit_open(page)
    page.type("junk", Keys.ESCAPE)
    edit_closed(page)
    for key, place in [
        ("j", 4), (Keys.ARROW_RIGHT, 5), ("k", 4), (Keys.ARROW_LEFT, 3), (Keys.ARROW_UP, 2), (Keys.ARROW_DOWN, 3),
    ]:  # fmt: skip
        page.type(key)
        page.expect(f"{place} of 43 ")
    page.type("xddbm")  # JupyterLab would cut a cell, delete it, insert one
    page.type("a")
    assert decided(5) == ["accept", "reject", "edit", "undo", "accept"] and page.cells() == 3


def test_an_edit_with_a_flag_is_saved_the_second_time(page, decided):
    page.type("e")
    edit_open(page)
    page.control("a")
    page.type("no chain")
    page.control(Keys.ENTER)
    page.expect("Not done: Analysis: is missing.")
    page.control("a")
    parts = ("<think>", "Analysis: a tarn.", "Candidates: tarn.", "Comparison: no.", "Prediction: tarn.", "</think>")
    page.type(Keys.ENTER.join([*parts, "<answer> tarn </answer>"]))
    ActionChains(page.driver).double_click(page.find(".f1-save")).perform()  # counts once
    page.expect("Still flagged: label before candidates.")
    assert decided(0) == [] and page.focus() == "textarea"
    page.control(Keys.ENTER)
    assert decided(1) == ["edit"]
    edit_closed(page)
    page.type("k")
    page.expect("label before candidates", "edited")


def test_fast_typing_loses_nothing_and_decides_nothing_by_chance(page, decided):
    page.type("ar" * 10)
    assert decided(20) == ["accept", "reject"] * 10
    page.type("u", "u", "a", "e", "a", "r", "u", "a")  # what follows "e" is no command
    edit_open(page)
    assert decided(23)[20:] == ["undo", "undo", "accept"]
    page.type(Keys.ESCAPE)
    edit_closed(page)
    page.type("r")
    assert decided(24)[20:] == ["undo", "undo", "accept", "reject"]


def test_a_key_that_is_held_down_decides_once(page, decided):
    down = {"type": "keyDown", "key": "a", "code": "KeyA", "text": "a", "windowsVirtualKeyCode": 65}
    page.driver.execute_cdp_cmd("Input.dispatchKeyEvent", down)
    for _ in range(5):
        page.driver.execute_cdp_cmd("Input.dispatchKeyEvent", down | {"autoRepeat": True})
    page.driver.execute_cdp_cmd("Input.dispatchKeyEvent", down | {"type": "keyUp"})
    page.type("r")
    assert decided(2) == ["accept", "reject"]


def test_mouse_filters_and_focus(page, decided):
    page.find("button.f1-a").click()
    assert decided(1) == ["accept"]
    page.type("r")  # the click left the keys working
    assert decided(2) == ["accept", "reject"]
    label, state = (Select(page.find(f".widget-dropdown:nth-child({i}) select")) for i in (2, 3))
    state.select_by_visible_text("rejected")
    page.expect("2 of 43, 1 of 1 filtered")
    page.type("a")  # the focus is in the list: not a command
    page.click()
    page.type("u")
    assert decided(3) == ["accept", "reject", "undo"]
    state.select_by_visible_text("all")
    label.select_by_visible_text("<b>rell</b> & 'fenn'")
    page.expect("3 of 43, 1 of 1 filtered")
    assert not page.driver.find_elements(By.CSS_SELECTOR, ".f1-left h3 b, option b")
    page.driver.execute_script("jupyterapp.shell.currentWidget.content.activeCellIndex = 2")
    page.driver.find_element(By.CSS_SELECTOR, ".jp-Notebook .jp-Cell:last-child .cm-content").click()
    page.type("a")  # typed into a cell, not into the desk
    page.click()
    page.type("r")
    assert decided(4)[3:] == ["reject"]


def test_a_reload_and_a_restarted_kernel_lose_nothing(page, decided, lab):
    page.type("ar")
    assert decided(2) == ["accept", "reject"]
    page.run()
    page.expect("2 of 43 decided", "3 of 43 ")
    page.click()
    page.type("a")
    assert decided(3) == ["accept", "reject", "accept"]
    lab.restart_kernels()
    page.run()
    page.expect("3 of 43 decided", "4 of 43 ")
    page.click()
    page.type("u")
    assert decided(4) == ["accept", "reject", "accept", "undo"]
    page.expect("2 of 43 decided")
