"""What tenants, sessions and partitions are: values, rules and state machines, without I/O."""
