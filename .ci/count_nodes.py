"""Count the AST nodes of the product and of the tests, and compare them with ``.ci/size``.

The number of nodes says how much the code says, however it is laid out. Docstrings are not counted.
The exit code is 1 if a number is above its limit.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FOLDERS = {
    "product": ["fedsim/*.py", "algorithms/*.py", "baselines/*.py", "fedsim_command.py"],
    "tests": ["tests/*.py"],
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def count_nodes(text: str) -> int:
    """Return the number of AST nodes of a file's text, without its docstrings."""
    nodes = list(ast.walk(ast.parse(text)))
    documented = [node for node in nodes if isinstance(node, DOCUMENTED)]
    docstrings = sum(ast.get_docstring(node, clean=False) is not None for node in documented)
    return len(nodes) - 2 * docstrings  # a docstring is an expression and its constant


def main() -> int:
    """Print each count beside its limit; return the exit code."""
    exit_code = 0
    for line in Path(".ci/size").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, limit = line.split()
        command = ["git", "ls-files", *FOLDERS[name]]
        files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        total = sum(count_nodes(Path(file).read_text(encoding="utf-8")) for file in files)
        print(f"{name}: {total} AST nodes, at most {limit} allowed by .ci/size")
        if total > int(limit):
            exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
