"""The one exception class for mistakes a user can mend. Everything may import this file; it imports nothing of ours."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input: one line that says what is wrong and what to do. The command line prints it and exits with 2."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' Did you mean X?' for the nearest of `choices`, or '' when none is near. Meant to end a UserError's line."""
    names = list(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if not near:  # another case is the commonest slip, and difflib counts it as distance
        near = [name for name in names if name.lower() == word.lower()]
    return f" Did you mean {near[0]}?" if near else ""
