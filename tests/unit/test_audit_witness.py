"""Our witness: the statuses of tlog-witness, and what it remembers."""

import asyncio
import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from audit.cli import program
from audit.witness.core import WitnessCore
from audit.witness.state import Seen, WitnessState
from bulkhead.errors import (
    AuditUnavailableError,
    CheckpointError,
    ConsistencyError,
    MalformedRequestError,
    UnavailableError,
)
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.cosignature import Cosigner, Witness, open_cosigned
from bulkhead.transparency.merkle import Frontier, consistency_proof, leaf_hash, tree_root
from bulkhead.transparency.note import NoteSigner
from bulkhead.transparency.witnessing import SIZE_TYPE, AddCheckpoint, WitnessSize, read_answer
from tests.simulator.witnesses import cosigners, our_witness, pinned

ORIGIN = "audit.bulkhead.test/platform/1"
SIGNER = NoteSigner.from_seed(ORIGIN, bytes(range(32)))
NAME = "witness.test/w1"
LEAVES = [leaf_hash(b"%d" % number) for number in range(300)]


def note(size: int, *, root: bytes | None = None, signer: NoteSigner = SIGNER) -> str:
    found = Frontier().extend(LEAVES[:size]).root() if root is None else root
    return sign_checkpoint(Checkpoint(signer.verifier.name, size, found), signer)


def request(old: int, size: int, **changes: object) -> bytes:
    proof = consistency_proof(old, size, lambda level, at: tree_root(LEAVES[at << level : (at + 1) << level]))
    values = {"old_size": old, "proof": proof, "note": note(size)} | changes
    return AddCheckpoint(**values).encode()


@pytest.fixture
def state(tmp_path):
    with WitnessState(tmp_path / "state") as found:
        yield found


def core(state: WitnessState) -> WitnessCore:
    return WitnessCore(vkeys=[SIGNER.vkey], cosigners=cosigners(NAME), state=state, now_s=lambda: 1_790_000_000)


@pytest.fixture
def witness(state) -> WitnessCore:
    return core(state)


def test_a_request_reads_back():
    """A request's body gives the request back."""
    asked = AddCheckpoint(5, (bytes(32), bytes(range(32))), note(7))
    assert AddCheckpoint.parse(asked.encode()) == asked


@pytest.mark.skipif(not os.environ.get("BULKHEAD_TEST_VECTORS"), reason="BULKHEAD_TEST_VECTORS names no vectors")
def test_the_specification_s_request_reads_back():
    """The specification's example of a request parses, and is written the same."""
    path = (
        Path(os.environ["BULKHEAD_TEST_VECTORS"]) / "transparency" / "c2sp" / "tlog-witness-add-checkpoint-request.txt"
    )
    asked = AddCheckpoint.parse(path.read_bytes())
    assert (asked.old_size, len(asked.proof)) == (20852014, 4)
    assert asked.encode() == path.read_bytes()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\n\n", b"old 1", b"old 01\n\n" + note(3).encode(), b"old -1\n\n" + note(3).encode(),
        b"old 99999999999999999999\n\n" + note(3).encode(), b"old 9223372036854775808\n\n" + note(3).encode(),
        b"old 0\nAA==\n\n" + note(3).encode(), b"old 0\n!\n\n" + note(3).encode(), b"old 0\n\nx\n", b"\xff" * 9,
        b"old 0\n" + (base64.b64encode(bytes(32)) + b"\n") * 64 + b"\n" + note(3).encode(),
        b"old 0\n\n" + note(3).encode()[:-1], b"new 0\n\n" + note(3).encode(),
    ],
)  # fmt: skip
def test_a_malformed_request_is_400(witness, body):
    """What is no request is refused with 400, whatever is wrong about it."""
    assert witness.add_checkpoint(body).status == 400


def test_statuses(witness, state):
    """Each refusal has the specification's status, and none of them changes what the witness remembers."""
    assert witness.add_checkpoint(request(0, 10)).status == 200
    unknown = NoteSigner.from_seed("audit.test/x/1", bytes(32))
    foreign = NoteSigner.from_seed(ORIGIN, bytes(32))
    cases = [
        (request(0, 12, note=note(12, signer=unknown)), 404),
        (request(10, 12, note=note(12, signer=foreign)), 403),
        (request(10, 12, note=note(9)), 400),
        (request(0, 12), 409),
        (request(9, 12), 409),
        (request(10, 10, note=note(10, root=bytes(32))), 409),
        (request(10, 12, proof=()), 422),
        (request(10, 12, note=note(12, root=bytes(32))), 422),
        (request(10, 10, proof=(bytes(32),)), 422),
    ]
    for body, status in cases:
        answer = witness.add_checkpoint(body)
        assert answer.status == status, body
        if status == 409:
            assert (answer.body, answer.content_type) == ("10\n", SIZE_TYPE)
    assert state.last(ORIGIN).size == 10
    first = AddCheckpoint(0, (bytes(32),), note(3, signer=SIGNER)).encode()
    with WitnessState(state._directory.parent / "fresh") as fresh:
        assert core(fresh).add_checkpoint(first).status == 422


def test_it_remembers_over_a_restart(tmp_path):
    """What was cosigned is remembered by the next process; only one process uses the state at a time."""
    with WitnessState(tmp_path) as state:
        assert core(state).add_checkpoint(request(0, 10)).status == 200
        with pytest.raises(AuditUnavailableError, match="another witness"):
            WitnessState(tmp_path)
    with WitnessState(tmp_path) as state:
        again = core(state)
        assert again.add_checkpoint(request(0, 12)).status == 409
        assert again.add_checkpoint(request(10, 12)).status == 200


