"""What every server process shares: configuration, logging, TLS, interceptors, life cycle."""
