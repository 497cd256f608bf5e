"""State of the control plane in SQL. The audit log is another database, with its own package."""