@pytest.mark.parametrize("damage", [b"", b"{}", b"x", b'{"v":2}'])
def test_damaged_state_stops_it(tmp_path, damage):
    """A witness whose memory of a log is damaged cosigns nothing of that log: it does not begin again."""
    with WitnessState(tmp_path) as state:
        core(state).add_checkpoint(request(0, 10))
        (path,) = tmp_path.glob("*.json")
        path.write_bytes(damage)
        with pytest.raises(AuditUnavailableError, match="damaged"):
            core(state).add_checkpoint(request(0, 10))


def test_nothing_is_signed_that_is_not_remembered(tmp_path, monkeypatch):
    """If the state cannot be written, no cosignature leaves the witness."""
    with WitnessState(tmp_path) as state:
        monkeypatch.setattr("audit.witness.state.os.fsync", _fails)
        with pytest.raises(AuditUnavailableError, match="cannot be written"):
            core(state).add_checkpoint(request(0, 10))
        monkeypatch.undo()
        assert core(state).add_checkpoint(request(0, 9)).status == 200


def _fails(_fd: int) -> None:
    raise OSError(28, "No space left on device")


def test_requests_at_the_same_time_never_roll_back(state):
    """Of many requests from the same size at once exactly one is cosigned, and the state never gets smaller."""
    witness = core(state)
    witness.add_checkpoint(request(0, 10))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(witness.add_checkpoint, [request(10, size) for size in range(11, 43)]))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 31
    assert {answer.body for answer in answers if answer.status == 409} == {f"{state.last(ORIGIN).size}\n"}


def test_seen_keeps_the_log_s_own_note(state):
    """The witness keeps the checkpoint as the log signed it: evidence, should the log fork."""
    core(state).add_checkpoint(request(0, 10))
    assert state.last(ORIGIN) == Seen(ORIGIN, 10, Frontier().extend(LEAVES[:10]).root(), note(10))


def test_answers_are_verified():
    """An asker takes the lines of pinned keys that hold, and nothing else, for a cosignature."""
    asked = AddCheckpoint(0, (), note(10))
    text = note(10).partition("\n\n")[0] + "\n"
    good = [cosigner.cosign(text, 5) for cosigner in cosigners(NAME)]
    stranger = Cosigner.from_seed("witness.test/x", bytes(32)).cosign(text, 5)

    def read(status: int, body: str, kind: str = "text/plain"):
        return read_answer(status, kind, body.encode(), request=asked, witnesses=pinned(NAME))

    assert read(200, good[0] + stranger + good[1]) == tuple(good)
    assert read(409, "7\n", SIZE_TYPE) == WitnessSize(7)
    wrong = cosigners(NAME)[0].cosign(note(9).partition("\n\n")[0] + "\n", 5)
    for status, body, kind, error in (
        (200, stranger, "text/plain", UnavailableError),
        (200, "", "text/plain", UnavailableError),
        (200, "\n", "text/plain", CheckpointError),
        (200, wrong, "text/plain", CheckpointError),
        (409, "x", SIZE_TYPE, UnavailableError),
        (409, "0\n", SIZE_TYPE, ConsistencyError),
        (409, "", "text/plain", ConsistencyError),
        (422, "", "text/plain", ConsistencyError),
        (404, "", "text/plain", UnavailableError),
        (500, "", "text/plain", UnavailableError),
    ):
        with pytest.raises(error):
            read(status, body, kind)


async def test_over_http_its_limits_hold(tmp_path):
    """A body above the limit, another method and another path get a status, not a failure."""
    async with our_witness(NAME, tmp_path, [SIGNER.vkey]) as url, aiohttp.ClientSession() as http:
        async with http.post(f"{url}/add-checkpoint", data=bytes(200_000)) as reply:
            assert reply.status == 413
        async with http.get(f"{url}/add-checkpoint") as reply:
            assert reply.status == 405
        async with http.post(f"{url}/x") as reply:
            assert reply.status == 404
        async with http.post(f"{url}/add-checkpoint", data=request(0, 5)) as reply:
            assert reply.status == 200


def test_keygen_writes_a_private_key(tmp_path):
    """A key is made once, into a private file, and its public half is printed."""
    out = tmp_path / "w.key"
    for algorithm in ("ed25519", "ml-dsa-44"):
        found = CliRunner().invoke(program, ["witness", "keygen", NAME, "--out", str(out), "--algorithm", algorithm])
        assert found.exit_code == 0, found.output
        assert Witness.from_vkey(found.stdout.strip()) == Cosigner.from_skey(out.read_text().strip()).witness
        assert out.stat().st_mode & 0o077 == 0
        again = CliRunner().invoke(program, ["witness", "keygen", NAME, "--out", str(out)])
        assert again.exit_code == 2
        out.unlink()


async def test_the_command_serves(tmp_path):
    """`bulkhead-audit witness serve` prints its URL, cosigns, and ends on SIGTERM."""
    out = tmp_path / "w.key"
    made = CliRunner().invoke(program, ["witness", "keygen", NAME, "--out", str(out)])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from audit.cli import main; main()", "witness", "serve", "--key", str(out),
        "--state", str(tmp_path / "state"), "--log-key", SIGNER.vkey, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        async with aiohttp.ClientSession() as http, http.post(f"{url}add-checkpoint", data=request(0, 5)) as reply:
            lines = await reply.text()
        key = Witness.from_vkey(made.stdout.strip())
        assert open_cosigned(note(5) + lines, vkey=SIGNER.vkey, origin=ORIGIN, witnesses=[key], quorum=1)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()


def test_a_parser_s_failure_is_ours():
    """No text makes the request's parser fail with anything but our own error."""
    for body in (b"old \xd9\xa0\n\n", b"old 0\n\xc2\xa0\n\n", b"old\n\n"):
        with pytest.raises(MalformedRequestError):
            AddCheckpoint.parse(body)
