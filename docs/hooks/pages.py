"""Builds the pages of the site that are not Markdown files in docs/, and adapts links.

These pages are README, the measurements and the tutorial. Links in the files are those of code
hosts, relative to the file; on the site they lead to the pages.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = [
    *ROOT.glob("*.md"),
    ROOT / "benchmarks" / "README.md",
    *(ROOT / "benchmarks" / "results").glob("*.[mp][dn]*"),
]
LINK = re.compile(r"(!?\[([^\]]*)\])\(([^)\s#]*)(#[^)\s]*)?\)")
NAMES: dict[Path, str] = {}
"""The name on the site of each file, by its path below the root."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tutorial, README, the measurements and their pictures to the files of the site."""
    NAMES.clear()
    for file in [file for file in files if file.inclusion.is_included()]:
        NAMES[Path("docs", file.src_uri)] = file.src_uri
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            add_notebook(file, files, config)
    for path in OUTSIDE:
        place = path.relative_to(ROOT)
        if str(place) == "README.md":
            NAMES[place] = "index.md"
        else:
            NAMES[place] = str(place)
        files.append(File.generated(config, NAMES[place], abs_src_path=str(path)))
    return files


def add_notebook(file: File, files: Files, config: MkDocsConfig) -> None:
    """Add the page and the pictures of an executed notebook."""
    from nbconvert import MarkdownExporter

    name = NAMES[Path("docs", file.src_uri)] = file.src_uri.removesuffix("ipynb") + "md"
    text, resources = MarkdownExporter().from_filename(file.abs_src_path)
    # Data frames look like the tables of the pages.
    text = re.sub(
        r"<style scoped>.*?</style>| border=\"1\" class=\"dataframe\"| style=\"text-align: "
        r"right;\"",
        "",
        text,
        flags=re.S,
    )
    files.append(File.generated(config, name, content=text))
    for output, content in resources["outputs"].items():
        files.append(File.generated(config, output, content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links to files below the root lead to pages of the site.

    The site does not show code, so only the text is left of a link to code.
    """
    here = next(place for place, name in NAMES.items() if name == page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(here.parent / link[3]))
        if name := NAMES.get(target):
            relative = posixpath.relpath(name, posixpath.dirname(page.file.src_uri))
            return f"{link[1]}({relative}{link[4] or ''})"
        if link[3] and (ROOT / target).exists():
            return link[2]
        return link[0]

    return LINK.sub(rewritten, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page without the roles of docstrings (``:class:`Grid```), which Markdown lacks."""
    return re.sub(r":\w+:(?=<code>)", "", html)
