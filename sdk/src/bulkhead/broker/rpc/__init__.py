"""The broker on the wire: server and client, the only modules of this room that know protobuf."""

from bulkhead.broker.rpc.server import BrokerServer

__all__ = ["BrokerServer"]
