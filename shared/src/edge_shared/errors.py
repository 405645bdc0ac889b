"""The two errors a user can cause; everything else is a bug."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: a file, option, model or data set that cannot be used (exit code 2).

    The message is one line: what is wrong, where, and what would be right.
    """


class CheckFailed(Exception):
    """A check that the user asked for did not hold: an audit, a budget (exit code 1)."""


class MissingExtra(InputError):
    """A command needs an optional dependency that is not installed (exit code 2)."""


def require(module: str, extra: str) -> None:
    """Raise `MissingExtra` naming the pip command unless `module` can be imported.

    Args:
        module: top-level module, such as ``"torch"``.
        extra: what pip installs, such as ``"edge-ids[torch]"``.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise MissingExtra(f"this needs {module}, which is not installed: pip install '{extra}'")
