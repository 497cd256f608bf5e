"""The `bulkhead` command: chat, sessions, evidence, the audit log and profiles."""
