"""The key broker: releases the key of a sealed model to a worker that proved itself (docs/models.md).

One program logic for both custodies: a platform runs it inside its control plane, a tenant as ``bulkhead broker
serve`` with a policy of its own.
"""

from bulkhead.broker.broker import Floors, KeyBroker, Released
from bulkhead.broker.floors import FileFloors
from bulkhead.broker.nonces import Nonces

__all__ = ["FileFloors", "Floors", "KeyBroker", "Nonces", "Released"]
