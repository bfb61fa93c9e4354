"""Sphinx's settings for the site, see `make docs`; `pages.py` gathers its sources."""

from importlib.metadata import version as version_of

project = "tileseg"
author = copyright = "The tileseg authors"  # noqa: A001  (Sphinx's name)
release = version = version_of("tileseg")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "sphinx_copybutton"]
smartquotes = False  # else --option has a dash
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types are told, not linked
suppress_warnings = ["misc.highlighting_failure"]

myst_heading_anchors = 4
myst_links_external_new_tab = True

autodoc_member_order = "bysource"

html_theme = "furo"  # asks nothing of the network
html_title = f"tileseg {release}"
html_show_sphinx = False
