"""A tenant's root in the SDK: each session key is certified, and the worker's root is the configured one."""

import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation import Tier
from bulkhead.attestation.descriptor import key_fingerprint
from bulkhead.cli.program import program
from bulkhead.client import AsyncBulkhead, Bulkhead, RootPin
from bulkhead.client.audit import AuditLog
from bulkhead.client.config import load_profile
from bulkhead.errors import (
    CertificateExpiredError,
    CertificateKeyError,
    CertificateMissingError,
    CertificateTenantError,
    ConfigError,
    KeyBrokerError,
    TenantRootMismatchError,
    TenantRootRequiredError,
)
from bulkhead.protocol.certificates import SessionCertificate, issue_certificate, read_certificate
from bulkhead.protocol.receipts import Receipt
from bulkhead.protocol.saved import LoggedReceipt
from tests.simulator.fake_platform import ANSWER, API_KEY, AUTHORITY, FakePlatform, running_platform
from tests.simulator.saved_receipts import logged, saved_answer
from tests.simulator.sealed_world import MODEL, World


@pytest.fixture
async def platform() -> AsyncIterator[FakePlatform]:
    """A platform whose tenant has a root; its worker demands certificates."""
    async with running_platform(rooted=True) as running:
        yield running


class Signer:
    """A root that a program brings; it keeps what it signed, and fails when told to."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.signed: list[bytes] = []
        self.failing = False

    @property
    def public_key(self) -> bytes:
        """Raw public key."""
        return self.key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Sign, or be out of reach."""
        if self.failing:
            raise KeyBrokerError("the token is not there")
        self.signed.append(message)
        return self.key.sign(message)


def certificate(platform: FakePlatform, key: Ed25519PrivateKey, **changes: Any) -> bytes:
    """Return a certificate as it is issued elsewhere."""
    now_s, world = int(time.time()), platform.world
    said = SessionCertificate(
        tenant=world.tenant,
        root=world.root.public_key().public_bytes_raw(),
        cnf=key.public_key().public_bytes_raw(),
        not_before_s=now_s,
        not_after_s=now_s + 600,
    )
    return issue_certificate(replace(said, **changes), sign=world.root.sign)


async def test_each_session_key_is_certified_and_again_at_each_renewal(platform: FakePlatform) -> None:
    """Answers, receipts and renewals go on under a root; each session has a key and certificates of its own."""
    certificates = []
    async with AsyncBulkhead(profile=platform.profile()) as client:
        for _ in range(2):
            async with client.open_session(model=MODEL) as session:
                completion = await session.generate_text("hi")
                assert completion.text == "".join(ANSWER)
                await session.fetch_receipt(completion.request_id)
                certificates.append(read_certificate(session.link.sealing.certificate))
                platform.world.now_s += 1
                await session.renew()
                assert (await session.generate_text("hi")).text == "".join(ANSWER)
                certificates.append(read_certificate(session.link.sealing.certificate))
    assert platform.renewals == 2
    assert {key_fingerprint(found.root) for found in certificates} == {platform.world.tenant_root}
    assert certificates[0].cnf == certificates[1].cnf != certificates[2].cnf == certificates[3].cnf
    assert all(3_600 <= found.not_after_s - found.not_before_s <= 3_660 for found in certificates)


async def test_a_root_that_lives_elsewhere_signs(platform: FakePlatform) -> None:
    """A program's own signer certifies; when it is out of reach nothing is opened, and its error is the caller's."""
    signer = Signer(platform.world.root)
    profile = platform.profile(root=RootPin(fingerprint=platform.world.tenant_root))
    async with AsyncBulkhead(profile=profile, root_signer=signer) as client:
        async with client.open_session(model=MODEL) as session:
            assert (await session.generate_text("hi")).text == "".join(ANSWER)
            await session.renew()
        assert len(signer.signed) == 2
        assert all(message.startswith(b"bulkhead/v1 session key") for message in signer.signed)
        signer.failing = True
        with pytest.raises(KeyBrokerError):
            await client.open_session(model=MODEL)
    assert len(platform.opens) == 1


