# python -m pytest -m heavy tests/browser/test_jupyterlab.py
"""The notebooks in JupyterLab, in a real browser, on the smoke profile: opened, run, looked at, clicked.

Screenshots stay in the folder that COURSE_SCREENSHOTS names, or in pytest's temporary folder. Without a
browser (Debian's package `chromium`) the tests are skipped, with a warning.
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
import warnings
from pathlib import Path

import openai
import pytest
from notebooks.test_capable_writer import write_corpus
from playwright.sync_api import expect, sync_playwright
from server.capable_llm import capable
from server.scripted_llm import ScriptedLLM, running

from utils import new_domain, publish, run

pytestmark = pytest.mark.heavy
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MINUTES = 8  # the longest notebook on the smoke profile, with room for a busy machine
SEEN = """() => {
  const shown = [...document.querySelectorAll(".jp-OutputArea-output")];
  return {
    bars: shown.flatMap(o => o.innerText.match(/[^\\n|]*\\d+%\\|[^\\n[]*/g) || []),
    figures: [...document.querySelectorAll(".jp-OutputArea-output img")].map(i => i.src.slice(-2000)),
  };
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on loopback over copies of the notebooks with the smoke profile filled in."""
    folder = tmp_path_factory.mktemp("lab")
    for name in run.STAGES:
        (folder / f"{name}.ipynb").write_text(copy_of(name, PROFILE="smoke", RUN="browser"))
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "COURSE_HEADLESS"}
    environment |= {"COURSE_RUNS": str(folder / "runs"), "HF_HUB_OFFLINE": "1"}
    environment |= {f"JUPYTERLAB_{name}_DIR": str(folder / ".lab") for name in ("SETTINGS", "WORKSPACES")}
    news = folder / ".lab" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    run.write_text(news, json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    tracker = folder / ".lab" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    run.write_text(tracker, json.dumps({"windowingMode": "none"}))  # cells out of sight are in the page, too
    options = ["--ip=127.0.0.1", f"--port={port}", "--no-browser", "--allow-root"]
    options += ["--IdentityProvider.token=", f"--notebook-dir={folder}"]
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/api/status", server, folder / "lab.log")
            yield f"http://127.0.0.1:{port}", folder
        finally:
            server.terminate()
            server.wait(30)


def copy_of(name: str, **values) -> str:
    """A notebook of the course without outputs, with other parameters."""
    notebook = json.loads((publish.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = new_domain.filled("".join(cell["source"]), values)
    return json.dumps(notebook)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.time() + 90
    while time.time() < deadline:
        try:
            return urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        why = f"NOT TESTED: no browser ({', '.join(BROWSERS)}); apt-get install chromium"
        warnings.warn(why, stacklevel=1)
        pytest.skip(why)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=browser, args=FLAGS, headless=True,
            viewport={"width": 1300, "height": 1400},
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
    wait_for_kernel(page)


def wait_for_kernel(page):
    page.locator(".jp-NotebookPanel:visible .jp-Cell").first.wait_for(timeout=60_000)
    page.locator("#jp-main-statusbar", has_text=re.compile(r"\| Idle")).wait_for(timeout=60_000)


def run_all(page) -> tuple[set[str], set[str]]:
    """Run › Run All Cells to the end; returns the states of progress bars and the figures seen under way."""
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    bars, figures, deadline = set(), set(), time.time() + MINUTES * 60
    page.wait_for_timeout(2000)  # by now every cell is queued
    while time.time() < deadline:
        seen = page.evaluate(SEEN)
        bars |= set(seen["bars"])
        figures |= set(seen["figures"])
        busy = page.locator(".jp-InputPrompt", has_text="[*]").count()
        idle = page.locator("#jp-main-statusbar", has_text=re.compile(r"\| Idle")).count()
        if idle and not busy:
            return bars, figures
        time.sleep(0.3)
    raise AssertionError("the notebook did not come to an end")


def saved(folder, name, page):
    before = (folder / f"{name}.ipynb").stat().st_mtime_ns
    page.keyboard.press("Control+s")
    deadline = time.time() + 30
    while (folder / f"{name}.ipynb").stat().st_mtime_ns == before and time.time() < deadline:
        time.sleep(0.3)
    return json.loads((folder / f"{name}.ipynb").read_text(encoding="utf8"))


def shoot(page, shots, name):
    """The notebook from top to bottom, a screenshot a screen."""
    frame = page.locator(".jp-NotebookPanel:visible .jp-WindowedPanel-outer")
    height, screen = frame.evaluate("e => [e.scrollHeight, e.clientHeight]")
    for number, top in enumerate(range(0, height, screen - 60)):
        frame.evaluate("(e, top) => e.scrollTo(0, top)", top)
        page.wait_for_timeout(300)
        page.screenshot(path=shots / f"{name}.{number:02d}.png")


def end_kernels(page):
    """The kernels of notebooks that are done need not keep their memory."""
    page.evaluate("""async () => {
        const token = document.cookie.match(/_xsrf=([^;]+)/)?.[1] || "";
        for (const one of await (await fetch("/api/sessions")).json())
            await fetch("/api/sessions/" + one.id, {method: "DELETE", headers: {"X-XSRFToken": token}});
    }""")


@pytest.mark.parametrize("name", run.STAGES)
def test_runs_from_top_to_bottom_without_an_error(lab, page, shots, name):
    url, folder = lab
    for earlier in run.STAGES[: run.STAGES.index(name)]:
        if not (folder / "runs" / "browser" / earlier / "manifest.json").exists():
            pytest.skip(f"{earlier} did not come to its end; its own test says why")
    open_from_file_browser(page, url, name)
    bars, figures = run_all(page)
    notebook = saved(folder, name, page)
    shoot(page, shots, name)
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    failed = [o["ename"] + ": " + o["evalue"] for o in outputs if o["output_type"] == "error"]
    assert not failed
    code = [c for c in notebook["cells"] if c["cell_type"] == "code" and c["source"]]
    assert None not in [c["execution_count"] for c in code]
    assert not [c["source"] for c in notebook["cells"] for o in c.get("outputs", []) if "Warning" in str(o)]
    every_plot_is_visible(page, outputs)
    if name == "01_generate_synthetic_data":
        moved = [bar for bar in bars if bar.strip().startswith("writing")]
        assert len(moved) >= 3, f"no moving progress bar: {bars}"
    if name == "03_fine_tune":
        assert len(figures) > page.locator(".jp-OutputArea-output img").count(), "the figure never redrew"
    if name == "04_evaluate":
        search(page, shots)
    if name == "06_deploy":
        start_embed_stop(page, shots)
    end_kernels(page)


def every_plot_is_visible(page, outputs):
    expected = sum("image/png" in o.get("data", {}) for o in outputs)
    images = page.locator(".jp-NotebookPanel:visible .jp-OutputArea-output img").all()
    assert len(images) == expected > 0
    for image in images:
        image.scroll_into_view_if_needed()
        expect(image).to_be_visible()
        assert image.evaluate("i => i.naturalWidth") > 200 and image.bounding_box()["width"] > 200


def search(page, shots):
    """A query typed into the box: three results of each model, side by side, other ones than before."""
    box = page.locator(".jp-OutputArea .widget-vbox", has=page.locator("input[type=text]")).first
    field = box.locator("input[type=text]")
    field.scroll_into_view_if_needed()
    before = box.inner_text()
    field.fill("hydraulic pressure low after restart")
    field.press("Enter")
    expect(box).not_to_have_text(before, timeout=60_000)
    page.wait_for_timeout(1000)
    columns = box.locator("td").all()
    assert [column.locator("b").first.inner_text() for column in columns] == ["base", "tuned"]
    assert [column.locator("li").count() for column in columns] == [3, 3]
    left, right = (column.bounding_box() for column in columns)
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"] + 1
    assert box.locator("mark").count()
    page.screenshot(path=shots / "04_search.png")


def start_embed_stop(page, shots):
    """The buttons start and stop the server after the notebook's own code has stopped it."""
    start = page.get_by_role("button", name="Start server", exact=True).last
    box = page.locator(".jp-OutputArea .widget-vbox").filter(has=start).last
    start.scroll_into_view_if_needed()
    start.click()
    expect(box).to_contain_text("running", timeout=90_000)
    expect(start).to_be_enabled(timeout=90_000)
    base_url = box.locator("code").inner_text()
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    model = next(iter(client.models.list())).id
    vector = client.embeddings.create(model=model, input="hydraulic pressure low").data[0].embedding
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-3)
    page.screenshot(path=shots / "06_running.png")
    box.get_by_role("button", name="Stop", exact=True).click()
    expect(box).to_contain_text("stopped", timeout=90_000)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


@pytest.fixture
def judged(lab, tmp_path):
    """Notebook 1 of a run whose questions a capable LLM writes and judges, played by the scripted server."""
    write_corpus(tmp_path / "docs")
    with running(ScriptedLLM(reply_to=capable)) as host:
        where = {"CORPUS": str(tmp_path / "docs"), "LLM": "scripted", "LLM_BASE_URL": host}
        copy = copy_of(run.STAGES[0], PROFILE="smoke", RUN="labels", **where)
        (lab[1] / "judged.ipynb").write_text(copy)
        yield lab[1] / "runs" / "labels" / run.STAGES[0] / "labels.jsonl"


def test_labels_by_mouse_and_by_keys_outlive_a_reload(lab, judged, page, shots):
    open_from_file_browser(page, lab[0], "judged")
    run_all(page)
    label_five(page, shots)
    rows = [json.loads(line) for line in judged.read_text().splitlines()]
    assert [row["label"] for row in rows] == ["accept", "reject", "accept", "reject", "edit"]
    assert rows[4]["edited"] == "What else?"
    page.get_by_title(re.compile("^Save")).first.click()
    page.wait_for_timeout(2000)
    page.reload()
    wait_for_kernel(page)
    expect(page.locator(".course-labeller").last).to_contain_text("5 labelled", timeout=30_000)
    run_all(page)  # and a new widget finds them on disk
    expect(page.locator(".course-labeller").last).to_contain_text("5 labelled", timeout=30_000)
    page.locator(".course-labeller").last.scroll_into_view_if_needed()
    page.screenshot(path=shots / "labels_after_reload.png")
    end_kernels(page)


def label_five(page, shots):
    """Two by mouse, two by keys, and one edited."""
    box = page.locator(".course-labeller").last
    box.scroll_into_view_if_needed()
    expect(box).to_contain_text("0 labelled")
    box.locator(".labeller-accept").click()
    expect(box).to_contain_text("1 labelled")
    box.locator(".labeller-reject").click()
    for done, key in enumerate("ar", start=2):
        expect(box).to_contain_text(f"{done} labelled")
        page.keyboard.press(key)
    expect(box).to_contain_text("4 labelled")
    page.keyboard.press("e")
    field = box.locator("textarea")
    expect(field).to_be_focused(timeout=10_000)
    field.fill("What else?")
    page.keyboard.press("Escape")
    expect(box).to_contain_text("5 labelled")
    page.screenshot(path=shots / "labels.png")
