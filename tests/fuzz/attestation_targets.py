"""Fuzz targets of ``bulkhead.attestation``: every reader of evidence, collateral and certificates."""

import base64
import json
from collections.abc import Callable
from contextlib import suppress

from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.evidence import Evidence, EvidenceKind
from bulkhead.attestation.inputs import decode_text, load_certificates, load_crls
from bulkhead.attestation.nvidia import parse_report, parse_rim
from bulkhead.attestation.nvidia.fwid import parse_fwid
from bulkhead.attestation.nvidia.opaque import parse_opaque
from bulkhead.attestation.nvidia.revocation import OcspAnswers
from bulkhead.attestation.snp import SigningKey, SnpProduct, read_snp_report
from bulkhead.attestation.snp.endorsement import read_endorsement
from bulkhead.attestation.statement import batch_leaf
from bulkhead.attestation.tdx import decode_quote, parse_collateral, parse_quote
from bulkhead.attestation.tdx.collateral import load_lists
from bulkhead.attestation.tdx.documents import parse_qe_identity, parse_tcb_info
from bulkhead.attestation.tdx.pck import parse_sgx_extension
from bulkhead.attestation.tdx.tcb import check_module, check_quoting_enclave, evaluate_tcb
from bulkhead.errors import BulkheadError, EvidenceError
from tests.fuzz.registry import FuzzTarget

_KIB = 1024


def _endorsement(data: bytes) -> None:
    (leaf,) = load_certificates(data, what="leaf")[:1]
    for product in SnpProduct:
        for signing_key in (SigningKey.VCEK, SigningKey.VLEK):
            with suppress(EvidenceError):
                read_endorsement(leaf, product=product, signing_key=signing_key)


def _snp_reports() -> list[bytes]:
    from tests.simulator.snp_machine import Machine

    reports = [Machine().report(version=5), Machine(product=SnpProduct.GENOA).report(version=2)]
    return [*reports, reports[0].hex().encode(), base64.b64encode(reports[1])]


def _snp_leaves() -> list[bytes]:
    from tests.simulator.snp_machine import Machine

    machines = [Machine(), Machine(product=SnpProduct.GENOA), Machine(signing_key=SigningKey.VLEK)]
    return [machine.leaf().public_bytes(Encoding.DER) for machine in machines]


def _world_quotes() -> list[bytes]:
    from tests.simulator.tdx_world import TdxWorld

    return [TdxWorld(version=4).quote(), TdxWorld(version=5).quote(), TdxWorld(version=5, body_type=2).quote()]


def _tdx_quotes() -> list[bytes]:
    quotes = _world_quotes()
    return [*quotes, quotes[0].hex().encode()]


def _tdx_bundles() -> list[bytes]:
    from tests.simulator.tdx_world import TdxWorld, bundle

    return [json.dumps(bundle(TdxWorld().collateral())).encode()]


def _collateral(data: bytes) -> None:
    load_lists(parse_collateral(data))


def _tcb_infos() -> list[bytes]:
    from tests.simulator.tdx_world import tcb_info

    return [json.dumps(tcb_info()).encode()]


def _qe_identities() -> list[bytes]:
    from tests.simulator.tdx_world import qe_identity

    return [json.dumps(qe_identity()).encode()]


def _evaluate() -> Callable[[bytes], None]:
    """Return a parser of TCB infos that also evaluates a sound platform under what was read."""
    from tests.simulator.tdx_world import TdxWorld, qe_identity, sgx_extension

    platform = parse_sgx_extension(sgx_extension())
    quote = parse_quote(TdxWorld().quote())
    identity = parse_qe_identity(json.dumps(qe_identity()).encode())

    def evaluate(data: bytes) -> None:
        info = parse_tcb_info(data)
        with suppress(BulkheadError):
            check_module(quote.report, info, None)
            evaluate_tcb(platform=platform, report=quote.report, enclave=quote.qe_report, info=info, identity=identity)

    return evaluate


def _identify() -> Callable[[bytes], None]:
    enclave = parse_quote(_world_quotes()[0]).qe_report

    def identify(data: bytes) -> None:
        identity = parse_qe_identity(data)
        with suppress(BulkheadError):
            check_quoting_enclave(enclave, identity)

    return identify


def _sgx_extensions() -> list[bytes]:
    from tests.simulator.tdx_world import sgx_extension

    return [sgx_extension()]


def _gpu_reports() -> list[bytes]:
    from tests.simulator.nvidia_world import report, world

    raw = report(world().device[0])
    return [raw, raw.hex().encode()]


