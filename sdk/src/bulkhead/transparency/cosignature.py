"""C2SP cosignatures: what a witness adds to a checkpoint, and quorums of them.

Specification: https://c2sp.org/tlog-cosignature. A signature is ``timestamp, u64 big-endian ‖ signature`` in a note's
line; Ed25519 (type 0x04) signs ``cosignature/v1``, the time and the checkpoint's text, ML-DSA-44 (type 0x06) the
structure ``subtree/v1``, which names the witness and leaves extension lines out. A witness says with it that the
checkpoint was consistent with, and not smaller than, all that it had seen of the log.
"""

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from bulkhead.encoding import b64encode
from bulkhead.errors import CheckpointError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.note import Signature, check_name, key_id_of, signature_line, split_key, split_note

__all__ = ["Algorithm", "CosignedCheckpoint", "Cosigner", "Witness", "cosigned_at", "open_cosigned"]

_SEED_BYTES: Final = 32
_STAMP_BYTES: Final = 8
_MAX_TIME_S: Final = 2**63 - 1
_PLAIN_ED25519: Final = 0x01  # some tools print a witness's key with the type of plain notes
_PRIVATE_PREFIX: Final = "PRIVATE+KEY+"
_SUBTREE_LABEL: Final = b"subtree/v1\n\x00"


class Algorithm(enum.IntEnum):
    """Signature types of cosignatures (C2SP signed-note)."""

    ED25519 = 0x04
    ML_DSA_44 = 0x06


_KEY_BYTES: Final = {Algorithm.ED25519: 32, Algorithm.ML_DSA_44: 1312}
_SIGNATURE_BYTES: Final = {Algorithm.ED25519: 64, Algorithm.ML_DSA_44: 2420}


@dataclass(frozen=True, slots=True)
class Witness:
    """A pinned witness: checks cosignatures made under ``name``."""

    name: str
    algorithm: Algorithm
    public_key: bytes = field(repr=False)

    @classmethod
    def from_vkey(cls, vkey: str) -> "Witness":
        """Parse a witness's vkey, of type 0x04 or 0x06; an Ed25519 key of type 0x01 is taken for a cosigning one.

        Raises:
            CheckpointError: it is malformed, of another algorithm, or its key id is not that of its key.
        """
        name, key_id, kind, key = split_key(vkey, "witness key")
        if key_id_of(name, kind, key) != key_id:
            raise CheckpointError("witness key: the key id is not that of name and key")
        return cls.of(name, _algorithm(kind, "witness key"), key)

    @classmethod
    def of(cls, name: str, algorithm: Algorithm, public_key: bytes) -> "Witness":
        """Name a public key.

        Raises:
            CheckpointError: the name or the key is malformed.
        """
        check_name(name)
        if len(public_key) != _KEY_BYTES[algorithm]:
            raise CheckpointError(f"witness key: an {algorithm.name} key has {_KEY_BYTES[algorithm]} bytes")
        return cls(name, algorithm, public_key)

    @property
    def key_id(self) -> bytes:
        """Key id of its cosignatures, 4 bytes."""
        return key_id_of(self.name, self.algorithm, self.public_key)

    @property
    def vkey(self) -> str:
        """The key as text, to be pinned."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(bytes([self.algorithm]) + self.public_key)}"

    def verify(self, text: str, signature: bytes) -> None:
        """Check a cosignature over a checkpoint's text.

        Raises:
            CheckpointError: it does not hold.
        """
        if len(signature) != _STAMP_BYTES + _SIGNATURE_BYTES[self.algorithm]:
            raise CheckpointError(f"the cosignature of {self.name} does not have the length of its kind")
        message = _message(self.algorithm, self.name, text, cosigned_at(signature))
        kind = Ed25519PublicKey if self.algorithm is Algorithm.ED25519 else MLDSA44PublicKey
        try:
            kind.from_public_bytes(self.public_key).verify(signature[_STAMP_BYTES:], message)
        except (InvalidSignature, ValueError) as error:
            raise CheckpointError(f"the cosignature of {self.name} does not hold") from error


@dataclass(frozen=True, slots=True)
class Cosigner:
    """A witness's own key. ``sign`` may call into a key service."""

    witness: Witness
    sign: Callable[[bytes], bytes] = field(repr=False)

    @classmethod
    def from_seed(cls, name: str, seed: bytes, algorithm: Algorithm = Algorithm.ED25519) -> "Cosigner":
        """Make a cosigner from a 32-byte seed.

        Raises:
            CheckpointError: the name or the seed is malformed.
        """
        if len(seed) != _SEED_BYTES:
            raise CheckpointError("a witness's seed is 32 bytes")
        if algorithm is Algorithm.ED25519:
            key = Ed25519PrivateKey.from_private_bytes(seed)
            return cls(Witness.of(name, algorithm, key.public_key().public_bytes_raw()), key.sign)
        quantum_safe = MLDSA44PrivateKey.from_seed_bytes(seed)
        public = quantum_safe.public_key().public_bytes_raw()
        return cls(Witness.of(name, algorithm, public), quantum_safe.sign)

    @classmethod
    def from_skey(cls, skey: str) -> "Cosigner":
        """Parse ``PRIVATE+KEY+name+hex8+base64(type ‖ seed)``; type 0x01 is an Ed25519 key, as other tools write it.

        Raises:
            CheckpointError: it is malformed, or its key id is not that of its public key.
        """
        if not skey.startswith(_PRIVATE_PREFIX):
            raise CheckpointError("witness's signer key: malformed")
        name, key_id, kind, seed = split_key(skey.removeprefix(_PRIVATE_PREFIX), "witness's signer key")
        cosigner = cls.from_seed(name, seed, _algorithm(kind, "witness's signer key"))
        if key_id_of(name, kind, cosigner.witness.public_key) != key_id:
            raise CheckpointError("witness's signer key: the key id is not that of name and key")
        return cosigner

    def skey(self, seed: bytes) -> str:
        """Return the signer key of ``seed``: a secret, to be kept in a file."""
        kind = bytes([self.witness.algorithm])
        return f"{_PRIVATE_PREFIX}{self.witness.name}+{self.witness.key_id.hex()}+{b64encode(kind + seed)}"

    def cosign(self, text: str, time_s: int) -> str:
        """Return the signature line for a checkpoint's text; that it may be cosigned was checked by the caller.

        Args:
            text: the checkpoint's text.
            time_s: seconds since the epoch.

        Raises:
            CheckpointError: the text is no checkpoint's.
        """
        stamp = time_s.to_bytes(_STAMP_BYTES, "big")
        signature = self.sign(_message(self.witness.algorithm, self.witness.name, text, time_s))
        return signature_line(Signature(self.witness.name, self.witness.key_id, stamp + signature))


