"""The `bulkhead` command: chat, sessions, evidence, the audit log and profiles."""

from bulkhead.cli.program import main

__all__ = ["main"]
