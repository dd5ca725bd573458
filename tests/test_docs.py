"The site: it builds without a warning, nothing in it leads nowhere, and it fetches nothing from anywhere."
import re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("myst_nb", reason="the docs extra is not installed")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import assemble
from groot_cookbook.finetuning import Cache
from groot_cookbook.flare import cells


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.fetched, self.ids, self.blind = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids.add(a.get("id"))
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag == "link" and a.get("rel") in ("stylesheet", "preload", "icon"): self.fetched.append(a["href"])
        if tag in ("img", "script") and a.get("src"): self.fetched.append(a["src"])
        if tag == "img" and not a.get("alt"): self.blind.append(a.get("src"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    pages, out = tmp_path_factory.mktemp("pages"), tmp_path_factory.mktemp("site")
    assemble.main(pages)
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs"), str(pages), str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = {}
    for path in (p for p in out.rglob("*.html") if "_static" not in p.parts):
        found[path.resolve()] = page = Page()
        page.feed(path.read_text(encoding="utf-8"))
    return found


def test_every_notebook_and_module_has_its_page(site):
    names = {p.stem for p in site}
    assert {p.stem for p in (ROOT / "nbs").rglob("[0-9]*.ipynb")} <= names
    assert {p.stem for p in (ROOT / "groot_cookbook").glob("*.py") if not p.stem.startswith("_")} <= names
    assert {"index", "gallery", "search", "CONTRIBUTING"} <= names


def test_no_link_leads_nowhere(site):
    lost = []
    for path, page in site.items():
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists(): lost.append((path.name, link))
            elif parts.fragment and target in site and unquote(parts.fragment) not in site[target].ids: lost.append((path.name, link))
    assert not lost


def test_nothing_is_fetched_from_elsewhere(site):
    assert not [(p.name, f) for p, page in site.items() for f in page.fetched if urlsplit(f).scheme or urlsplit(f).netloc]


def test_every_figure_has_words(site):
    assert not [(p.name, b) for p, page in site.items() for b in page.blind]


def test_formulas_need_no_script(site):
    path = next(p for p in site if p.stem == "91_tiny_cosmos")
    assert "<math" in path.read_text(encoding="utf-8") and not any("mathjax" in f.lower() for f in site[path].fetched)


def test_names_of_notebooks_become_links():
    here = Path("03_idm.ipynb")
    assert assemble.linked("see `06a`, `02_dreaming` and `03_idm`", here) == "see [`06a`](06a_optimizer.ipynb), [`02_dreaming`](02_dreaming.ipynb) and `03_idm`"
    assert assemble.linked("`06a`", Path("train/90_tiny_vae.ipynb")) == "[`06a`](../06a_optimizer.ipynb)"
    for plain in ("```\n`06a`\n```", "[`06a`](elsewhere)", "`99`", "`02_something`"): assert assemble.linked(plain, here) == plain


def test_comments_beside_parameters_reach_the_api():
    table = "\n".join(assemble.parameters(Cache))
    assert "(N, L, D) float16" in table and "`n_image_tokens`" in table
    assert assemble.whole(cells) == "(B, P, D) image tokens of one square view -> (B, M, k, D)"
    assert "Shapes and units: (B, P, D)" in "\n".join(assemble.entry("cells", cells, sys.modules[cells.__module__]))


def test_signatures_are_python():
    for name, thing in (("cells", cells), ("Cache", Cache)):
        compile(f"def {re.sub(chr(10), ' ', assemble.signature(name, thing))}: ...", name, "exec")