@dataclass(frozen=True, slots=True)
class CosignedCheckpoint:
    """A checkpoint that its log and a quorum of pinned witnesses signed. Made by :func:`open_cosigned` only.

    Attributes:
        checkpoint: what it says.
        witnesses: names of the witnesses whose cosignatures hold, with the time (seconds since the epoch) of each.
    """

    checkpoint: Checkpoint
    witnesses: tuple[tuple[str, int], ...]


def open_cosigned(
    note: str, *, vkey: str, origin: str, witnesses: Collection[Witness], quorum: int
) -> CosignedCheckpoint:
    """Verify a checkpoint against a pinned log key and pinned witnesses.

    1. The log's signature holds and the checkpoint is of ``origin`` (:func:`open_checkpoint`).
    2. Every line under a pinned witness's name and key id is its cosignature.
    3. At least ``quorum`` different witnesses cosigned: two keys under one name are one witness.

    How old a cosignature may be stays with the caller.

    Raises:
        CheckpointError: any of these fails.
    """
    checkpoint = open_checkpoint(note, vkey=vkey, origin=origin)  # 1
    text, signatures = split_note(note)
    known = {(witness.name, witness.key_id): witness for witness in witnesses}
    found: dict[str, int] = {}
    for signature in signatures:
        witness = known.get((signature.name, signature.key_id))
        if witness is not None:
            witness.verify(text, signature.data)  # 2
            found.setdefault(witness.name, cosigned_at(signature.data))
    if len(found) < quorum:  # 3
        raise CheckpointError(
            f"the checkpoint of {origin} has {len(found)} cosignatures by pinned witnesses, {quorum} are required"
        )
    return CosignedCheckpoint(checkpoint, tuple(found.items()))


def cosigned_at(signature: bytes) -> int:
    """Return a cosignature's time, seconds since the epoch.

    Raises:
        CheckpointError: it is out of range.
    """
    time_s = int.from_bytes(signature[:_STAMP_BYTES], "big")
    if time_s > _MAX_TIME_S:
        raise CheckpointError("a cosignature's time is out of range")
    return time_s


def _message(algorithm: Algorithm, name: str, text: str, time_s: int) -> bytes:
    if algorithm is Algorithm.ED25519:
        return f"cosignature/v1\ntime {time_s}\n{text}".encode()
    checkpoint = Checkpoint.parse(text)
    names = [value.encode() for value in (name, checkpoint.origin)]
    if any(len(value) > 255 for value in names):
        raise CheckpointError("a cosigned checkpoint's origin has at most 255 bytes")
    cosigner, origin = (bytes([len(value)]) + value for value in names)
    start, end = bytes(8), checkpoint.size.to_bytes(8, "big")
    return _SUBTREE_LABEL + cosigner + time_s.to_bytes(8, "big") + origin + start + end + checkpoint.root


def _algorithm(kind: int, what: str) -> Algorithm:
    try:
        return Algorithm.ED25519 if kind == _PLAIN_ED25519 else Algorithm(kind)
    except ValueError as error:
        raise CheckpointError(f"{what}: neither an Ed25519 nor an ML-DSA-44 key") from error
