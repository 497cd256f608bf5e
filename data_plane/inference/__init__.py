"""What a worker asks of whatever runs its model: the port, its parameters, and what is counted. No torch, no engine."""
