"""Sphinx configuration; build with `sphinx-build -W docs docs/_build`, which needs no network."""

import importlib.util
import os

# The gallery shows that the examples run, and says so there; SKATR_SK_FAST=0 runs them in full.
os.environ.setdefault("SKATR_SK_FAST", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from skatr_sk import __version__

project = "skatr_sk"
author = "skatr_sk developers"
copyright = "2026, skatr_sk developers"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
default_role = "py:obj"

autosummary_generate = True
numpydoc_show_class_members = False  # autosummary lists the members already
# Links into other projects need their indices, and so a network: asked for where the site is made.
intersphinx_mapping = {}
if os.environ.get("SKATR_SK_INTERSPHINX"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
else:
    suppress_warnings = ["ref.ref", "ref.term"]  # of scikit-learn's guide, in docstrings we inherit

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_.*\.py$",
    "ignore_pattern": r"(__init__|run_.*)\.py$",  # run_*.py need a GPU or hours
    "copyfile_regex": r"",
    "show_memory": False,
}

has_theme = importlib.util.find_spec("pydata_sphinx_theme") is not None
html_theme = "pydata_sphinx_theme" if has_theme else "alabaster"
html_title = f"skatr_sk {__version__}"
html_static_path = ["_static"]
html_css_files = ["skatr_sk.css"]

FAST_NOTE = """
.. note::

   This page was built by a fast run (``SKATR_SK_FAST=1``: fewer light cones, few epochs), which
   shows that the example works. **Its tables and pictures are not results.** Run the script for
   those; it takes minutes on two cores.

"""


def say_that_runs_were_fast(app, docname, source):
    """Put a note above each example of the gallery that did not run in full."""
    if docname.startswith("auto_examples/plot_") and os.environ["SKATR_SK_FAST"] == "1":
        anchor = ".. rst-class:: sphx-glr-example-title"
        source[0] = source[0].replace(anchor, FAST_NOTE + anchor, 1)


def setup(app):
    app.connect("source-read", say_that_runs_were_fast)
