"""Sphinx: these pages as a site (`make docs`). They are plain Markdown, which GitHub shows too.

Warnings are errors there, and a reference that leads nowhere is a warning (`--nitpicky`): so a
page, a heading or a name that is gone is noticed without any network.
"""

import re
from pathlib import Path

import hydrogen

project = "hydrogen"
author = "the hydrogen authors"
version = release = hydrogen.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

# The standard library's pages would have to be fetched. Sphinx 8.1, the last one for Python 3.10,
# writes some names short.
OTHERS = (
    r"(collections|ipaddress|os|socket|ssl|types)\..*"
    r"|Allowed|Framing|Handoff|Options|Overload|ProxyProtocol|SSLContext"
)
nitpick_ignore_regex = [("py:.*", OTHERS)]

html_theme = "furo"
html_title = f"hydrogen {version}"
html_copy_source = False

myst_heading_anchors = 4  # headings down to this level have the anchors that GitHub gives them
autoclass_content = "both"  # what a class is, and how it is made
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
default_role = "code"  # what docstrings put between single backticks


def unlink(app, docname, source):
    """Keep only the text of links to pages outside of this folder, such as perf/README.md."""
    root = Path(app.srcdir)

    def shown(link):
        target = (root / docname).parent / link[2]
        return link[0] if target.resolve().is_relative_to(root) else link[1]

    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+\.md)\)", shown, source[0])


def setup(app):
    app.connect("source-read", unlink)