async def test_a_certificate_issued_elsewhere_is_read_anew(platform: FakePlatform, tmp_path: Path) -> None:
    """Key and certificate from files serve sessions; one that was replaced in time is used at the next renewal."""
    key = Ed25519PrivateKey.generate()
    profile = with_files(platform, tmp_path, key, certificate(platform, key))
    async with AsyncBulkhead(profile=profile) as client, client.open_session(model=MODEL) as session:
        assert (await session.generate_text("hi")).text == "".join(ANSWER)
        longer = certificate(platform, key, not_after_s=int(time.time()) + 900)
        (tmp_path / "session.cert").write_bytes(longer)
        await session.renew()
        assert session.link.sealing.certificate == longer
        assert (await session.generate_text("hi")).text == "".join(ANSWER)


def with_files(platform: FakePlatform, directory: Path, key: Ed25519PrivateKey, issued: bytes) -> Any:
    """Return the profile of a machine without the root."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = directory / "session.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    (directory / "session.cert").write_bytes(issued)
    return platform.profile(
        root=RootPin(
            fingerprint=platform.world.tenant_root, session_key_file=path, certificate_file=directory / "session.cert"
        )
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cnf": bytes(32)}, CertificateKeyError),
        ({"tenant": "tenant_01h455vb4pex5vsknk084sn02q"}, CertificateTenantError),
        ({"not_before_s": 1_700_000_000, "not_after_s": 1_700_000_600}, CertificateExpiredError),
        (None, CertificateMissingError),
    ],
    ids=["key", "tenant", "expired", "empty"],
)
async def test_a_certificate_that_does_not_hold_opens_nothing(
    platform: FakePlatform, tmp_path: Path, changes: dict[str, Any] | None, error: type[Exception]
) -> None:
    """A certificate of another key or tenant, an old one and an empty file are refused before anything is sent."""
    key = Ed25519PrivateKey.generate()
    issued = b"" if changes is None else certificate(platform, key, **changes)
    async with AsyncBulkhead(profile=with_files(platform, tmp_path, key, issued)) as client:
        with pytest.raises(error):
            await client.open_session(model=MODEL)
    assert not platform.opens


async def test_a_worker_of_another_root_gets_no_prompt(platform: FakePlatform) -> None:
    """A root swapped in the tenant's record is refused, and so is a record without the root."""
    world, own = platform.world, platform.world.root
    profile = platform.profile()
    async with AsyncBulkhead(profile=profile) as client:
        world.root = Ed25519PrivateKey.generate()
        with pytest.raises(TenantRootMismatchError):
            await client.open_session(model=MODEL)
        world.rooted = False
        with pytest.raises(TenantRootMismatchError):
            await client.open_session(model=MODEL)
        world.root, world.rooted = own, True
        async with client.open_session(model=MODEL) as session:
            await session.generate_text("hi")
            world.root = Ed25519PrivateKey.generate()
            with pytest.raises(TenantRootMismatchError):
                await session.renew()
            world.root = own
    assert platform.worker_calls == 1
    assert len(platform.closed) == 3


async def test_a_client_without_a_root(platform: FakePlatform) -> None:
    """It uses no worker that demands one, asks for nothing at tier confidential, and says so by name."""
    async with AsyncBulkhead(profile=platform.profile(root=RootPin())) as client:
        with pytest.raises(TenantRootRequiredError, match="none is configured"):
            await client.open_session(model=MODEL)
        opened = len(platform.opens)
        with pytest.raises(TenantRootRequiredError, match="confidential"):
            await client.open_session(model=MODEL, tier=Tier.CONFIDENTIAL)
        assert len(platform.opens) == opened
    assert platform.worker_calls == 0


async def test_a_fingerprint_alone_opens_nothing(platform: FakePlatform) -> None:
    """An officer's profile names the root to verify receipts; opening a session says what is missing."""
    profile = platform.profile(root=RootPin(fingerprint=platform.world.tenant_root))
    async with AsyncBulkhead(profile=profile) as client:
        with pytest.raises(ConfigError, match="tenant_root_key_file"):
            await client.open_session(model=MODEL)


async def test_a_signer_that_is_not_the_pinned_root(platform: FakePlatform) -> None:
    """A program's signer must be the root that the profile pins, and the only one."""
    stranger = Signer(Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError, match="another key"):
        AsyncBulkhead(profile=platform.profile(root=RootPin(fingerprint=bytes(32))), root_signer=stranger)
    with pytest.raises(ConfigError, match="twice"):
        Bulkhead(profile=platform.profile(), root_signer=stranger)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(program, [*arguments, "--json"])


