"""Genuine hardware evidence, made for something else: another key, session, nonce, device or time (docs/protocol.md 3).

What a quote's 64 bytes and a GPU's 32 stand for is recomputed by the verifier from what it knows; each attack here has
sound hardware, sound chains and an accepted image, and differs from the honest case in one thing that is bound.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.snp import verify_snp_report
from bulkhead.attestation.statement import batch_leaf, batch_path, batch_root, gpu_nonce, root_from_path, statement
from bulkhead.errors import BulkheadError, EvidenceBindingError
from tests.simulator import nvidia_world, snp_machine, tdx_world


@dataclass(frozen=True)
class Binding:
    """What an opening is about; the defaults are the honest case."""

    nonce: bytes = b"\x01" * 32
    context: bytes = b"tenant, session, key, model, decision, policy"
    keyset: bytes = b"keyset of worker A"
    devices: bytes = b"device evidence"
    descriptor: bytes = b"partition descriptor"
    not_after_s: int = 1_900_000_000
    others: tuple[bytes, ...] = field(default=(b"\x0a" * 32, b"\x0b" * 32))  # leaves of other callers in the batch

    def root(self) -> bytes:
        """Return the batch root that a worker signs."""
        return batch_root([self.others[0], batch_leaf(self.nonce, self.context), *self.others[1:]])

    def expected_root(self, path: tuple[bytes, ...]) -> bytes:
        """Return the root that a caller computes from its own nonce and context, with the path it was given."""
        return root_from_path(batch_leaf(self.nonce, self.context), index=1, size=len(self.others) + 1, path=path)

    def statement(self, root: bytes) -> bytes:
        """Return the 64 bytes of a quote."""
        return statement(
            batch_root=root,
            keyset_digest=hashlib.sha256(self.keyset).digest(),
            device_digest=hashlib.sha256(self.devices).digest(),
            descriptor=self.descriptor,
            not_after_s=self.not_after_s,
        )

    def gpu_nonce(self, root: bytes) -> bytes:
        """Return the 32 bytes of a GPU's report."""
        return gpu_nonce(batch_root=root, keyset_digest=hashlib.sha256(self.keyset).digest())


HONEST = Binding()
PATH = batch_path([HONEST.others[0], batch_leaf(HONEST.nonce, HONEST.context), *HONEST.others[1:]], 1)


def _snp(made: bytes, expected: bytes) -> object:
    machine = snp_machine.Machine()
    return verify_snp_report(
        machine.report(changes=[(0x50, made)]),
        certificates=(machine.leaf(),),
        report_data=expected,
        policy=snp_machine.policy(),
        now_s=snp_machine.NOW_S,
        roots=snp_machine.snp_roots(),
    )


def _tdx(made: bytes, expected: bytes) -> object:
    return tdx_world.TdxWorld(report_data=made).evidence().verify(report_data=expected)


QUOTES: dict[str, tuple[Callable[[bytes, bytes], object], str]] = {"snp": (_snp, "SNP-11"), "tdx": (_tdx, "TDX-26")}
ATTACKS = {
    "another worker's key": replace(HONEST, keyset=b"keyset of worker B"),
    "relayed into another session": replace(HONEST, context=b"tenant of the attacker"),
    "answer to an earlier nonce": replace(HONEST, nonce=b"\x02" * 32),
    "nonce used before, in another session": replace(HONEST, context=b"earlier session of the same tenant"),
    "other GPUs": replace(HONEST, devices=b"evidence of other devices"),
    "no GPUs": replace(HONEST, devices=b""),
    "another partition": replace(HONEST, descriptor=b"partition descriptor of a neighbour"),
    "longer validity": replace(HONEST, not_after_s=HONEST.not_after_s + 1),
}


def _refusal(run: Callable[[], object]) -> BulkheadError:
    with pytest.raises(EvidenceBindingError) as caught:
        run()
    return caught.value


@pytest.mark.parametrize("kind", QUOTES)
def test_honest_quote_is_accepted(kind: str) -> None:
    """A quote over the statement that the caller computes itself is accepted, one quote for several callers."""
    verify, _ = QUOTES[kind]
    verify(HONEST.statement(HONEST.root()), HONEST.statement(HONEST.expected_root(PATH)))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", QUOTES)
def test_quote_made_for_something_else_is_refused(kind: str, attack: str) -> None:
    """A genuine quote of the attacker's choice never stands for what this caller asked."""
    verify, obligation = QUOTES[kind]
    made = ATTACKS[attack]
    error = _refusal(lambda: verify(made.statement(made.root()), HONEST.statement(HONEST.expected_root(PATH))))
    assert obligation_of(error) == obligation


@pytest.mark.parametrize("kind", QUOTES)
def test_batch_path_leads_no_other_caller_in(kind: str) -> None:
    """With any path an attacker can give, a caller that is not in the batch gets another statement."""
    verify, obligation = QUOTES[kind]
    outsider = replace(HONEST, nonce=b"\x03" * 32)
    made = HONEST.statement(HONEST.root())
    for path in (PATH, PATH[::-1], (batch_leaf(HONEST.nonce, HONEST.context), PATH[1])):
        expected = outsider.statement(outsider.expected_root(path))
        assert obligation_of(_refusal(lambda expected=expected: verify(made, expected))) == obligation


@pytest.mark.parametrize(
    "attack", ["another worker's key", "relayed into another session", "answer to an earlier nonce"]
)
def test_gpu_report_made_for_something_else_is_refused(attack: str) -> None:
    """A GPU's report is bound to the same batch and keyset as the quote: another worker's does not answer."""
    made, leaf = ATTACKS[attack], nvidia_world.world().device[0]
    expected = HONEST.gpu_nonce(HONEST.expected_root(PATH))
    honest = nvidia_world.report(leaf, nonce=HONEST.gpu_nonce(HONEST.root()))
    nvidia_world.GpuCase(report=honest, nonce=expected).verify()
    foreign = nvidia_world.report(leaf, nonce=made.gpu_nonce(made.root()))
    error = _refusal(nvidia_world.GpuCase(report=foreign, nonce=expected).verify)
    assert obligation_of(error) == "GPU-5"


def test_quote_and_gpu_values_never_coincide() -> None:
    """What a quote signs is no prefix or extension of what a GPU signs, so neither can be passed off as the other."""
    root = HONEST.root()
    assert HONEST.gpu_nonce(root) not in HONEST.statement(root)
    assert len({HONEST.statement(root)[:32], HONEST.statement(root)[32:], HONEST.gpu_nonce(root)}) == 3
