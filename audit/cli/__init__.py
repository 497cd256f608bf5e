"""`bulkhead-audit`: the operator's view of an audit database, or of a copy of one. No network, no server."""

from typing import ClassVar

import click

from audit.cli.breaking import breaking
from audit.cli.exporting import export, vkeys
from audit.cli.listing import list_records, show, tail
from audit.cli.readers import reader
from audit.cli.tiles import serve_tiles, tiles
from audit.cli.verifying import reindex, verify
from audit.cli.witness import witness
from bulkhead.cli.console import WHAT_TO_DO, Program, example

__all__ = ["main", "program"]


class _Operators(Program):
    """No request was made: what is wrong is the file or the server that was named."""

    advice: ClassVar = {code: text for code, text in WHAT_TO_DO.items() if code != "AUDIT_UNAVAILABLE"}


@click.group(
    cls=_Operators,
    name="bulkhead-audit",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "bulkhead-audit verify var/control/audit/audit.db --keys var/control/audit/keys --lock var/control/audit.lock",
        "bulkhead-audit list --db var/control/audit/audit.db --action decision --decision deny",
        "bulkhead-audit export --db var/control/audit/audit.db --tenant tenant_01h… --out acme.jsonl",
        "bulkhead-audit verify acme.jsonl --log-key audit.example.org/t/…+1a2b3c4d+AQ…",
    ),
)
@click.version_option(package_name="bulkhead-platform")
def program() -> None:
    """Look into, verify and export audit logs from the database itself.

    Exit codes: 0 done, 1 something does not hold (the message names the record), 2 wrong usage.
    """


_READING = (list_records, tail, show, verify, export, vkeys, tiles, serve_tiles)
for _command in (*_READING, reindex, breaking, witness, reader):
    program.add_command(_command)


def main() -> None:
    """Run the command line."""
    program.main()
