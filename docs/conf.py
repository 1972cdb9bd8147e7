"""Sphinx's settings; `make docs` builds the pages with warnings as errors."""

import crossmedia_fast

project = "crossmedia_fast"
author = "the crossmedia_fast contributors"
release = version = crossmedia_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
highlight_language = "none"  # of fences without a language: commands and excerpts

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures and the Args have them
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_param = False  # "stride, padding" stays one entry
napoleon_custom_sections = ["Shape", "Shapes"]

html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_end": ["theme-switcher"],
}
html_sidebars = {"**": ["sidebar-nav-bs"], "index": []}
