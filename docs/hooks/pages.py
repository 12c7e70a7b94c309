"""Pages of the site that are no Markdown in docs/: README, measurements, the tutorial, code; and links, as code hosts have them."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".cfg": "ini", ".toml": "toml", ".css": "css"}
PLACES: dict[str, Path] = {}
"""Where a page of the site lies below the root, by its name on the site."""


def site_name(place: Path) -> str:
    """The name on the site of a file or folder below the root."""
    if (ROOT / place).is_dir():
        return f"{place}/README.md" if (ROOT / place / "README.md").exists() else f"{place}/index.md"
    text = str(place).removeprefix("docs/")
    if text == "README.md":
        return "index.md"
    if place.suffix == ".ipynb":
        return text.removesuffix(".ipynb") + ".md"
    return f"{text}.md" if place.suffix in {*CODE, ""} else text


def targets(place: Path, markdown: str) -> Iterator[Path]:
    """The files and folders below the root that a page links to."""
    for link in LINK.findall(markdown):
        target = Path(os.path.normpath(place.parent / link.partition("#")[0]))
        if not link.startswith("#") and ".." not in target.parts and (ROOT / target).exists():
            yield target


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tutorial, README, and whatever outside of docs/ a page links to; of a file of code, a page that shows it."""
    PLACES.clear()
    for file in [file for file in files if file.src_dir == config.docs_dir and file.inclusion.is_included()]:
        PLACES[file.src_uri] = Path("docs", file.src_uri)
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            add_notebook(file, files, config)
    waiting = [Path("README.md"), Path("benchmarks/README.md"), *(path.relative_to(ROOT) for path in RESULTS), *PLACES.values()]
    for place in waiting:  # which grows
        name = site_name(place)
        if name not in PLACES and place.parts[0] != "docs":
            PLACES[name] = place
            files.append(outside(place, name, config))
        waiting += [target for target in targets(place, written(place)) if site_name(target) not in PLACES]
    return files


def written(place: Path) -> str:
    """The Markdown of a page; of a folder, a list of its files."""
    if (ROOT / place).is_dir():
        return f"# {place}\n\n" + "".join(f"- [{path.name}]({place.name}/{path.name})\n" for path in sorted((ROOT / place).glob("*.*")))
    return (ROOT / place).read_text() if place.suffix == ".md" else ""


def outside(place: Path, name: str, config: MkDocsConfig) -> File:
    """A file of the site for a file or folder outside of docs/."""
    if text := written(place):
        return File.generated(config, name, content=text)
    if place.suffix not in {*CODE, ""}:
        return File.generated(config, name, abs_src_path=str(ROOT / place))
    code = f"````{CODE.get(place.suffix, 'text')}\n{(ROOT / place).read_text()}````\n"
    return File.generated(config, name, content=f"---\nsearch: {{exclude: true}}\n---\n# {place}\n\n{code}")


def add_notebook(file: File, files: Files, config: MkDocsConfig) -> None:
    """A page and pictures of an executed notebook."""
    from nbconvert import MarkdownExporter

    name = site_name(PLACES[file.src_uri])
    text, resources = MarkdownExporter().from_filename(file.abs_src_path)
    PLACES[name] = PLACES.pop(file.src_uri)
    # frames look as the pages' own tables do
    text = re.sub(r"<style scoped>.*?</style>| border=\"1\" class=\"dataframe\"| style=\"text-align: right;\"", "", text, flags=re.S)
    files.append(File.generated(config, name, content=text))
    for output, content in resources["outputs"].items():
        files.append(File.generated(config, posixpath.join(posixpath.dirname(name), output), content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files below the root lead to their pages."""
    here, folder = PLACES[page.file.src_uri], posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        anchor = link[1].partition("#")[2]
        for target in targets(here, link[0]):
            return f"]({posixpath.relpath(site_name(target), folder)}{anchor and '#'}{anchor})"
        return link[0]

    return LINK.sub(rewritten, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name code by roles (``:class:`Grid```) that Markdown does not know."""
    return re.sub(r":\w+:(?=<code>)", "", html)
