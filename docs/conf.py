"""Configures the documentation site: `make site` builds it with Sphinx into site/.

The source folder is the repository, so that a link between two pages works on the site as it works in the
repository. Every warning is an error: a broken link or anchor, a page outside the navigation.
"""

project = "kdeploy"
author = "the kdeploy authors"
root_doc = "docs/index"
extensions = ["myst_parser"]
include_patterns = [
    "*.md",
    "docs/**.md",
    "examples/*/README.md",
    "handler/README.md",
    "model-store/README.md",
    "tests/snapshots/README.md",
]
# Folders that Sphinx would walk through; none of them holds a page.
exclude_patterns = [".*", "bench", "build", "deployer", "dist", "manifests", "site"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nitpicky = True

# Furo brings its own styles and scripts and uses the system's fonts, so the site needs no network.
html_theme = "furo"
html_title = "kdeploy"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_extra_path = ["_extra"]  # index.html, which leads to docs/index.html
