# python -m pytest -m slow tests/browser/test_jupyterlab.py
"""The notebooks in JupyterLab, in a real browser, on the smoke profile: opened, run, looked at, clicked.

Screenshots stay in the folder that COURSE_SCREENSHOTS names, or in pytest's temporary folder.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from utils import publish, run

pytestmark = pytest.mark.slow
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
MINUTES = 6  # the longest notebook on the smoke profile, with room for a busy machine
ALL = [*run.STAGES]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on loopback over copies of the notebooks with the smoke profile filled in."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ALL:
        notebook = json.loads((publish.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
            if "parameters" in cell["metadata"].get("tags", []):
                values = {"PROFILE": "smoke", "RUN": "browser"}
                cell["source"] = publish.filled("".join(cell["source"]), values)
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "COURSE_HEADLESS"}
    environment |= {"COURSE_RUNS": str(folder / "runs"), "HF_HUB_OFFLINE": "1"}
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--notebook-dir={folder}",
    ]
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", "--LabApp.news_url=None", *options],
        env=environment, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=2)
            break
        except OSError:
            assert server.poll() is None, (folder / "lab.log").read_text()
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", folder
    server.terminate()
    server.wait(20)
    log.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    chromium = shutil.which("chromium")
    assert chromium, "the browser tests need Debian's package chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=chromium, args=FLAGS, headless=True,
            viewport={"width": 1300, "height": 1000},
        )  # fmt: skip
        yield context.new_page()
        context.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("COURSE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_from_file_browser(page, url, name):
    page.goto(f"{url}/lab?reset")
    page.locator(".jp-DirListing-item", has_text=f"{name}.ipynb").dblclick(timeout=60_000)
    page.locator(".jp-NotebookPanel:visible .jp-Cell").first.wait_for(timeout=60_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(timeout=60_000)


def run_all(page):
    """Run › Run All Cells; wait until the kernel is idle and no cell waits."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    deadline = time.time() + MINUTES * 60
    time.sleep(3)
    while time.time() < deadline:
        busy = page.locator(".jp-InputPrompt", has_text="[*]").count()
        idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").count()
        if idle and not busy:
            return
        time.sleep(1)
    raise AssertionError("the notebook did not come to an end")


def saved(folder, name, page):
    page.keyboard.press("Control+s")
    time.sleep(2)
    return json.loads((folder / f"{name}.ipynb").read_text(encoding="utf8"))


@pytest.mark.parametrize("name", ALL)
def test_runs_from_top_to_bottom_without_an_error(lab, page, shots, name):
    url, folder = lab
    open_from_file_browser(page, url, name)
    run_all(page)
    notebook = saved(folder, name, page)
    page.screenshot(path=shots / f"{name}.png")
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"], [
        o for o in outputs if o["output_type"] == "error"
    ]
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code" and c["source"]]
    assert None not in counts
    images = [o for o in outputs if "image/png" in o.get("data", {})]
    assert images, "no plot"
    if name == "04_evaluate":
        search(page, shots)
    if name == "06_deploy":
        start_and_stop(page, shots)


def search(page, shots):
    field = page.locator(".jp-OutputArea input[type=text]").last
    field.scroll_into_view_if_needed()
    field.fill("hydraulic pressure low after restart")
    field.press("Enter")
    box = page.locator(".jp-OutputArea .widget-vbox, .jp-OutputArea .jupyter-widgets").filter(has=field).first
    expect(box).to_contain_text(re.compile("base"), timeout=60_000)
    expect(box).to_contain_text(re.compile("tuned"))
    page.screenshot(path=shots / "04_search.png")


def start_and_stop(page, shots):
    start = page.get_by_role("button", name="Start", exact=True).last
    start.scroll_into_view_if_needed()
    start.click()
    expect(page.get_by_role("button", name="Stop", exact=True).last).to_be_enabled(timeout=90_000)
    page.screenshot(path=shots / "06_running.png")
    page.get_by_role("button", name="Stop", exact=True).last.click()
    expect(start).to_be_enabled(timeout=90_000)
