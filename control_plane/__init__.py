"""The control plane: who may run what and where, and the record of it."""
