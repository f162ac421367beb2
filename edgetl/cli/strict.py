"""What a command line cannot mean is refused: two values where one can hold, and paths without a letter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.core import TyperCommand, TyperOption

from edgetl.errors import UsageError


class StrictCommand(TyperCommand):
    """A command that refuses a second value of an option that holds one, which would silently take the place of the
    first, and an empty path, which would be the working folder: a variable that is not set (``--store "$STORE"``).

    Flags may be repeated (``--json --json``), unless there is one against them (``--roofline --no-roofline``).
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read a command line.

        Args:
            ctx: Of the command; newer versions of typer bring their own class of it.
            args: Its arguments.

        Raises:
            UsageError: An option that holds one value is given more than once, or a path is empty.
        """
        given = list(args)  # reading takes them away
        rest: list[str] = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            values, _, order = self.make_parser(ctx).parse_args(args=given)
            self._refuse_repeated(ctx, order)
            self._refuse_empty(values)
        return rest

    def _refuse_repeated(self, ctx: Any, order: list[Any]) -> None:
        options = Counter(option for option in order if isinstance(option, TyperOption))
        for option, times in options.items():
            may_be = option.multiple or option.count or (option.is_flag and not option.secondary_opts)
            if times > 1 and not may_be:
                names = " and ".join([*option.opts, *option.secondary_opts] if option.is_flag else option.opts[-1:])
                raise UsageError(
                    f"{names}: given {times} times, and only one can hold", hint=f"{ctx.command_path} --help"
                )

    def _refuse_empty(self, values: dict[str, Any]) -> None:
        paths = {name for name, hint in get_type_hints(self.callback).items() if _holds_paths(hint)}
        for parameter in self.params:
            value = values.get(parameter.name or "")
            if parameter.name in paths and "" in (value if isinstance(value, list | tuple) else [value]):
                name = parameter.opts[-1] if isinstance(parameter, TyperOption) else parameter.opts[-1].upper()
                raise UsageError(
                    f"{name}: the path is empty",
                    hint='this folder is "."; where a variable stands there, it may not be set',
                )


def _holds_paths(hint: Any) -> bool:
    """Whether a type is of a path, of none or one, or of several."""
    return hint is Path or any(map(_holds_paths, get_args(hint)))
