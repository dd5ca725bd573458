"""The chapters in JupyterLab as a person runs them: Chromium without a window opens one, runs all its cells, moves a slider of its widget and looks whether the figure changes.

tests/test_jupyterlab.py holds the book to it; `python benchmarks/bench.py --only jupyterlab` writes down how long it takes.
"""
from __future__ import annotations

import json, os, re, secrets, shutil, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path

from groot_cookbook import core
from groot_cookbook.core import CookbookError

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
QUIET = {"fetchNews": "false", "checkForUpdates": False}                  # JupyterLab asks on its first day whether it may phone home

# All that is read of JupyterLab's inside is how far it is; what is done to it is done by mouse and keyboard.
PROGRESS = """() => {
  const cells = Array.from(jupyterapp.shell.currentWidget.content.model.cells).filter(c => c.type == 'code' && c.sharedModel.source.trim());
  const failed = cells.filter(c => c.outputs.toJSON().some(o => o.output_type == 'error'));
  return {error: failed.map(c => c.outputs.toJSON().find(o => o.output_type == 'error')).map(o => o.ename + ': ' + o.evalue)[0] || '',
          done: cells.filter(c => c.executionCount && c.executionState == 'idle').length, cells: cells.length};
}"""
ENDED = f"() => {{ const p = ({PROGRESS})(); return p.error || p.done == p.cells; }}"
CHANGED = """src => {
  const seen = document.querySelector('.jp-OutputArea-output .widget-html img');
  return seen.src != src && seen.complete && seen.naturalWidth > 0;
}"""


def browser() -> str | None: return next(filter(None, map(shutil.which, BROWSERS)), None)


def absent(run: Path) -> str:
    "What is missing before chapters can be run in JupyterLab; empty if nothing is."
    if not browser(): return f"no {' or '.join(BROWSERS)} on this machine: apt-get install chromium"
    missing = [stage for stage in core.STAGES if not (run / stage / "manifest.json").is_file()]
    return f"{run.name} lacks {', '.join(missing)}: make smoke" if missing else ""


@contextmanager
def server(run: Path):
    "JupyterLab on a copy of the book and of a finished run, so that nothing here is changed; yields its address with %s for a notebook."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        book, settings = Path(home) / "book", Path(home) / "settings" / "@jupyterlab" / "apputils-extension"
        shutil.copytree(ROOT / "groot_cookbook", book / "groot_cookbook", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "nbs", book / "nbs", ignore=shutil.ignore_patterns("train", ".ipynb_checkpoints"))
        for stage in core.STAGES: shutil.copytree(run / stage, book / "runs" / "smoke" / stage)
        settings.mkdir(parents=True)
        core.write_json(settings / "notification.jupyterlab-settings", QUIET)
        own = {f"JUPYTER_{what}_DIR": f"{home}/{what.lower()}" for what in ("CONFIG", "DATA", "RUNTIME")}
        own |= {"JUPYTERLAB_SETTINGS_DIR": f"{home}/settings", "JUPYTERLAB_WORKSPACES_DIR": f"{home}/workspaces", "IPYTHONDIR": f"{home}/ipython"}
        env = os.environ | own | {"PYTHONPATH": str(book), "PYTHONHASHSEED": "0", "GROOT_COOKBOOK_DATA": str(core.data_dir().resolve())}
        token, log = secrets.token_hex(), Path(home) / "log"
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={book / 'nbs'}",
                   f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
        with open(log, "w") as said: process = subprocess.Popen(command, cwd=book, env=env, stdout=said, stderr=said)
        try: yield f"http://127.0.0.1:{port(process, Path(own['JUPYTER_RUNTIME_DIR']), log)}/lab/tree/%s.ipynb?reset&token={token}"
        finally:
            process.terminate()
            try: process.wait(20)
            except subprocess.TimeoutExpired: process.kill()


def port(process: subprocess.Popen, runtime: Path, log: Path, patience: float = 180.) -> int:
    "The port of a server that is starting."
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        for found in runtime.glob("jpserver-*.json"):
            try: return json.loads(found.read_text())["port"]
            except ValueError: pass                      # half written
        time.sleep(.2)
    raise CookbookError(f"JupyterLab did not start ({''.join(log.read_text().strip().splitlines()[-1:])})", "", "Try by hand: make lab")


@contextmanager
def pages():
    "A browser with a fresh profile; yields a function that opens a page."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        with p.chromium.launch(executable_path=browser(), args=FLAGS) as chromium:
            context = chromium.new_context(viewport={"width": 1280, "height": 900})
            context.set_default_timeout(120_000)
            yield context.new_page


def menu(page, name: str, item: str) -> None:
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{name}$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$")).click()


def play(page, address: str, stage: str, limit: float = 300., moves: int = 5, picture: Path | None = None) -> dict: # limit: s; picture: where to keep what was seen
    "Run a chapter and move the first slider of its widget to and fro: how long all cells took, and how soon the figure was another each time."
    from playwright.sync_api import TimeoutError
    page.goto(address % stage)
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'")
    began = time.perf_counter()
    menu(page, "Run", "Run All Cells")
    page.wait_for_function(ENDED, timeout=limit * 1e3, polling=200)
    seconds, reactions = time.perf_counter() - began, []
    if error := page.evaluate(PROGRESS)["error"]: raise CookbookError(f"a cell failed in JupyterLab ({error})", stage, "Run it by hand: make lab")
    slider, figure = page.locator(".widget-interact .noUi-handle").first, page.locator(".jp-OutputArea-output .widget-html img").first
    figure.scroll_into_view_if_needed()
    slider.focus()
    keys = ["ArrowRight", "ArrowLeft"]
    if slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax"): keys.reverse()
    for move in range(moves):
        before, began = figure.get_attribute("src"), time.perf_counter()
        page.keyboard.press(keys[move % 2])
        try: page.wait_for_function(CHANGED, arg=before, timeout=30e3)
        except TimeoutError: break
        reactions.append(round(1e3 * (time.perf_counter() - began)))
    if picture: page.screenshot(path=picture)
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    return {"seconds": round(seconds, 1), "figure_changed": len(reactions) == moves, "reactions_ms": reactions}
