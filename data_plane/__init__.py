"""The data plane: node agents, workers, the engine that runs models, and the partitions they run on."""
