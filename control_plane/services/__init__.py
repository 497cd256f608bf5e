"""What the control plane does: use cases over storage, policy and the audit log, without transport."""
