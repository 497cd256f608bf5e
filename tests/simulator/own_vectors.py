"""Own vectors: complete chains of every technology under test roots, as files: what is accepted, and each failure.

    python -m tests.simulator.own_vectors write DIR        # every case, with its verdict and the command that shows it
    python -m tests.simulator.own_vectors try DIR          # run them all through `bulkhead evidence verify`
    python -m tests.simulator.own_vectors try DIR CASE     # run one, with what the program prints

Test roots are trusted by no installed program: ``try`` puts those of DIR in place of the vendors' in its own process.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia import NvidiaRoots
from bulkhead.attestation.policy import Technology, TrustPolicy
from bulkhead.attestation.policy_writing import write_trust_policy
from bulkhead.attestation.snp import SnpProduct, SnpRoots
from bulkhead.cli.program import program
from tests.simulator import nvidia_cases, nvidia_world, snp_cases, snp_machine, tdx_cases, tdx_world
from tests.simulator.nvidia_world import GpuCase
from tests.simulator.tdx_world import TdxWorld

__all__ = ["Vector", "read_vectors", "run_vector", "trust_roots_of", "vectors", "write_vectors"]


@dataclass(frozen=True, kw_only=True)
class Vector:
    """One case as files.

    Attributes:
        name: technology, verdict and what is special, as a folder's name.
        technology: of the evidence.
        obligation: that fails; None if it is accepted.
        files: name -> bytes; what is given to the command line.
        nonce: that the evidence must answer.
        at_s: Unix seconds.
        policy: the tenant's.
        options: more of the command line.
    """

    name: str
    technology: Technology
    obligation: str | None
    files: dict[str, bytes]
    nonce: bytes
    at_s: int
    policy: TrustPolicy
    options: tuple[str, ...] = field(default=())

    def command(self) -> list[str]:
        """Return the arguments of `bulkhead` in the folder of the case."""
        named = [
            part
            for name in self.files
            for part in (*_OPTION.get(name.partition(".")[0].rstrip("0123456789"), ()), name)
        ]
        return [
            "evidence", "verify", *named, "--type", self.technology.value, "--policy", "policy.toml",
            "--nonce", self.nonce.hex(), "--at", f"@{self.at_s}", "--json", *self.options,
        ]  # fmt: skip


_OPTION = {
    "certificate": ("--certs",),
    "certificates": ("--certs",),
    "list": ("--crl",),
    "collateral": ("--collateral",),
    "driver": ("--rim",),
    "vbios": ("--rim",),
    "answer": ("--ocsp",),
}


_QUOTES: dict[str, tdx_cases.World] = {
    "version 4": {},
    "version 5": {"version": 5},
    "TD 1.0 in version 5": {"version": 5, "body_type": 2},
}
_ONLY_IN_CODE = {
    "GPU-5 a nonce cut short": "the command line asks for 64 digits",
    "GPU-10 floor that cannot be compared": "a policy file with such a floor is refused when it is read",
    "GPU-15 manifests exchanged": "the command line tells them apart by content",
}
"""Cases that no files can show, each with its reason; the unit tests have them."""


def _option(name: str) -> tuple[str, ...]:
    return _OPTION.get(name.partition(".")[0].rstrip("0123456789"), ())


def vectors() -> Iterator[Vector]:
    """Make every case anew."""
    for name, case in snp_cases.ACCEPTED.items():
        yield _snp(name, None, case)
    for obligation, name, case in snp_cases.REFUSED:
        yield _snp(name, obligation, case)
    for name, world in _QUOTES.items():
        yield _tdx(name, None, world, {})
    for obligation, name, world, _ in tdx_cases.CASES:
        yield _tdx(name, obligation, world, {})
    for obligation, name, world, changes in tdx_cases.POLICY_CASES:
        yield _tdx(name, obligation, world, changes)
    yield _gpu("base", None, GpuCase())
    for obligation, name, _, change in nvidia_cases.CASES:
        if f"{obligation} {name}" not in _ONLY_IN_CODE:
            yield _gpu(name, obligation, change())


def _name(technology: Technology, obligation: str | None, name: str) -> str:
    words = "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
    return f"{technology.value}/{obligation or 'accepted'}-{words}"


def _snp(name: str, obligation: str | None, case: snp_cases.Case) -> Vector:
    files = {"report.bin": case.report(case.machine)}
    for number, certificate in enumerate(case.certificates()):
        files[f"certificate{number}.der"] = certificate.public_bytes(Encoding.DER)
    for number, one in enumerate(case.crls):
        files[f"list{number}.der"] = one.public_bytes(Encoding.DER)
    return Vector(
        name=_name(Technology.SNP, obligation, name),
        technology=Technology.SNP,
        obligation=obligation,
        files=files,
        nonce=case.report_data,
        at_s=case.now_s,
        policy=TrustPolicy(snp=case.policy),
        options=("--product", case.product.value) if case.product else (),
    )


def _tdx(name: str, obligation: str | None, world: tdx_cases.World, changes: dict[str, object]) -> Vector:
    evidence = TdxWorld(**world).evidence()
    return Vector(
        name=_name(Technology.TDX, obligation, name),
        technology=Technology.TDX,
        obligation=obligation,
        files={
            "quote.bin": evidence.quote,
            "collateral.json": json.dumps(tdx_world.bundle(evidence.collateral)).encode(),
        },
        nonce=tdx_world.REPORT_DATA,
        at_s=tdx_world.NOW_S,
        policy=TrustPolicy(tdx=tdx_world.policy(**changes)),
    )


def _gpu(name: str, obligation: str | None, case: GpuCase) -> Vector:
    files = {"report.bin": case.report, "certificates.pem": case.certificates}
    files |= {"driver.xml": case.driver_rim} if case.driver_rim is not None else {}
    files |= {"vbios.xml": case.vbios_rim} if case.vbios_rim is not None else {}
    files |= {f"answer{number}.der": answer for number, answer in enumerate(case.ocsp_responses)}
    return Vector(
        name=_name(Technology.NVIDIA, obligation, name),
        technology=Technology.NVIDIA,
        obligation=obligation,
        files=files,
        nonce=case.nonce,
        at_s=case.now_s,
        policy=TrustPolicy(nvidia=case.policy),
    )


def write_vectors(folder: Path) -> int:
    """Write every case, the roots and a list of verdicts; return how many cases there are."""
    verdicts = []
    for vector in vectors():
        home = folder / vector.name
        home.mkdir(parents=True)
        for name, data in vector.files.items():
            (home / name).write_bytes(data)
        (home / "policy.toml").write_text(write_trust_policy(vector.policy))
        (home / "command").write_text(shlex.join(vector.command()) + "\n")
        verdicts.append({"case": vector.name, "obligation": vector.obligation})
    _write_roots(folder / "roots")
    (folder / "verdicts.json").write_text(json.dumps(verdicts, indent=1) + "\n")
    return len(verdicts)


def _write_roots(folder: Path) -> None:
    folder.mkdir()
    for product, roots in snp_machine.snp_roots().items():
        parts = (roots.ark, roots.ask, roots.asvk)
        (folder / f"{product.value}.pem").write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in parts))
    (folder / "intel.pem").write_bytes(tdx_world.roots()[0].public_bytes(Encoding.PEM))
    pair = nvidia_world.world().roots
    (folder / "nvidia.pem").write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in (pair.device, pair.rim)))


def read_vectors(folder: Path) -> list[tuple[str, str | None]]:
    """Return (case, obligation that fails or None)."""
    return [(item["case"], item["obligation"]) for item in json.loads((folder / "verdicts.json").read_text())]


def trust_roots_of(folder: Path) -> pytest.MonkeyPatch:
    """Put the roots of ``folder`` in place of the vendors', in this process; ``undo`` of the result takes them away."""
    roots = {path.stem: load_certificates(path.read_bytes(), what=path.name) for path in (folder / "roots").iterdir()}
    amd = {product: _amd(roots[product.value]) for product in SnpProduct}
    device, rim = roots["nvidia"]
    patch = pytest.MonkeyPatch()
    patch.setattr("bulkhead.attestation.snp.verify.amd_roots", lambda: amd)
    patch.setattr("bulkhead.attestation.tdx.verify.intel_roots", lambda: roots["intel"])
    patch.setattr("bulkhead.attestation.nvidia.verify.nvidia_roots", lambda: NvidiaRoots(device=device, rim=rim))
    patch.setenv("XDG_CACHE_HOME", str(folder / "no-cache"))
    return patch


