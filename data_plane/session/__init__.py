"""The agent and the worker as programs over ports: commands, supervision, leases, receipts, requests.

Nothing here knows protobuf or gRPC; :mod:`data_plane.rpc` carries these types over the wire.
"""
