"""tlog-proof files and witnessed exports: written by a platform with a witness, verified offline; changes refused."""

import asyncio
import base64
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit.config import WitnessTarget
from bulkhead.cli.program import program
from bulkhead.errors import BulkheadError, CheckpointError, ConsistencyError, ProofError
from bulkhead.transparency.cosignature import Witness
from bulkhead.transparency.export import verify_export
from bulkhead.transparency.tlog_proof import TlogProof, read_record_proof, verify_record_proof, write_record_proof
from tests.simulator.audit_world import TENANT, decision, opened
from tests.simulator.go_tools import run_fsck
from tests.simulator.witnesses import our_witness, pinned

NAME = "witness.test/w1"
STRANGERS = pinned("witness.test/w2")


class Made:
    """What the platform handed out, and the keys to pin."""

    tenant_vkey: str
    platform_vkey: str
    proof: str
    alone: str
    export: bytes
    platform_export: bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("made")

    async def make() -> Made:
        found = Made()
        log = await opened(directory / "log")
        found.platform_vkey = log.vkey(1)
        await log.close()
        async with our_witness(NAME, directory / "w", [found.platform_vkey]) as url:
            target = WitnessTarget(url, tuple(key.vkey for key in pinned(NAME)))
            log = await opened(
                directory / "log", witnesses=(target,), witness_quorum=1, round_interval_s=0.05, publish_interval_s=0.05
            )
            info = await log.ensure_log(TENANT)
            for number in range(20):
                await log.append(info.log_id, decision(number=number))
            found.tenant_vkey = log.vkey(info.log_id)
            for _ in range(100):
                path = await log.round_path(info.log_id)
                if path is not None and path.checkpoint_text.split("\n")[1] == "21":
                    break
                await asyncio.sleep(0.05)
            await log.append(info.log_id, decision(number=20))
            found.proof = write_record_proof(await log.receipt(info.log_id, 7, size=21), path)
            found.alone = write_record_proof(await log.receipt(info.log_id, 7))
            stream, platform = io.BytesIO(), io.BytesIO()
            await log.export([info.log_id], stream)
            await asyncio.sleep(0.3)
            await log.export([1], platform)
            found.export, found.platform_export = stream.getvalue(), platform.getvalue()
            await log.close()
        return found

    return asyncio.run(make())


def test_a_proof_file_reads_back(made):
    """The file's parts give the file back."""
    for text in (made.proof, made.alone):
        assert TlogProof.parse(text).encode() == text
        proof = read_record_proof(text)
        assert write_record_proof(proof.receipt, proof.round) == text


def test_a_proof_proves_record_round_and_witness(made):
    """Offline, under pinned keys, a file shows the record, the round over its log, and who cosigned."""
    proven = verify_record_proof(
        made.proof, vkey=made.tenant_vkey, platform_vkey=made.platform_vkey, slot=0, witnesses=pinned(NAME), quorum=1
    )
    assert (proven.leaf.index, proven.leaf.size, proven.leaf.fields.session) == (7, 21, "sess_6")
    assert proven.round.checkpoint.size == 21
    assert [name for name, _ in proven.witnesses] == [NAME]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"witnesses": STRANGERS}, CheckpointError),
        ({"quorum": 2}, CheckpointError),
        ({"slot": 1}, ProofError),
        ({"platform_vkey": None}, ProofError),
    ],
)
def test_other_pins_are_refused(made, changes, error):
    """Another witness, a larger quorum, another slot, or a quorum without the platform's key is refused."""
    pins = {"platform_vkey": made.platform_vkey, "slot": 0, "witnesses": pinned(NAME), "quorum": 1} | changes
    with pytest.raises(error):
        verify_record_proof(made.proof, vkey=made.tenant_vkey, **pins)
    with pytest.raises(ProofError):
        verify_record_proof(made.proof, vkey=made.platform_vkey)


def test_a_proof_without_a_round_does_not_reach_the_platform(made):
    """A file without a round proves its record, and is refused where the platform's log is asked for."""
    assert verify_record_proof(made.alone, vkey=made.tenant_vkey).round is None
    with pytest.raises(ProofError, match="does not reach"):
        verify_record_proof(made.alone, vkey=made.tenant_vkey, platform_vkey=made.platform_vkey)


def test_any_changed_byte_is_refused(made):
    """Whatever byte of a file is changed, it is refused with our own error, or says the same."""
    pins = {"vkey": made.tenant_vkey, "platform_vkey": made.platform_vkey, "witnesses": pinned(NAME), "quorum": 1}
    wanted = verify_record_proof(made.proof, **pins)
    data = made.proof.encode()
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1
        try:
            found = verify_record_proof(changed.decode("utf-8", "replace"), **pins)
        except BulkheadError:
            continue
        assert found == wanted, at


def test_a_round_of_another_tree_is_refused(made):
    """A round glued to the proof of a larger tree is refused when it is written and when it is read."""
    whole, alone = read_record_proof(made.proof), read_record_proof(made.alone)
    with pytest.raises(ConsistencyError):
        write_record_proof(alone.receipt, whole.round)
    extra = json.loads(TlogProof.parse(made.proof).extra)
    outer = TlogProof.parse(made.alone)
    glued = TlogProof(
        outer.index, outer.proof, outer.checkpoint, json.dumps(extra, separators=(",", ":"), sort_keys=True).encode()
    )
    with pytest.raises(ProofError):
        verify_record_proof(glued.encode(), vkey=made.tenant_vkey, platform_vkey=made.platform_vkey)