def _amd(certificates: tuple) -> SnpRoots:
    ark, ask, asvk = certificates
    return SnpRoots(ark=ark, ask=ask, asvk=asvk)


def run_vector(folder: Path, case: str) -> tuple[int, str, str]:
    """Run the command of one case in its folder; return exit code, standard output and standard error."""
    patch = pytest.MonkeyPatch()
    patch.chdir(folder / case)
    try:
        result = CliRunner().invoke(program, shlex.split((folder / case / "command").read_text()))
    finally:
        patch.undo()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def _try(folder: Path, wanted: str | None) -> int:
    patch, wrong = trust_roots_of(folder), 0
    try:
        for case, obligation in read_vectors(folder):
            if wanted not in {None, case}:
                continue
            code, output, error = run_vector(folder, case)
            met = (code == 0) if obligation is None else (code == 1 and obligation in output + error)
            wrong += not met
            print(f"{'as expected' if met else 'NOT AS EXPECTED'}: {case}, exit {code}")
            if wanted:
                print(f"$ bulkhead {(folder / case / 'command').read_text()}{output}{error}")
    finally:
        patch.undo()
    return 1 if wrong else 0


def main() -> int:
    """Write or try."""
    if len(sys.argv) == 3 and sys.argv[1] == "write":
        folder = Path(sys.argv[2])
        print(
            f"{write_vectors(folder)} cases in {folder}; python -m tests.simulator.own_vectors try {folder} runs them"
        )
        return 0
    if len(sys.argv) in {3, 4} and sys.argv[1] == "try":
        return _try(Path(sys.argv[2]), sys.argv[3] if len(sys.argv) == 4 else None)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
