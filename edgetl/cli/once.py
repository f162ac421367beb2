"""Options that hold one value are given once: a second value would silently take the place of the first."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperOption

from edgetl.errors import UsageError


class OnceEach(TyperCommand):
    """A command that refuses a second value of an option that holds one.

    Flags may be repeated (``--json --json``), unless there is one against them (``--roofline --no-roofline``).
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read a command line.

        Args:
            ctx: Of the command; newer versions of typer bring their own class of it.
            args: Its arguments.

        Raises:
            UsageError: An option that holds one value is given more than once.
        """
        given = list(args)  # reading takes them away
        rest: list[str] = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            self._refuse_repeated(ctx, given)
        return rest

    def _refuse_repeated(self, ctx: Any, args: list[str]) -> None:
        order: list[Any] = self.make_parser(ctx).parse_args(args=args)[2]
        options = Counter(option for option in order if isinstance(option, TyperOption))
        for option, times in options.items():
            may_be = option.multiple or option.count or (option.is_flag and not option.secondary_opts)
            if times > 1 and not may_be:
                names = " and ".join([*option.opts, *option.secondary_opts] if option.is_flag else option.opts[-1:])
                raise UsageError(
                    f"{names}: given {times} times, and only one can hold", hint=f"{ctx.command_path} --help"
                )
