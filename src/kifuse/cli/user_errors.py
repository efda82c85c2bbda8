"""How a user's error ends the program, and the checks of options that several verbs share."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from kifuse.errors import ConfigError, KifuseError
from kifuse.processes import ToldByFirst
from kifuse.terminal.safe_console import SafeConsole

EPILOG_GAP = "\n\n"
"""What separates the lines of an epilog; rich joins lines that have no empty line between them."""

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

USER_ERROR = 2
INTERRUPTED = 130


class KifuseGroup(TyperGroup):
    """Print an error that the user can fix as one message without a traceback; other errors keep theirs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb.

        Raises:
            typer.Exit: With 2 after a user's error, with 130 after an interruption.
        """
        try:
            return super().invoke(ctx)
        except KifuseError as error:
            if not isinstance(error, ToldByFirst):
                print_error(str(error))
            raise typer.Exit(USER_ERROR) from error
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            print_error(
                f"{error.filename or 'a file'}: {error.strerror}. Correct this and give the same command "
                "again."
            )
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt:
            SafeConsole(stderr=True).print(
                "Interrupted. Give the same command to continue a run where it was last saved.",
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None


def print_error(message: str) -> None:
    """Print a message to stderr after a bold 'error:'. No line is broken, so paths stay whole."""
    text = Text.assemble(("error:", "bold red"), " ", message)
    SafeConsole(stderr=True).print(text, soft_wrap=True)


def split_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list, without spaces around them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def refuse_twice(flags: Mapping[str, str], given: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse a key that is given by its option and by --set as well.

    Args:
        flags: The options by the keys that they stand for.
        given: What the options gave.
        overrides: What --set gave.

    Raises:
        ConfigError: There is such a key; the message names all of them.
    """
    twice = [key for key in given if key in overrides]
    if twice:
        said = (
            f"{flags[key]}: found --set {key} as well, expected one of them. Remove one." for key in twice
        )
        raise ConfigError("\n".join(said))
