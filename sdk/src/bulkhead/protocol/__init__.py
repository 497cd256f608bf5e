"""Sealed sessions as sans-I/O state machines, both sides (docs/protocol.md is the specification).

* :mod:`~bulkhead.protocol.tickets`, :mod:`~bulkhead.protocol.context`: what a session is bound to.
* :mod:`~bulkhead.protocol.grant`: all that a client verifies before its first prompt.
* :mod:`~bulkhead.protocol.client`; :mod:`~bulkhead.protocol.server`, :mod:`~bulkhead.protocol.server_request`: one
  request, from envelope to receipt.
* :mod:`~bulkhead.protocol.payloads`: what is said inside the seal.
* :mod:`~bulkhead.protocol.receipts`: what remains afterwards.

No module here opens a connection, reads a clock or stores anything; time and randomness are arguments.
"""
