"The site's settings; `make docs` assembles its pages first (assemble.py)."
from configparser import ConfigParser
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

settings = ConfigParser(interpolation=None)
settings.read(Path(__file__).parent.parent / "settings.ini")
project, author, release = (settings["DEFAULT"][k] for k in ("repo", "author", "version"))
copyright = settings["DEFAULT"]["copyright"]

extensions = ["myst_nb"]
nb_execution_mode = "off"                # chapters carry the outputs that they were committed with
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3
exclude_patterns = ["extra"]
suppress_warnings = ["mystnb.unknown_mime_type"]      # widgets: their static figure stands above them

html_theme, html_title = "sphinx_book_theme", project
html_theme_options = {"show_toc_level": 2, "use_download_button": True, "home_page_in_toc": True, "navbar_persistent": []}
html_static_path, html_css_files = [str(Path(__file__).parent / "static")], ["site.css"]
html_show_sourcelink, html_copy_source = False, False
html_math_renderer = "mathml"            # MathJax would have to be fetched; browsers read MathML


def setup(app):
    app.connect("config-inited", lambda app, config: config.html_extra_path.append(str(Path(app.srcdir) / "extra")))      # the gallery's pictures

    def visit(self, node, display: str):
        self.body.append(convert(node.astext(), display=display))
        raise SkipNode
    app.add_html_math_renderer("mathml", (lambda self, n: visit(self, n, "inline"), None), (lambda self, n: visit(self, n, "block"), None))
