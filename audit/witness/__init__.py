"""Witnesses: our own small one, and asking witnesses for their cosignatures."""
