"""What every command of the three programs says of itself."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from audit.cli import program as audit_program
from bulkhead.cli.program import program as tenant_program
from control_plane.admin_cli.program import program as admin_program

SERVING = {"bulkhead-audit break sign", "bulkhead-audit serve-tiles", "bulkhead-audit witness serve"}
"""Commands with nothing to say to a program: they serve, or ask a person."""


def commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command below ``group``."""
    for name, command in group.commands.items():
        inner = (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, inner)
        else:
            yield inner


PROGRAMS = {program.name or "": program for program in (tenant_program, admin_program, audit_program)}
COMMANDS = [command for name, program in PROGRAMS.items() for command in commands(program, (name,))]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(command: tuple[str, ...]) -> None:
    """Each command explains itself, shows an example of itself, and offers --json."""
    result = CliRunner().invoke(PROGRAMS[command[0]], [*command[1:], "--help"])
    assert result.exit_code == 0
    assert command[0] in result.output.partition("Example:")[2]
    assert " ".join(command[1:]) in result.output.partition("Example:")[2]
    assert ("--json" in result.output) is (" ".join(command) not in SERVING)
