"""A JupyterLab server and a headless Chromium on it, for `test_review_browser`."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium drives the browser; pip install selenium")
pytest.importorskip("jupyterlab", reason="the desk is shown in JupyterLab; pip install jupyterlab")
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = 120  # seconds until a condition that does not come is a failure: two busy cores are slow


def wait_for(condition: Callable, what: Callable[[], str]):
    """The first true value of `condition()`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE} s for {what()}")


class Lab:
    """A running JupyterLab; everything it writes goes below `home`."""

    def __init__(self, server: dict):
        self.url, self.token = server["url"].rstrip("/"), server["token"]

    def _ask(self, path: str, method: str = "GET"):
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def address(self, notebook: str) -> str:
        """Where the notebook is shown, without those that were open before."""
        return f"{self.url}/lab/tree/{notebook}?reset&token={self.token}"

    def restart_kernels(self) -> None:
        for kernel in self._ask("/api/kernels"):
            self._ask(f"/api/kernels/{kernel['id']}/restart", "POST")


@contextmanager
def jupyter_lab(home: Path) -> Iterator[Lab]:
    """Starts a server on a free port of 127.0.0.1 with `home` as its folder, and stops it."""
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR",
               "JUPYTERLAB_WORKSPACES_DIR")  # fmt: skip
    own = {name: str(home / ".jupyter" / name.lower()) for name in folders}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0",
               f"--ServerApp.root_dir={home}", "--LabApp.expose_app_in_browser=True"]  # fmt: skip
    quiet = Path(own["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
    told = Path(own["JUPYTER_RUNTIME_DIR"]) / f"jpserver-{process.pid}.json"
    try:
        def ready():
            assert process.poll() is None, (home / "server.log").read_text()
            return told.exists() and told.read_text().endswith("}") and json.loads(told.read_text())

        yield Lab(wait_for(ready, lambda: "the server"))
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextmanager
def chromium(home: Path) -> Iterator[WebDriver]:
    """A headless Chromium with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={home / 'chromium'}")
    driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


KERNEL = "const context = window.jupyterapp?.shell.currentWidget?.sessionContext, kernel = context?.session?.kernel;"
READY = KERNEL + "return !!context?.isReady && kernel?.status === 'idle' && kernel.connectionStatus === 'connected'"


class Page:
    """A notebook in the browser, with a desk as the output of one of its cells."""

    def __init__(self, driver: WebDriver, address: str):
        self.driver, self.address = driver, address

    def run(self) -> None:
        """Opens the notebook (again), runs all of it, and waits for the desk."""
        self.driver.get(self.address)
        wait_for(lambda: self.driver.execute_script(READY), lambda: "the kernel")
        self.driver.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
        wait_for(lambda: self.driver.find_elements(By.CSS_SELECTOR, ".f1-desk .f1-note"), lambda: "the desk")
        self.expect("decided")

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, f".f1-desk {selector}")

    def text(self) -> str:
        """What a reader sees of the desk."""
        return self.driver.execute_script("return document.querySelector('.f1-desk')?.innerText ?? ''")

    def expect(self, *texts: str) -> None:
        """Waits until the desk shows all of them."""
        wait_for(lambda: all(text in self.text() for text in texts), lambda: f"{texts} on the desk:\n{self.text()}")

    def click(self) -> None:
        """Clicks a place of the desk where nothing else takes a click."""
        self.find(".f1-left h3").click()

    def type(self, *keys: str) -> None:
        """Types at once, without a pause, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def control(self, key: str) -> None:
        """Types a key together with Control."""
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def focus(self) -> str:
        """The tag that has the focus."""
        return self.driver.switch_to.active_element.tag_name

    def cells(self) -> int:
        return self.driver.execute_script("return jupyterapp.shell.currentWidget.content.widgets.length")