def _opaque() -> list[bytes]:
    from tests.simulator.nvidia_world import opaque

    headed = b"NVDAOD" + bytes.fromhex("0000") + b"\2\0" + bytes(2) + bytes.fromhex("030001000400") + b"1.2\0"
    return [opaque(), headed]


def _rims() -> list[bytes]:
    from tests.simulator.nvidia_world import DRIVER, manifest, world

    return [manifest(world().rim[:1], version=DRIVER, active={7: [bytes(48)], 23: [bytes(48), b"\1" * 48]})]


def _ocsp() -> list[bytes]:
    from tests.simulator.nvidia_world import good_answers

    return list(good_answers()[:2])


def _fwids() -> list[bytes]:
    from tests.simulator.nvidia_world import composite_device_id, tcb_info

    return [composite_device_id(bytes(48)).value, tcb_info(bytes(48), bytes(48)).value]


def _certificates() -> list[bytes]:
    from tests.simulator.nvidia_world import pem, world

    return [pem(world().device[:2]), _snp_leaves()[0]]


def _crls() -> list[bytes]:
    from tests.simulator.snp_machine import crl

    lists = [crl("ARK-Turin", (1, 4711)), crl("ARK-Genoa")]
    return [lists[0].public_bytes(Encoding.DER), lists[1].public_bytes(Encoding.PEM)]


def _decode(data: bytes) -> None:
    for size in (32, 96):
        with suppress(EvidenceError):
            decode_text(
                data, is_binary=lambda it, size=size: len(it) == size, max_bytes=size, what="x", error=EvidenceError
            )


def _texts() -> list[bytes]:
    from bulkhead.encoding import b64url_encode

    block = base64.encodebytes(bytes(96))
    return [
        bytes(32), b"0x" + b"0a" * 32, base64.b64encode(b"\xfb" * 32), b64url_encode(b"\xfb" * 32).encode(),
        b"-----BEGIN X-----\r\n" + block + b"-----END X-----\n",
    ]  # fmt: skip


def _containers() -> list[bytes]:
    from tests.simulator.sealed_world import World

    world = World(kind=EvidenceKind.OPERATOR)
    return [world.evidence(batch_leaf(bytes(32), b"context"))]


TARGETS = (
    FuzzTarget(name="snp-report", parse=read_snp_report, seeds=_snp_reports, max_bytes=6 * _KIB),
    FuzzTarget(name="snp-endorsement", parse=_endorsement, seeds=_snp_leaves, max_bytes=4 * _KIB),
    FuzzTarget(
        name="tdx-quote", parse=lambda data: parse_quote(decode_quote(data)), seeds=_tdx_quotes, max_bytes=16 * _KIB
    ),
    FuzzTarget(name="tdx-collateral", parse=_collateral, seeds=_tdx_bundles, max_bytes=32 * _KIB),
    FuzzTarget(name="tdx-tcb-info", parse=_evaluate(), seeds=_tcb_infos, max_bytes=16 * _KIB),
    FuzzTarget(name="tdx-qe-identity", parse=_identify(), seeds=_qe_identities, max_bytes=8 * _KIB),
    FuzzTarget(name="tdx-sgx-extension", parse=parse_sgx_extension, seeds=_sgx_extensions, max_bytes=4 * _KIB),
    FuzzTarget(name="nvidia-report", parse=parse_report, seeds=_gpu_reports, max_bytes=16 * _KIB),
    FuzzTarget(name="nvidia-opaque", parse=parse_opaque, seeds=_opaque, max_bytes=4 * _KIB),
    FuzzTarget(
        name="nvidia-rim", parse=lambda data: parse_rim(data, what="rim"), seeds=_rims, max_bytes=32 * _KIB
    ),
    FuzzTarget(name="nvidia-ocsp", parse=lambda data: OcspAnswers([data]), seeds=_ocsp, max_bytes=8 * _KIB),
    FuzzTarget(name="nvidia-fwid", parse=parse_fwid, seeds=_fwids, max_bytes=2 * _KIB),
    FuzzTarget(
        name="certificates", parse=lambda data: load_certificates(data, what="x"), seeds=_certificates,
        max_bytes=16 * _KIB,
    ),
    FuzzTarget(name="crls", parse=lambda data: load_crls(data, what="x"), seeds=_crls, max_bytes=8 * _KIB),
    FuzzTarget(name="encodings", parse=_decode, seeds=_texts, max_bytes=1 * _KIB),
    FuzzTarget(name="evidence", parse=Evidence.parse, seeds=_containers, max_bytes=16 * _KIB),
)  # fmt: skip
