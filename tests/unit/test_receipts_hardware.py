"""Saved receipts that stand on hardware evidence: generated processors and GPUs, verified offline by the command."""

import json
from dataclasses import dataclass, field, fields, replace

import pytest
from click.testing import CliRunner

from bulkhead.attestation import EvidenceKind, Tier, VerifiedWorker
from bulkhead.attestation.policy import Technology
from bulkhead.cli.program import program
from bulkhead.encoding import b64url_encode
from bulkhead.protocol.saved import verify_saved
from tests.simulator import nvidia_world, snp_machine, tdx_world
from tests.simulator.fake_platform import API_KEY
from tests.simulator.hardware_world import NOW_S, HardwareWorld
from tests.simulator.pki import Authority
from tests.simulator.saved_receipts import saved_answer
from tests.simulator.sealed_world import World

SNP = (
    f'[profile.test.trust.snp]\nmeasurements = ["{snp_machine.MEASUREMENT.hex()}"]\n'
    "[profile.test.trust.snp.tcb_floors.turin]\nsnp = 4\n"
)
TDX = f'[[profile.test.trust.tdx.images]]\nmr_td = "{tdx_world.MR_TD.hex()}"\n' + "".join(
    f'rtmr{number} = "{value.hex()}"\n' for number, value in enumerate(tdx_world.RTMRS)
)


@dataclass
class HardwareSession(World):
    """A session whose worker is attested by a processor and two GPUs."""

    tier: Tier = Tier.CONFIDENTIAL
    rooted: bool = True
    now_s: int = NOW_S
    hardware: HardwareWorld = field(kw_only=True)

    def descriptor(self):
        """Name the GPUs that the reports are of."""
        return replace(super().descriptor(), gpus=self.hardware.uuids)

    def vouch(self, requests, descriptor, *, not_after_s):
        """Let the hardware quote what an operator would have signed."""
        about = {item.name: getattr(descriptor, item.name) for item in fields(descriptor)}
        return self.hardware.evidence(
            requests=requests, keyset=self.keys.keyset.encoded, not_after_s=not_after_s, **about
        )

    def anchors(self):
        """Accept hardware evidence alone, under the test roots."""
        return replace(
            super().anchors(),
            trust_policy=self.hardware.policy(),
            hardware=self.hardware.verifier(),
        )


@pytest.fixture(params=[Technology.SNP, Technology.TDX], ids=lambda technology: technology.value)
def session(request, tmp_path):
    """A session on hardware of either technology; its collateral lies in a cache."""
    return HardwareSession(hardware=HardwareWorld(directory=tmp_path / "cache", technology=request.param))


@pytest.fixture
def saved(session):
    """What its SDK saves of a whole answer."""
    whole = saved_answer(session)
    anchors = session.anchors()
    entries = anchors.hardware.collateral_for(whole.offer.evidence, trust_policy=anchors.trust_policy)
    return replace(whole, collateral=entries)


@pytest.fixture
def test_roots(monkeypatch):
    """The installed program trusts the tests' authorities."""
    monkeypatch.setattr("bulkhead.attestation.snp.verify.amd_roots", snp_machine.snp_roots)
    monkeypatch.setattr("bulkhead.attestation.tdx.verify.intel_roots", tdx_world.roots)
    monkeypatch.setattr("bulkhead.attestation.nvidia.verify.nvidia_roots", lambda: nvidia_world.world().roots)


def told(session, saved, tmp_path, *, trust=SNP + TDX):
    """Run `bulkhead receipt verify FILE --json` with an empty cache; return exit status, JSON and standard error."""
    (tmp_path / "receipt.json").write_bytes(saved.encode())
    (tmp_path / "ca.pem").write_bytes(Authority("nobody's").root_pem)
    (tmp_path / "acme.key").touch(mode=0o600)
    (tmp_path / "acme.key").write_text(API_KEY)
    (tmp_path / "config.toml").write_text(
        f"""
        [profile.test]
        address = "127.0.0.1:1"
        ca_file = "ca.pem"
        api_key_file = "acme.key"
        tenant = "{session.tenant}"
        log_vkey = "{session.log.vkey}"
        ticket_issuer = "{b64url_encode(session.issuer.public_key)}"
        tenant_root_fingerprint = "{session.tenant_root.hex()}"
        collateral_directory = "{tmp_path / "nothing"}"
        {trust}
        """
    )
    command = ("receipt", "verify", str(tmp_path / "receipt.json"), "--json")
    done = CliRunner().invoke(program, ["--config", str(tmp_path / "config.toml"), "--profile", "test", *command])
    return done.exit_code, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.mark.usefixtures("test_roots")
def test_receipt_on_hardware_is_verified_offline(session, saved, tmp_path):
    """File and pins are enough: tier confidential, not simulated, with the collateral that the file carries."""
    code, proven, error = told(session, saved, tmp_path)
    assert (code, error) == (0, "")
    assert (proven["verified"], proven["tier"], proven["simulated"]) == (True, "confidential", False)
    assert (proven["usage"]["completion_tokens"], proven["counted_by_client"]) == (2, True)


@pytest.mark.usefixtures("test_roots")
def test_receipt_without_its_collateral_proves_nothing(session, saved, tmp_path):
    """What the vendors published is part of the proof: without it the evidence is refused, and nothing is fetched."""
    code, _, error = told(session, replace(saved, collateral=()), tmp_path)
    assert (code, error) == (1, error)
    assert "error EVIDENCE" in error


@pytest.mark.usefixtures("test_roots")
def test_receipt_of_another_image_is_refused(session, saved, tmp_path):
    """The reader's own policy judges: a measurement that it does not name is EVIDENCE_POLICY."""
    code, _, error = told(session, saved, tmp_path, trust="")
    assert (code, error) == (1, error)
    assert "error EVIDENCE_POLICY" in error


def test_receipt_under_other_roots_is_refused(session, saved, tmp_path):
    """The vendors' pinned roots do not vouch for hardware of somebody's making."""
    code, _, error = told(session, saved, tmp_path)
    assert (code, error) == (1, error)
    assert "error EVIDENCE" in error


def test_worker_is_verified_as_hardware(session, saved):
    """What the receipt rests on is a VerifiedWorker of kind hardware, of the processor's own technology."""
    proven = verify_saved(saved, tenant=session.tenant, anchors=session.anchors())
    assert isinstance(proven.grant.worker, VerifiedWorker)
    assert proven.grant.worker.kind is EvidenceKind.HARDWARE
