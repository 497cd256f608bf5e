"""Verification of hardware evidence in the tenant's process: per technology, cold and with remembered signatures.

Evidence is generated under test roots, complete and of real sizes; no fetching is part of it. Cold: every signature is
verified. Warm: signatures of certificates that held before are remembered, as for the second worker of a fleet; all
else is verified again. Beside it stands the least that the same machine needs: the evidence's own signatures, bare, or
for TDX the field's Rust library doing the same job.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Final

import dcap_qvl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.report import Row
from bulkhead.attestation.certificates import forget_signatures
from bulkhead.attestation.snp import verify_snp_report
from tests.simulator import nvidia_world, snp_machine, tdx_world

ROUNDS: Final = 200
_MESSAGE: Final = bytes(1_000)


def measure() -> list[Row]:
    """Return a row for each technology."""
    p384_ms, rsa_ms = _p384_ms(), _rsa_ms()
    machine = snp_machine.Machine()
    report, leaf, roots = machine.report(), machine.leaf(), snp_machine.snp_roots()

    def snp() -> object:
        return verify_snp_report(
            report,
            certificates=(leaf,),
            report_data=snp_machine.REPORT_DATA,
            policy=snp_machine.policy(),
            now_s=snp_machine.NOW_S,
            roots=roots,
        )

    tdx = tdx_world.TdxWorld().evidence()
    gpu = nvidia_world.GpuCase()
    # A GPU: report, two manifests, three and three answers; four certificates of the device, three of the signer.
    gpu_least = f"{(9 + 7) * p384_ms:.1f} ms: its 16 P-384 signatures, bare"
    snp_least = f"{p384_ms + 2 * rsa_ms:.2f} ms: its three signatures, bare (test roots with RSA-1024)"
    return [
        _row("SEV-SNP report", snp, snp_least),
        _row("TDX quote with collateral", tdx.verify, f"{_dcap_qvl_ms(tdx):.2f} ms: dcap-qvl (Rust)"),
        _row("GPU report with two manifests and six OCSP answers", gpu.verify, gpu_least),
    ]


def _row(what: str, verify: Callable[[], object], peer: str) -> Row:
    cold = _median_ms(verify, before=forget_signatures)
    warm = _median_ms(verify)
    return Row(
        f"Verification of a {what}, median of {ROUNDS}", f"cold {cold:.2f} ms, certificates known {warm:.2f} ms", peer
    )


def _median_ms(run: Callable[[], object], *, before: Callable[[], object] = lambda: None) -> float:
    run()
    took = []
    for _ in range(ROUNDS):
        before()
        started = time.perf_counter()
        run()
        took.append((time.perf_counter() - started) * 1e3)
    return statistics.median(took)


def _p384_ms() -> float:
    key = ec.generate_private_key(ec.SECP384R1())
    signature, public = key.sign(_MESSAGE, ec.ECDSA(hashes.SHA384())), key.public_key()
    return _median_ms(lambda: public.verify(signature, _MESSAGE, ec.ECDSA(hashes.SHA384())))


def _rsa_ms() -> float:
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    key = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)  # noqa: S505  # as the test roots have it
    signature, public = key.sign(_MESSAGE, pss, hashes.SHA384()), key.public_key()
    return _median_ms(lambda: public.verify(signature, _MESSAGE, pss, hashes.SHA384()))


def _dcap_qvl_ms(evidence: tdx_world.TdxEvidence) -> float:
    root = tdx_world.roots()[0].public_bytes(Encoding.DER)
    text = json.dumps(tdx_world.bundle(evidence.collateral))

    def run() -> object:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(text)
        return dcap_qvl.verify_with_root_ca(evidence.quote, collateral, root, tdx_world.NOW_S)

    return _median_ms(run)
