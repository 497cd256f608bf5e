"""Evidence on a real host: collecting it from the kernel and the GPU driver, and issuing it to callers.

``tsm`` and ``nvml`` collect, with the standard library and nvidia-ml-py alone: ``python -m data_plane.evidence`` runs
on a bare host. ``issuing`` is the agent's evidence port.
"""
