"""A hook of MkDocs that adds pages from outside docs/ and the tutorial, and adapts all links.

The pages from outside docs/ are README and the other Markdown files at the root, and the
measurements. The tutorial is a notebook, which becomes a Markdown page. The links in all files are
relative paths, as code hosts need them. The hook turns them into links to pages of the site.
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
# The files outside docs/ that the site shows; the last pattern finds .md and .png.
OUTSIDE = [
    *ROOT.glob("*.md"),
    ROOT / "benchmarks" / "README.md",
    *(ROOT / "benchmarks" / "results").glob("*.[mp][dn]*"),
]
# The groups are the text in brackets (with the ! of a picture), the text, the path and the anchor.
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
        below_root = path.relative_to(ROOT)
        if str(below_root) == "README.md":
            NAMES[below_root] = "index.md"
        else:
            NAMES[below_root] = str(below_root)
        files.append(File.generated(config, NAMES[below_root], abs_src_path=str(path)))
    return files


def add_notebook(file: File, files: Files, config: MkDocsConfig) -> None:
    """Add the page and the pictures of a notebook to the files of the site.

    Args:
        file: the notebook, with the output of its cells.
        files: the files of the site.
        config: the configuration of MkDocs.
    """
    from nbconvert import MarkdownExporter

    name = NAMES[Path("docs", file.src_uri)] = file.src_uri.removesuffix("ipynb") + "md"
    text, resources = MarkdownExporter().from_filename(file.abs_src_path)
    # Without the style of pandas, data frames look like the tables of other pages.
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
    """Return a page whose links to files of the repository lead to pages of the site.

    The site has no page for other files, such as code. Only the text of a link to them is left.
    """
    source = next(path for path, name in NAMES.items() if name == page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link[3]))
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
