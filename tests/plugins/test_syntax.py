"""The canonical form of code: equal for code that does the same, on every Python version."""

import hashlib

import pytest

from fedsim.plugins.syntax import canonical_form, imported_names

FUNCTION = '''
def scaled(x: float, *, by: float = 2.0) -> str:
    """Return x, scaled."""
    # a comment
    try:
        values = {name: [x * by, None] for name in ("a", "b") if x > 1}
    except* ValueError:
        return f"{x!r:>{10}} of {by}"
    return str(values)
'''


def test_form_ignores_comments_layout_and_docstrings() -> None:
    short = 'def f(a, b):\n    return g(a, "long text", b)\n'
    long = (
        'def f(\n    a,\n    b,\n):\n    """Returns g."""\n'
        '    return g(  # a comment\n        a,\n        ("long " "text"),\n        b,\n    )\n'
    )
    assert canonical_form(short) == canonical_form(long)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'None'", "x = None"),
        ("x = a - b", "x = b - a"),
        ("x = f(a)", "x = f(*a)"),
        ("def f():\n    return", "async def f():\n    return"),
        ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
        ("{**a, 'b': 1}", "{'b': 1, **a}"),
        ("x = ''", "x = 'text'"),
        ("x = ['', 'text']", "x = ['text']"),
    ],
)
def test_form_differs_for_code_that_does_something_else(first: str, second: str) -> None:
    assert canonical_form(first) != canonical_form(second)


def test_form_is_the_same_on_every_python_version() -> None:
    digest = hashlib.sha256(canonical_form(FUNCTION).encode()).hexdigest()
    assert digest[:16] == "171e251e21785cf5"


def test_import_statements_alone_name_modules() -> None:
    text = '"""from prose import nothing"""\nimport a.b as c\nfrom .d import (\n    e,\n)\n'
    assert imported_names(text) == {"a", "b", "d", "e"}
