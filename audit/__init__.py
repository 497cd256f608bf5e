"""The audit log: Merkle logs in SQL."""
