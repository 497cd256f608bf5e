"""Confidential workers of the tests' own: a processor and GPUs under test roots, and the collateral that proves them.

``HardwareWorld().evidence()`` is accepted under ``policy()`` by ``verifier()``; every part can be made otherwise.
"""

import base64
import dataclasses
import datetime as dt
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation import (
    AttestationRequest,
    EvidenceBatch,
    EvidenceKind,
    HardwareRoots,
    HardwareVerifier,
    PartitionDescriptor,
    Tier,
    TrustPolicy,
)
from bulkhead.attestation.collateral import CollateralEntry, CollateralItem, CollateralPolicy
from bulkhead.attestation.collateral.amd import crl_item, vcek_item
from bulkhead.attestation.collateral.cache import CollateralCache, Fetcher
from bulkhead.attestation.collateral.intel import tdx_items
from bulkhead.attestation.collateral.nvidia import ocsp_item, rim_item
from bulkhead.attestation.collateral.store import CollateralStore
from bulkhead.attestation.nvidia import driver_rim_id, parse_report
from bulkhead.attestation.parts import GpuPart, GpuParts, ProcessorPart
from bulkhead.attestation.policy import Technology
from bulkhead.attestation.snp import SnpProduct, read_snp_report
from bulkhead.attestation.tdx import parse_quote
from bulkhead.sealing import WorkerKeys
from tests.simulator import nvidia_world, snp_machine, tdx_world
from tests.simulator.nvidia_world import Signer
from tests.simulator.snp_machine import Machine
from tests.simulator.tdx_world import TdxWorld

NOW_S = tdx_world.NOW_S
NOW = dt.datetime.fromtimestamp(NOW_S, dt.UTC)
NONCE = bytes(range(32))
CONTEXT = b"session context"
MODEL_DIGEST = b"\x4d" * 32
VCEK_GUID = bytes.fromhex("63da758de6644564adc5f4b93be8accd")


@cache
def device(number: int) -> tuple[Signer, ...]:
    """The identities of GPU ``number``: its own attestation key and boot ROM under the world's authorities."""
    if number == 0:
        return nvidia_world.world().device
    above = nvidia_world.world().device[2:]
    brom = nvidia_world.certify("GH100 A01 GSP BROM", issuer=above[0], authority=True)
    extensions = [nvidia_world.composite_device_id(nvidia_world.FWID)]
    leaf = nvidia_world.certify("GH100 A01 GSP FMC LF", issuer=brom, authority=False, extensions=extensions)
    return (leaf, brom, *above)


@cache
def worker_keys() -> WorkerKeys:
    """Keys of a worker."""
    return keys_of("part-1.tray-1.example", 1)


def keys_of(authority: str, seed: int) -> WorkerKeys:
    """Keys of a worker of that name."""
    return WorkerKeys.generate(authority=authority, now_s=NOW_S, random_bytes=random.Random(seed).randbytes)


def certificate_table(machine: Machine) -> bytes:
    """The table in which a host hands out a machine's VCEK."""
    der = machine.leaf().public_bytes(Encoding.DER)
    return VCEK_GUID + (48).to_bytes(4, "little") + len(der).to_bytes(4, "little") + bytes(24) + der


def descriptor(gpus: Sequence[str], **changes: Any) -> PartitionDescriptor:
    """What a confidential worker's agent says of its partition."""
    values: dict[str, Any] = {
        "partition": "part_1", "tenant": "tenant_1", "tier": Tier.CONFIDENTIAL, "simulated": False,
        "region": "eu-central", "rack": "rack-1", "tray": "0", "agent": "agent-1", "gpus": tuple(gpus),
        "memory_mib": 81_559, "ticket_issuers": (bytes(32),), "model": "m", "model_digest": MODEL_DIGEST,
        "software": "bulkhead",
    }  # fmt: skip
    return PartitionDescriptor(**{**values, **changes})


