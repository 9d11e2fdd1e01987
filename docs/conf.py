"""How Sphinx builds the documentation: `sphinx-build -W docs build/docs`. It needs no network."""

import argparse
import os
import re

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from mdtrajnet_fast import __version__
from mdtrajnet_fast.cli import argument_parser

os.environ["COLUMNS"] = "90"  # of the help of commands

project = "mdtrajnet_fast"
author = "mdtrajnet_fast developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"mdtrajnet_fast {__version__}"
html_show_copyright = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and units are in the text
autodoc_default_options = {"members": True}

_ITEM = re.compile(r"(?P<names>[a-z_]\w*(?:, (?:and )?[a-z_]\w*)*): (?P<text>.+)")

_BAR = re.compile(r"``.*?``|\|")  # |x| is a substitution for Sphinx


def _as_rest(app, what, name, obj, options, lines):
    """Docstrings list arguments as `name: text`, with further lines indented; make lists of them.

    Lists may be headed by a word alone, "Arguments" or "Attributes", and are indented then.
    """
    made: list[str] = []
    inside = literal = False  # an item; a literal block
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        indent = len(line) - len(line.lstrip())
        if literal and line and indent == 0:
            literal = False
        if literal:
            made.append(line)
            continue
        literal = line.endswith("::")
        if line in ("Arguments", "Attributes", "Formats"):
            made += ["", f"**{line}**", ""]
            continue
        text = _ITEM.fullmatch(line.strip())
        deeper = len(following) - len(following.lstrip()) > indent
        ends = not following or deeper or _ITEM.fullmatch(following.strip())
        if text and ends and indent <= 4:
            made += [] if inside else [""]
            names = ", ".join(f"``{each}``" for each in re.findall(r"\w+", text["names"]))
            made.append(f"* {names}: {text['text']}")
            inside = True
        elif inside and indent:
            made.append(f"  {line.strip()}")
        else:
            if inside and line:
                made.append("")
            inside = False
            made.append(line)
    lines[:] = [_BAR.sub(lambda bar: r"\|" if bar[0] == "|" else bar[0], line) for line in made]


class Commands(SphinxDirective):
    """A section for every command of `mdtrajnet`, with its help."""

    def run(self):
        actions = argument_parser()._actions
        (commands,) = (one for one in actions if isinstance(one, argparse._SubParsersAction))
        made = []
        for name, parser in commands.choices.items():
            section = nodes.section(ids=[f"command-{name}"])
            section += nodes.title(text=f"mdtrajnet {name}")
            text = parser.format_help()
            section += nodes.literal_block(text, text, language="text")
            made.append(section)
        return made


def setup(app):
    """Called by Sphinx."""
    app.add_directive("mdtrajnet-commands", Commands)
    app.connect("autodoc-process-docstring", _as_rest)
