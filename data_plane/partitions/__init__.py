"""Dividing a compute tray: MIG geometry, the ledger of what is taken, and two backends behind one port.

Nothing in here touches a real GPU yet: :mod:`~data_plane.partitions.rack` simulates a GB300 tray from captured facts,
and :mod:`~data_plane.partitions.host` offers sandboxed processes on a real host.
"""

from data_plane.partitions.host import HostBackend
from data_plane.partitions.rack import SimulatedRackBackend

__all__ = ["HostBackend", "SimulatedRackBackend"]
