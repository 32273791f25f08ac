"""Configuration of Sphinx. `make docs` builds the pages in docs/_build, without network access."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from fastcxr.version import VERSION  # noqa: E402  the path is set above

project = "fastcxr"
copyright = "fastcxr authors, Apache-2.0"
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "cyclopts.ext.sphinx", "generated_pages"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
smartquotes = False  # they change --option
default_role = "code"  # of single backticks in docstrings
highlight_language = "none"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
# without network access Sphinx cannot resolve names of other packages; types in signatures may be internal
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!fastcxr\.).*"), ("py:class", r"fastcxr\..*")]

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"fastcxr {VERSION}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