@dataclass(kw_only=True)
class HardwareWorld:
    """One confidential worker; the defaults hold together.

    Attributes:
        directory: of the collateral cache.
        technology: of the processor.
        gpus: numbers of its GPUs.
        machine: of SEV-SNP.
        td: of TDX.
    """

    directory: Path
    technology: Technology = Technology.SNP
    gpus: tuple[int, ...] = (0, 1)
    machine: Machine = field(default_factory=Machine)
    td: TdxWorld = field(default_factory=TdxWorld)
    keys: WorkerKeys = field(default_factory=worker_keys)
    auxiliary: bool = True  # whether the host hands out the VCEK

    @property
    def uuids(self) -> tuple[str, ...]:
        """By which the descriptor names the GPUs."""
        return tuple(f"GPU-{number}" for number in self.gpus)

    def processor(self, statement: bytes) -> ProcessorPart:
        """What the processor says of ``statement``."""
        if self.technology is Technology.TDX:
            return ProcessorPart(
                technology=Technology.TDX, quote=dataclasses.replace(self.td, report_data=statement).quote()
            )
        report = self.machine.report(changes=[(0x50, statement)])
        return ProcessorPart(
            technology=Technology.SNP,
            quote=report,
            auxiliary=certificate_table(self.machine) if self.auxiliary else b"",
        )

    def gpu(self, number: int, nonce: bytes) -> GpuPart:
        """What a GPU says to ``nonce``."""
        own = device(number)
        return GpuPart(
            uuid=f"GPU-{number}",
            report=nvidia_world.report(own[0], nonce=nonce),
            certificates=nvidia_world.pem(own),
        )

    def evidence(
        self,
        *,
        requests: Sequence[AttestationRequest] = (AttestationRequest(nonce=NONCE, context=CONTEXT),),
        not_after_s: int = NOW_S + 3600,
        gpu_parts: Callable[[bytes], Sequence[GpuPart]] | None = None,
        processor: Callable[[bytes], ProcessorPart] | None = None,
        kind: EvidenceKind = EvidenceKind.HARDWARE,
        keyset: bytes | None = None,
        signer: bytes = b"",
        **changes: Any,
    ) -> bytes:
        """Return encoded evidence for the last of ``requests``, with parts or fields of the descriptor replaced."""
        batch = EvidenceBatch(requests, keyset=keyset if keyset is not None else self.keys.keyset.encoded)
        made = gpu_parts(batch.gpu_nonce) if gpu_parts else [self.gpu(n, batch.gpu_nonce) for n in self.gpus]
        parts = GpuParts(tuple(made)).encode() if made else b""
        about = descriptor(**{"gpus": self.uuids, **changes})
        statement = batch.statement(device=parts, descriptor=about, not_after_s=not_after_s)
        quote = (processor or self.processor)(statement).encode()
        return batch.evidence(
            kind=kind, descriptor=about, device=parts, not_after_s=not_after_s, quote=quote, signer=signer
        )[-1]

    def policy(self, **changes: Any) -> TrustPolicy:
        """What a tenant of this worker would write."""
        return TrustPolicy(**{"snp": snp_machine.policy(), "tdx": tdx_world.policy(), **changes})

    def store(self, *, ocsp_from: dt.datetime | None = None) -> CollateralStore:
        """The collateral of this worker in its directory."""
        store = CollateralStore(self.directory)
        for item, data, chain in self.collateral(ocsp_from=ocsp_from):
            store.put(entry(item, data, chain))
        return store

    def collateral(self, *, ocsp_from: dt.datetime | None = None) -> list[tuple[CollateralItem, bytes, bytes]]:
        """Every piece that verification may look for: item, data, chain."""
        pieces = [*self._gpu_collateral(ocsp_from or NOW - dt.timedelta(hours=1)), *self._tdx_collateral()]
        if any(self.machine.full_hwid) and self.machine.product is SnpProduct.TURIN:
            item = vcek_item(read_snp_report(self.machine.report()), self.machine.product)
            pieces.append((item, self.machine.leaf().public_bytes(Encoding.DER), b""))
            crl = snp_machine.crl("ARK-Turin").public_bytes(Encoding.DER)
            pieces.append((crl_item(self.machine.product, self.machine.signing_key), crl, b""))
        return pieces

    def cache(
        self,
        *,
        store: CollateralStore | None = None,
        fetcher: Fetcher | None = None,
        policy: CollateralPolicy | None = None,
        now_s: int = NOW_S,
    ) -> CollateralCache:
        """A cache over ``store`` (the world's own, if None)."""
        return CollateralCache(
            store=store if store is not None else self.store(),
            policy=policy or CollateralPolicy(),
            fetcher=fetcher,
            now_s=lambda: now_s,
        )

    def verifier(self, **options: Any) -> HardwareVerifier:
        """A verifier of hardware evidence under the test roots."""
        return HardwareVerifier(collateral=self.cache(**options), roots=roots())

    def _gpu_collateral(self, ocsp_from: dt.datetime) -> list[tuple[CollateralItem, bytes, bytes]]:
        claims = parse_report(nvidia_world.report(device(0)[0]))
        rims = [
            (rim_item(driver_rim_id("GH100", claims)), nvidia_world.driver_manifest(), b""),
            (rim_item(claims.vbios_rim_id), nvidia_world.vbios_manifest(), b""),
        ]
        chains = [device(number)[1:] for number in self.gpus] + [nvidia_world.world().rim]
        pairs = {pair[0].certificate: pair for chain in chains for pair in itertools.pairwise(chain)}
        answers = [
            (
                ocsp_item(signer.certificate, issuer.certificate, nonce=bytes(32)),
                nvidia_world.ocsp_answer(signer.certificate, issuer, this_update=ocsp_from),
                b"",
            )
            for signer, issuer in pairs.values()
        ]
        return [*rims, *answers]

    def _tdx_collateral(self) -> list[tuple[CollateralItem, bytes, bytes]]:
        collateral, items = self.td.collateral(), tdx_items(parse_quote(self.td.quote()))
        chain = collateral.tcb_info_issuer_chain
        return [
            (items.tcb_info, answer("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature), chain),
            (
                items.qe_identity,
                answer("enclaveIdentity", collateral.qe_identity, collateral.qe_identity_signature),
                chain,
            ),
            (items.pck_crl, collateral.pck_crl, chain),
            (items.root_crl, collateral.root_ca_crl, b""),
        ]


def roots() -> HardwareRoots:
    """The authorities of the tests."""
    return HardwareRoots(snp=snp_machine.snp_roots(), tdx=tdx_world.roots(), nvidia=nvidia_world.world().roots)


def answer(member: str, document: bytes, signature: bytes) -> bytes:
    """What Intel's service answers: the document's bytes as they are, and the signature behind them."""
    return b'{"%s":%s,"signature":"%s"}' % (member.encode(), document, signature.hex().encode())


def rim_answer(manifest: bytes) -> bytes:
    """What NVIDIA's RIM service answers."""
    coded = base64.b64encode(manifest).decode()
    return json.dumps({"id": "x", "rim": coded, "sha256": hashlib.sha256(manifest).hexdigest()}).encode()


def entry(item: CollateralItem, data: bytes, chain: bytes = b"", fetched_s: int = NOW_S - 60) -> CollateralEntry:
    """A piece of collateral as it lies in a cache."""
    return CollateralEntry(kind=item.kind, name=item.name, data=data, chain=chain, fetched_s=fetched_s, source=item.url)
