"""What of a request's secrets is overwritten, and when; what Python cannot overwrite stands in the threat model."""

import pytest

from bulkhead.errors import SealError
from bulkhead.protocol.context import Method
from bulkhead.sealing.chunks import ChunkOpener, ChunkSealer, Direction
from bulkhead.sealing.schedule import KeySchedule
from tests.simulator.sealed_world import NOW_S, World


def test_wiped_schedule_derives_nothing():
    """The secret's bytes are overwritten in place, and every derivation refuses afterwards."""
    schedule = KeySchedule(bytes(range(32)), transcript_hash=bytes(32))
    held = memoryview(schedule._secret)
    assert bytes(held) == bytes(range(32))
    held.release()
    secret = schedule._secret
    schedule.wipe()
    assert secret == b""
    for derive in (schedule.client_to_server, schedule.commitment):
        with pytest.raises(SealError):
            derive()
    with pytest.raises(SealError):
        schedule.server_to_client(request_digest=bytes(32), worker_random=bytes(32))


@pytest.mark.parametrize("stream", [ChunkSealer, ChunkOpener])
def test_chunk_keys_are_overwritten_once_the_cipher_has_them(stream):
    """The derived key material is zero after the stream was made; the stream still works."""
    material = bytearray(range(44))
    stream(material, Direction.CLIENT_TO_SERVER)
    assert material == bytes(44)
    sealer = ChunkSealer(bytearray(range(44)), Direction.CLIENT_TO_SERVER)
    opener = ChunkOpener(bytearray(range(44)), Direction.CLIENT_TO_SERVER)
    assert opener.open(sealer.seal(b"text", final=True)) == (b"text", True)


def test_both_sides_wipe_the_secret_when_every_key_is_made():
    """Client and worker hold no request secret any more once the response is open, long before it ends."""
    world = World()
    sent = world.client().begin(Method.GENERATE, b"prompt", now_s=NOW_S)
    served = world.server.open(sent.envelope, now_s=NOW_S)
    assert len(sent._schedule._secret) == len(served._schedule._secret) == 32
    served.receive(sent.chunks[0])
    sent.accept(served.worker_random)
    assert sent._schedule._secret == served._schedule._secret == b""


def test_destroyed_keys_are_held_by_nothing_here():
    """After a generation's end neither ring nor worker keys refer to a private key."""
    keys = World().keys
    keys.destroy()
    assert [keys._request_kem._key, keys._weights_kem._key, keys._receipt, keys._tls] == [None] * 4
