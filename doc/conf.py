"""How Sphinx builds this documentation: `make docs`."""

from importlib.metadata import version as version_of

project = "fedbus"
author = "the fedbus authors"
release = version_of("fedbus")
version = ".".join(release.split(".")[:2])

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = False
html_theme = "furo"
html_title = f"fedbus {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100


def _tidy(app, what, name, obj, options, lines):
    """Show docstrings as they are written: *Raises:* and the like are blocks of their own, `name` is code."""
    import re

    out = []
    indented = False
    for line in lines:
        # literals and roles are left as they are; a single pair of backquotes is meant as a literal
        text = re.sub(r"(``.+?``|:[a-z]+:`[^`]+`)|`([^`]+)`", lambda found: found[1] or f"``{found[2]}``", line)
        if text.rstrip() in ("Raises:", "Returns:"):
            out += ["", f"**{text.rstrip(':')}**", ""]
            indented = True
            continue
        if indented and text.startswith("    ") and not text.startswith("     "):
            found = re.match(r"    ([A-Za-z, ]+): (.*)", text)
            text = f"* {found[1]}: {found[2]}" if found else f"  {text.strip()}"
        elif indented and text.startswith("     "):
            text = f"  {text.strip()}"
        elif text and not text.startswith(" "):
            indented = False
        out.append(text)
    lines[:] = out


def setup(app):
    app.connect("autodoc-process-docstring", _tidy)