class TestFiles:
    """`bulkhead root` and the profile's keys."""

    def test_a_root_is_made_once_in_a_private_file(self, tmp_path: Path) -> None:
        """`root new` prints the fingerprint that `root show` prints again, and never overwrites a root."""
        path = tmp_path / "root.pem"
        made = json.loads(run("root", "new", str(path)).output)
        assert path.stat().st_mode & 0o777 == 0o600
        assert json.loads(run("root", "show", str(path)).output) == made
        public = base64.urlsafe_b64decode(made["public_key"] + "=")
        assert made["fingerprint"] == key_fingerprint(public).hex()
        before = path.read_bytes()
        assert run("root", "new", str(path)).exit_code == 1
        assert path.read_bytes() == before
        path.chmod(0o644)
        assert "others can read" in run("root", "show", str(path)).stderr

    def test_a_session_key_is_certified_where_the_root_is(self, tmp_path: Path) -> None:
        """Key there, root here: the certificate says what was asked, and `root check` shows it."""
        root, key, out = tmp_path / "root.pem", tmp_path / "session.pem", tmp_path / "session.cert"
        tenant = "tenant_01h455vb4pex5vsknk084sn02q"
        fingerprint = json.loads(run("root", "new", str(root)).output)["fingerprint"]
        public = json.loads(run("root", "session-key", str(key)).output)["session_key"]
        options = ("--root", str(root), "--tenant", tenant, "--out", str(out))
        for hours in ("24", "1"):
            done = run("root", "certify", "--session-key", public, *options, "--hours", hours)
            assert done.exit_code == 0, done.output
        said = json.loads(run("root", "check", str(out)).output)
        assert said["root_fingerprint"] == fingerprint
        assert said["holds_now"]
        assert said["certificate"]["tenant"] == tenant
        assert said["certificate"]["not_after_s"] - said["certificate"]["not_before_s"] == 3_600
        assert run("root", "certify", "--session-key", "AAAA", *options).exit_code == 2
        assert run("root", "certify", "--session-key", public, *options, "--hours", "25").exit_code == 2
        out.write_bytes(out.read_bytes()[:-2])
        assert "CERTIFICATE_INVALID" in run("root", "check", str(out)).stderr

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            ('session_key_file = "root.pem"', "session_certificate_file"),
            ('session_key_file = "root.pem"\nsession_certificate_file = "c"', "tenant_root_fingerprint"),
            ('tenant_root_key_file = "root.pem"\ntenant_root_fingerprint = "{other}"', "another key"),
            ('tenant_root_fingerprint = "short"', "64 lower-case"),
            ('tenant_root_key_file = "absent.pem"', "cannot be read"),
            ('tenant_root_key_file = "config.toml"', "not a private key"),
        ],
    )
    def test_a_profile_that_contradicts_itself_is_refused(self, tmp_path: Path, lines: str, reason: str) -> None:
        """A root that is given by halves, twice or wrongly is an error of the profile."""
        made = json.loads(run("root", "new", str(tmp_path / "root.pem")).output)
        common = '[profile.p]\naddress = "a:1"\nca_file = "root.pem"\nclient_certificate_file = "root.pem"\n'
        common += 'client_key_file = "root.pem"\ntenant = "tenant_01h455vb4pex5vsknk084sn02q"\n'
        config = tmp_path / "config.toml"
        config.write_text(common + 'tenant_root_key_file = "root.pem"\n')
        assert load_profile(path=config, environ={}).root.fingerprints == (bytes.fromhex(made["fingerprint"]),)
        config.write_text(common + lines.replace("{other}", "00" * 32))
        with pytest.raises(ConfigError, match=reason):
            load_profile(path=config, environ={})


