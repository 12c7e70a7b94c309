"""A plug-in's exceptions as the mistakes that they are: one message in place of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedsim.errors import PluginError, UserError
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.places import blamed, said
from fedsim.plugins.registry import lookup


@contextmanager
def own_errors(name: str) -> Iterator[None]:
    """Translate what the block raises, if ``name`` is none of fedsim's own algorithms.

    Raises:
        PluginError: with file and line, and what was expected.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        cls = lookup(name)
        if is_shipped(cls):
            raise
        raise PluginError(
            name, f"{blamed(error, cls)}: {said(error)}", f"expected {cls.__name__} to be made, planned and trained"
        ) from error