@pytest.mark.parametrize(
    "text",
    [
        "", "c2sp.org/tlog-proof@v1", "c2sp.org/tlog-proof@v2\nindex 0\n\nx\n", "c2sp.org/tlog-proof@v1\nindex 01\n\nx",
        "c2sp.org/tlog-proof@v1\nextra !\nindex 0\n\nx", "c2sp.org/tlog-proof@v1\nindex 0\nAA==\n\nx",
        "c2sp.org/tlog-proof@v1\n\n\n", "c2sp.org/tlog-proof@v1\nindex 99999999999999999999\n\nx",
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused(text):
    """What is no proof file is refused with our own error."""
    with pytest.raises(ProofError):
        read_record_proof(text)


def test_an_export_says_what_witnesses_have_seen(made):
    """A tenant's export ties its records to a cosigned round; the platform's carries cosigned checkpoints."""
    keys = [made.tenant_vkey, made.platform_vkey]
    log = verify_export(io.BytesIO(made.export), vkeys=keys, witnesses=pinned(NAME), quorum=1).logs[0]
    assert (log.records, log.witnessed) == (22, 21)
    platform = verify_export(
        io.BytesIO(made.platform_export), vkeys=[made.platform_vkey], witnesses=pinned(NAME), quorum=1
    ).logs[0]
    assert 0 < platform.witnessed <= platform.records


def test_an_export_without_the_witness_is_refused(made):
    """Other witnesses, or a missing platform key, fail; without a quorum nothing is asked of witnesses."""
    keys = [made.tenant_vkey, made.platform_vkey]
    assert verify_export(io.BytesIO(made.export), vkeys=keys[:1]).logs[0].witnessed == 0
    for vkeys, witnesses, message in (
        (keys, STRANGERS, "no checkpoint in the export is cosigned"),
        (keys[:1], pinned(NAME), "no key is pinned for the platform's log"),
    ):
        with pytest.raises(CheckpointError, match=message):
            verify_export(io.BytesIO(made.export), vkeys=vkeys, witnesses=witnesses, quorum=1)


def test_a_moved_round_is_refused(made):
    """A round behind other records than its own is refused, and names the record."""
    lines = made.export.splitlines(keepends=True)
    (at,) = [number for number, line in enumerate(lines) if b'"type":"round"' in line]
    moved = [*lines[:5], lines[at], *lines[5:at], *lines[at + 1 :]]
    keys = [made.tenant_vkey, made.platform_vkey]
    with pytest.raises(ProofError, match="round after record 2"):
        verify_export(io.BytesIO(b"".join(moved)), vkeys=keys, witnesses=pinned(NAME), quorum=1)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(program, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_verifies_exports_proofs_and_tiles(made, tmp_path):
    """`bulkhead audit verify` takes an export, a proof file and a directory of tiles, offline, keys on the line."""
    export, proof, tiles = tmp_path / "log.jsonl", tmp_path / "rec.tlog-proof", tmp_path / "tiles"
    export.write_bytes(made.export)
    proof.write_text(made.proof)
    keys = ["--log-key", made.tenant_vkey, "--log-key", made.platform_vkey]
    witness = [item for key in pinned(NAME) for item in ("--witness", key.vkey)]
    found = json.loads(run("audit", "verify", export, *keys, *witness, "--json"))
    assert (found["records"], found["logs"][0]["witnessed"]) == (22, 21)
    found = json.loads(run("audit", "verify", proof, *keys, *witness, "--json"))
    assert (found["index"], list(found["witnesses"])) == (7, [NAME])
    assert f"cosigned   by {NAME}" in run("audit", "verify", proof, *keys, *witness)
    run("audit", "serve-tiles", export, "--log-key", made.tenant_vkey, "--out", tiles)
    assert json.loads(run("audit", "verify", tiles, *keys[:2], "--json"))["records"] == 22
    (tmp_path / "vkey").write_text(made.tenant_vkey)
    assert "Successfully fsck'd log with size 22" in run_fsck(tiles.as_uri(), tmp_path / "vkey")
    (tiles / "tile" / "entries" / "000.p" / "22").write_bytes(b"x")
    assert "tile/entries/000.p/22" in run("audit", "verify", tiles, *keys[:2], code=1)


def test_bad_input_names_what_is_wrong(made, tmp_path):
    """A truncated export, a corrupt record, another log's key: exit code 1, and line, record or log are named."""
    export = tmp_path / "log.jsonl"
    lines = made.export.splitlines(keepends=True)
    for data, key, message in (
        (made.export[:-30], made.tenant_vkey, "truncated"),
        (b"".join(lines[:9]), made.tenant_vkey, "truncated at line 10"),
        (made.export.replace(b"sess_11", b"sess_99"), made.tenant_vkey, "record 12 (rec_"),
        (made.export, made.platform_vkey, "no key is pinned for the log"),
    ):
        export.write_bytes(data)
        assert message in run("audit", "verify", export, "--log-key", key, code=1)
    run("audit", "verify", export, "--log-key", made.tenant_vkey, "--quorum", 1, code=2)


def test_witness_keys_are_pinned_by_text(made):
    """The keys on the command line are those that a witness prints."""
    for key in pinned(NAME):
        assert Witness.from_vkey(key.vkey) == key
        assert base64.b64decode(key.vkey.split("+", 2)[2])[0] in (4, 6)


def test_paths_are_files(tmp_path: Path):
    """A file that does not exist is a usage error."""
    run("audit", "verify", tmp_path / "missing", "--log-key", "x", code=2)
