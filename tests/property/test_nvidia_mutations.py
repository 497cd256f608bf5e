"""Mutated GPU evidence: nothing that reads differently is accepted, and nothing but our own errors is raised."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia import parse_report, parse_rim
from bulkhead.attestation.nvidia.fwid import certificate_fwid
from bulkhead.attestation.obligations import obligation_of
from bulkhead.errors import BulkheadError
from tests.simulator.nvidia_world import NOW_S, GpuCase, certify, pem, tcb_info, world

SEED = 20260601
SAMPLE = 60
# Accepted mutants are those that the reader cannot tell from the original, since the difference is in the text around
# what is signed:
# - PEM: text outside the blocks, white space and padding inside, unused bits of the last base64 digit;
# - XML: what canonicalisation erases (white space inside tags, kind of quotes, how a character is written) and white
#   space and unused bits in base64 values.
# In the report and in OCSP answers, which are binary, there is no such byte.
READ: dict[str, Callable[[bytes], object]] = {
    "report": lambda data: data,
    "certificates": lambda data: load_certificates(data, what="chain"),
    "driver_rim": lambda data: parse_rim(data, what="rim"),
    "vbios_rim": lambda data: parse_rim(data, what="rim"),
}


def accepted(case: GpuCase) -> bool:
    """Return whether the case is verified; any error but ours ends the test."""
    try:
        case.verify()
    except BulkheadError:
        return False
    return True


def flips(data: bytes, sample: int | None) -> Iterator[bytes]:
    """Yield ``data`` with one bit changed: in every byte a random one, or in a random sample of bytes."""
    source = random.Random(SEED)
    for offset in range(len(data)) if sample is None else source.sample(range(len(data)), sample):
        mutated = bytearray(data)
        mutated[offset] ^= 1 << source.randrange(8)
        yield bytes(mutated)


def check_flips(part: str, sample: int | None, *, share: slice = slice(None)) -> None:
    """Assert that no changed byte of one input is accepted unless it reads the same; of the mutants, take a share."""
    base = GpuCase()
    data: bytes = getattr(base, part)
    original = READ[part](data)
    for mutated in islice(flips(data, sample), share.start, share.stop, share.step):
        changed: dict[str, Any] = {part: mutated}
        if accepted(replace(base, **changed)):
            assert READ[part](mutated) == original


@pytest.mark.parametrize("part", READ)
def test_sampled_flips(part: str) -> None:
    """No sampled byte of report, certificates or manifests can be flipped."""
    check_flips(part, SAMPLE)


@pytest.mark.long
@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.parametrize("part", READ)
def test_every_flip(part: str, quarter: int) -> None:
    """No byte of report, certificates or manifests can be flipped."""
    check_flips(part, None, share=slice(quarter, None, 4))


def check_ocsp(sample: int | None) -> None:
    """Assert that a changed byte of an OCSP answer never makes it say more than its issuer signed."""
    base = GpuCase()
    first, *others = base.ocsp_responses
    original = ocsp.load_der_ocsp_response(first)
    for mutated in flips(first, sample):
        if accepted(replace(base, ocsp_responses=[mutated, *others])):
            response = ocsp.load_der_ocsp_response(mutated)
            assert response.tbs_response_bytes == original.tbs_response_bytes
            assert response.signature == original.signature


def test_sampled_flips_of_an_ocsp_answer() -> None:
    """No sampled byte of what the responder signed can be flipped."""
    check_ocsp(SAMPLE)


@pytest.mark.long
def test_every_flip_of_an_ocsp_answer() -> None:
    """No byte of what the responder signed can be flipped."""
    check_ocsp(None)


def boundaries(data: bytes) -> list[int]:
    """Return the offsets of a report's fields: request, response, each block, nonce, each opaque entry, signature."""
    offsets, offset = [0, 1, 2, 3, 4, 36, 37, 38, 39, 41, 42, 45], 45
    record_end = 45 + int.from_bytes(data[42:45], "little")
    while offset < record_end:
        offset += 4 + int.from_bytes(data[offset + 2 : offset + 4], "little")
        offsets.append(offset)
    offset += 34
    offsets += [record_end + 32, offset]
    while offset < len(data) - 96:
        offset += 4 + int.from_bytes(data[offset + 2 : offset + 4], "little")
        offsets.append(offset)
    return [*offsets, len(data) - 48, len(data)]


def test_reports_cut_or_extended_at_a_field_are_refused() -> None:
    """At every field's boundary: cut there, one byte or one block put in, one byte taken out: refused."""
    base = GpuCase()
    data = base.report
    for offset in boundaries(data):
        for mutated in (
            data[:offset],
            data[:offset] + b"\0" + data[offset:],
            data[:offset] + data[45:100] + data[offset:],
            data[:offset] + data[offset + 1 :],
        ):
            assert mutated == data or not accepted(replace(base, report=mutated))


def test_swapped_blocks_and_entries_are_refused() -> None:
    """Two measurement blocks exchanged, or their numbers, are refused."""
    base = GpuCase()
    head, first, second, tail = base.report[:45], base.report[45:100], base.report[100:155], base.report[155:]
    for mutated in (head + second + first + tail, head + second[:1] + first[1:] + first[:1] + second[1:] + tail):
        assert not accepted(replace(base, report=mutated))


def test_swapped_certificates_are_refused() -> None:
    """Every exchange of two certificates of the chain, every one left out or doubled, is refused."""
    base, path = GpuCase(), list(world().device)
    for first in range(len(path)):
        variants = [[*path[:first], *path[first + 1 :]], [*path[: first + 1], *path[first:]]]
        for second in range(first + 1, len(path)):
            swapped = list(path)
            swapped[first], swapped[second] = path[second], path[first]
            variants.append(swapped)
        for variant in variants:
            assert not accepted(replace(base, certificates=pem(variant)))


def test_random_bytes_give_claims_or_our_errors() -> None:
    """Parsers are total: noise, and noise behind a true beginning, end in our own errors."""
    source = random.Random(SEED)
    base = GpuCase()
    for _ in range(400):
        noise = source.randbytes(source.randrange(300))
        cut = source.randrange(200)
        for parse, start in ((parse_report, base.report), (lambda d: parse_rim(d, what="rim"), base.driver_rim or b"")):
            for data in (noise, start[:cut] + noise):
                with pytest.raises(BulkheadError):
                    parse(data)
        assert not accepted(replace(base, ocsp_responses=[noise]))


def outcome(leaf: x509.Certificate) -> int | str | None:
    """Return the length of the FWID that is read, or the obligation that failed."""
    try:
        return len(certificate_fwid(leaf))
    except BulkheadError as error:
        return obligation_of(error)


def test_random_identity_extensions_give_a_fwid_or_our_error() -> None:
    """The reader of a certificate's FWID is total over what an extension can hold."""
    source = random.Random(SEED)
    sound = tcb_info(bytes(48), bytes(48)).value
    issuer = world().device[1]
    for _ in range(60):
        mutated = bytearray(sound)
        mutated[source.randrange(len(mutated))] = source.randrange(256)
        value = bytes(mutated[: source.randrange(len(mutated) + 1)]) if source.random() < 0.5 else bytes(mutated)
        extension = type(tcb_info())(tcb_info().oid, value)
        leaf = certify("GH100", issuer=issuer, authority=False, extensions=[extension]).certificate
        assert outcome(leaf) in {48, "GPU-6"}


def test_the_sample_is_of_an_accepted_case() -> None:
    """The evidence that is mutated is accepted as it is."""
    assert accepted(replace(GpuCase(), now_s=NOW_S))