class TestReceipts:
    """`bulkhead receipt verify` under the roots that the profile and the command line name."""

    @classmethod
    def verify(cls, directory: Path, world: World, *options: str, root: str = "") -> Result:
        """Run the command on a saved receipt of a world."""
        (directory / "receipt.json").write_bytes(saved_answer(world).encode())
        return cls.run(directory, world, "receipt", "verify", str(directory / "receipt.json"), *options, root=root)

    @staticmethod
    def run(directory: Path, world: World, *arguments: str, root: str = "") -> Result:
        """Run a command with a profile of the world's tenant that pins ``root``."""
        (directory / "ca.pem").write_bytes(AUTHORITY.root_pem)
        (directory / "test.key").touch(mode=0o600)
        (directory / "test.key").write_text(API_KEY)
        issuer = base64.urlsafe_b64encode(world.issuer.public_key).rstrip(b"=").decode()
        operator = base64.urlsafe_b64encode(world.evidence_issuer.public_key).rstrip(b"=").decode()
        (directory / "config.toml").write_text(
            f"""
            [profile.test]
            address = "127.0.0.1:1"
            ca_file = "ca.pem"
            api_key_file = "test.key"
            tenant = "{world.tenant}"
            log_vkey = "{world.log.vkey}"
            ticket_issuer = "{issuer}"
            {root}
            [profile.test.trust]
            accepted_kinds = ["operator"]
            operator_keys = ["{operator}"]
            minimum_tier = "gpu"
            """
        )
        profile = ("--config", str(directory / "config.toml"), "--profile", "test")
        return CliRunner().invoke(program, [*profile, *arguments, "--json"])

    def test_a_receipt_names_the_root_that_it_rests_on(self, tmp_path: Path) -> None:
        """With the root pinned it verifies and is named; with another pinned, or none, it is refused for that."""
        world = World(rooted=True)
        own = (world.tenant_root or b"").hex()
        pinned, other = f'tenant_root_fingerprint = "{own}"', f'tenant_root_fingerprint = "{"00" * 32}"'
        told = self.verify(tmp_path, world, root=pinned)
        assert (told.exit_code, json.loads(told.stdout)["tenant_root"]) == (0, own)
        assert "TENANT_ROOT_MISMATCH" in self.verify(tmp_path, world, root=other).stderr
        assert "TENANT_ROOT_REQUIRED" in self.verify(tmp_path, world).stderr
        assert "TENANT_ROOT_MISMATCH" in self.verify(tmp_path, World(), root=pinned).stderr

    def test_a_receipt_from_before_the_root_was_replaced(self, tmp_path: Path) -> None:
        """It verifies with the root of then, named on the command line."""
        world = World(rooted=True)
        now = f'tenant_root_fingerprint = "{"00" * 32}"'
        then = ("--tenant-root", (world.tenant_root or b"").hex())
        assert self.verify(tmp_path, world, *then, root=now).exit_code == 0
        assert self.verify(tmp_path, world, "--tenant-root", "short", root=now).exit_code == 2

    def test_such_a_receipt_is_proven_to_be_in_the_log(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`audit prove --receipt` takes the root of then too; without it the log is not asked, nothing is kept."""
        world, file = World(rooted=True), tmp_path / "receipt.json"
        saved = saved_answer(world)
        file.write_bytes(saved.encode())
        asked = []

        async def receipt_proof(log: AuditLog, receipt: Receipt, digest: bytes) -> LoggedReceipt:
            asked.append((receipt.number, digest))
            return logged(world, saved)

        monkeypatch.setattr(AuditLog, "receipt_proof", receipt_proof)
        now, then = f'tenant_root_fingerprint = "{"00" * 32}"', (world.tenant_root or b"").hex()
        prove = ("audit", "prove", "--receipt", str(file), "--save")
        for root, code in ((now, "TENANT_ROOT_MISMATCH"), ("", "TENANT_ROOT_REQUIRED")):
            refused = self.run(tmp_path, world, *prove, root=root)
            assert (refused.exit_code, code in refused.stderr) == (1, True)
        wrong = self.run(tmp_path, world, *prove, "--tenant-root", "11" * 32, root=now)
        assert "TENANT_ROOT_MISMATCH" in wrong.stderr
        assert (asked, file.read_bytes()) == ([], saved.encode())
        told = self.run(tmp_path, world, *prove, "--tenant-root", then, root=now)
        assert (told.exit_code, json.loads(told.stdout)["tenant_root"]) == (0, then)
        assert json.loads(told.stdout)["log"]["record"].startswith("rec_")
        assert asked == [(1, saved.signed.digest)]
        again = self.run(tmp_path, world, "receipt", "verify", str(file), "--tenant-root", then, root=now)
        assert json.loads(again.stdout)["log"] == json.loads(told.stdout)["log"]
        assert self.run(tmp_path, world, "audit", "prove", "7", "--tenant-root", then, root=now).exit_code == 2
