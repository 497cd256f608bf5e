"""Mutations of valid TDX evidence: none is accepted beyond a written list, none raises outside our own tree."""

import random
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache

import pytest

from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.tdx import TDX_OBLIGATIONS, TdxCollateral, parse_collateral, parse_quote
from bulkhead.errors import BulkheadError, EvidenceError
from tests.simulator.tdx_world import TdxEvidence, TdxWorld

_SAMPLE = 120
_PARTS = [field.name for field in fields(TdxCollateral) if field.name != "pck_certificate_chain"]


@cache
def _evidence(version: int) -> TdxEvidence:
    return TdxWorld(version=version).evidence()


def _accepted(evidence: TdxEvidence) -> bool:
    refused: BulkheadError | None = None
    try:
        evidence.verify()
    except BulkheadError as error:
        refused = error
    assert refused is None or obligation_of(refused) in TDX_OBLIGATIONS
    return refused is None


def _flips(data: bytes, positions: Iterator[int], rng: random.Random) -> Iterator[tuple[int, bytes]]:
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= rng.randrange(1, 256)
        yield position, bytes(changed)


def _is_line_break(data: bytes, changed: bytes, position: int) -> bool:
    """Say whether a changed byte is a line break, or the closing zero, of the quote's PEM text before and after.

    Those bytes are outside every signature and every certificate: the same certificates are read from the text.
    """
    return data[position] in b"\r\n\0" and changed[position] in b"\r\n\0" and position >= data.index(b"-----BEGIN ")


def _check_quote(version: int, positions: Iterator[int], rng: random.Random) -> None:
    evidence = _evidence(version)
    for position, quote in _flips(evidence.quote, positions, rng):
        if _accepted(replace(evidence, quote=quote)):
            assert _is_line_break(evidence.quote, quote, position), position


@pytest.mark.parametrize("version", [4, 5])
def test_quote_bytes_sampled(version: int) -> None:
    """A changed byte of the quote is refused, save a line break of the PEM text; a seeded sample."""
    rng = random.Random(f"tdx-{version}")
    _check_quote(version, iter(rng.sample(range(len(_evidence(version).quote)), _SAMPLE)), rng)


@pytest.mark.long
@pytest.mark.parametrize("version", [4, 5])
def test_quote_bytes(version: int) -> None:
    """Every byte of the quote changed."""
    _check_quote(version, iter(range(len(_evidence(version).quote))), random.Random(version))


def _check_collateral(part: str, count: int | None) -> None:
    evidence, rng = _evidence(4), random.Random(part)
    data: bytes = getattr(evidence.collateral, part)
    positions = range(len(data)) if count is None else rng.sample(range(len(data)), min(count, len(data)))
    for position, changed in _flips(data, iter(positions), rng):
        mutated = replace(evidence, collateral=replace(evidence.collateral, **{part: changed}))
        if _accepted(mutated):
            # Of an issuer chain the first certificate is used; behind it stands a copy of the pinned root, and between
            # them are line breaks and unused bits of base64.
            assert part.endswith("issuer_chain"), position
            assert load_certificates(changed, what="chain")[0] == load_certificates(data, what="chain")[0], position


@pytest.mark.parametrize("part", _PARTS)
def test_collateral_bytes_sampled(part: str) -> None:
    """A changed byte of a document, a signature or a revocation list is refused; a seeded sample."""
    _check_collateral(part, 15)


@pytest.mark.long
@pytest.mark.parametrize("part", _PARTS)
def test_collateral_bytes(part: str) -> None:
    """Every byte of the collateral changed."""
    _check_collateral(part, None)


def test_signer_certificate_bytes() -> None:
    """No byte of the certificate that signs Intel's documents can change; of what follows it nothing counts."""
    evidence, rng = _evidence(4), random.Random(3)
    chain = evidence.collateral.tcb_info_issuer_chain
    end = chain.index(b"-----END ")
    for _, changed in _flips(chain, iter(rng.sample(range(30, end), 40)), rng):
        collateral = replace(evidence.collateral, tcb_info_issuer_chain=changed)
        if _accepted(replace(evidence, collateral=collateral)):
            assert b"".join(changed[:end].split()) == b"".join(chain[:end].split())


@pytest.mark.parametrize("version", [4, 5])
def test_cut_and_extended(version: int) -> None:
    """A quote cut anywhere is refused; extended by anything but zeros too."""
    evidence, rng = _evidence(version), random.Random(version)
    boundaries = {0, 2, 8, 48, 54, 632, 636, 700, 764, 766, 770, 1154, 1218, 1220, 1252, 1254, 1258}
    for size in boundaries | set(rng.sample(range(len(evidence.quote)), 60)):
        assert not _accepted(replace(evidence, quote=evidence.quote[:size]))
    assert not _accepted(replace(evidence, quote=evidence.quote + b"\1"))
    for boundary in boundaries:
        changed = evidence.quote[:boundary] + b"\0" + evidence.quote[boundary:]
        assert not _accepted(replace(evidence, quote=changed))


def test_chains_swapped() -> None:
    """Collateral, certification and reports of two platforms do not mix."""
    one, other = _evidence(4), TdxWorld(quote_key="second", bound_key="second").evidence()
    at = one.quote.index(other.quote[:48]) + 632  # header and body are of equal size
    assert not _accepted(replace(one, quote=one.quote[: at + 4 + 128] + other.quote[at + 4 + 128 :]))
    signature_swapped = one.quote[: at + 4] + other.quote[at + 4 : at + 68] + one.quote[at + 68 :]
    assert not _accepted(replace(one, quote=signature_swapped))


@pytest.mark.parametrize("seed", range(30))
def test_parsers_are_total(seed: int) -> None:
    """Random bytes, and random tails behind a true header, give claims or our own error."""
    rng = random.Random(seed)
    tail = rng.randbytes(rng.randrange(3000))
    for data in (tail, _evidence(4).quote[: rng.randrange(800)] + tail):
        with pytest.raises(EvidenceError):
            parse_quote(data)
        with pytest.raises(EvidenceError):
            parse_collateral(data)
