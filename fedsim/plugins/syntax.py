"""The canonical form of Python code, which its layout and documentation do not change.

It is a text of the syntax tree. The second function lists the names that a file imports.
"""

from __future__ import annotations

import ast

_WITHOUT_MEANING = {"ctx", "kind", "type_comment", "type_ignores"}
"""Fields of a node that are left out: its place determines them, or they have no effect."""


def canonical_form(source: str | bytes) -> str:
    """Return a text that two pieces of code share if they differ only in layout and documentation.

    The text lists the nodes of the syntax tree in order. It leaves out comments, layout,
    docstrings and other strings that stand alone as a statement. Newer Pythons add fields that
    are mostly empty, so empty fields are left out, too. Then Python 3.11, 3.12 and 3.13 return the
    same text.

    Raises:
        SyntaxError: ``source`` is not Python.
    """
    pieces: list[str] = []
    _write(ast.parse(source), pieces)
    return "".join(pieces)


def imported_names(source: str | bytes) -> set[str]:
    """Return every name in the import statements of a file, split at its dots.

    ``from package.module import function`` gives ``package``, ``module`` and ``function``.

    Raises:
        SyntaxError: ``source`` is not Python.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                names.update(alias.name.split("."))
        if isinstance(node, ast.ImportFrom) and node.module:
            names.update(node.module.split("."))
    return names


def _write(node: ast.AST, pieces: list[str]) -> None:
    """Append the text of one node and of all nodes below it."""
    pieces.append(f"({type(node).__name__}")
    for name in node._fields:
        value = getattr(node, name, None)
        if name in _WITHOUT_MEANING or value == []:
            continue
        if value is None and not isinstance(node, ast.Constant):
            continue
        if isinstance(node, ast.JoinedStr):
            value = [piece for piece in node.values if not _is_empty_text(piece)]
        pieces.append(f" {name}=")
        _write_value(value, pieces)
    pieces.append(")")


def _write_value(value: object, pieces: list[str]) -> None:
    """Append the text of a field's value: a node, a list, a name or a constant."""
    if isinstance(value, ast.AST):
        _write(value, pieces)
    elif isinstance(value, list):
        for item in value:
            if not _is_documentation(item):
                _write_value(item, pieces)
                pieces.append(",")
    else:
        pieces.append(f"{type(value).__name__}:{value!r}")


def _is_documentation(node: object) -> bool:
    """Return whether a statement is nothing but a string, such as a docstring."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)


def _is_empty_text(piece: ast.expr) -> bool:
    """Return whether a piece of an f-string is empty, as the last one may be in Python 3.12."""
    return isinstance(piece, ast.Constant) and piece.value == ""
