"""C2SP signed notes with Ed25519 keys: what checkpoints are written as. Cosignatures: :mod:`.cosignature`.

Specification: https://c2sp.org/signed-note. A verifier key (vkey) is ``name+hex8+base64(0x01 ‖ public key)``, a
signer key ``PRIVATE+KEY+name+hex8+base64(0x01 ‖ seed)``; the key id is SHA-256(name ‖ LF ‖ 0x01 ‖ public key)[:4].
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bulkhead.encoding import b64decode, b64encode
from bulkhead.errors import CheckpointError, MalformedRequestError

__all__ = [
    "MAX_NOTE_BYTES",
    "NoteSigner",
    "NoteVerifier",
    "OpenedNote",
    "Signature",
    "Verifier",
    "check_name",
    "key_id_of",
    "make_signer_key",
    "open_note",
    "sign_note",
    "signature_line",
    "split_key",
    "split_note",
]

MAX_NOTE_BYTES: Final = 1_000_000  # the bound of the Go implementation that the specification grew from
MAX_SIGNATURES: Final = 100  # same source: more would only make a verifier work
MAX_NAME_BYTES: Final = 255  # a log's name is a URL prefix; docs/audit.md section 4
_ALG_ED25519: Final = 0x01
_ED25519_KEY_BYTES: Final = 32
_PRIVATE_PREFIX: Final = "PRIVATE+KEY+"
_SIGNATURE_PREFIX: Final = "— "  # em dash (U+2014) and a space


class Verifier(Protocol):
    """A pinned key of any signature type."""

    @property
    def name(self) -> str:
        """Key name."""
        ...

    @property
    def key_id(self) -> bytes:
        """Key id, 4 bytes."""
        ...

    def verify(self, text: str, signature: bytes) -> None:
        """Check a signature over the note's text.

        Raises:
            CheckpointError: it does not hold.
        """
        ...


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature line as it stands in a note; nothing is known about it yet."""

    name: str
    key_id: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class NoteVerifier:
    """A pinned public key: checks signatures made under ``name``."""

    name: str
    key_id: bytes
    public_key: bytes

    @classmethod
    def from_vkey(cls, vkey: str) -> "NoteVerifier":
        """Parse a vkey.

        Raises:
            CheckpointError: it is malformed, of another algorithm, or its key id is not that of its key.
        """
        name, key_id, algorithm, key = split_key(vkey, "verifier key")
        _check_ed25519(algorithm, key, "verifier key")
        if _key_id(name, key) != key_id:
            raise CheckpointError("verifier key: the key id is not that of name and key")
        return cls(name, key_id, key)

    @classmethod
    def from_public_key(cls, name: str, public_key: bytes) -> "NoteVerifier":
        """Name an Ed25519 public key (32 bytes).

        Raises:
            CheckpointError: the name or the key is malformed.
        """
        check_name(name)
        if len(public_key) != _ED25519_KEY_BYTES:
            raise CheckpointError("an Ed25519 public key is 32 bytes")
        return cls(name, _key_id(name, public_key), public_key)

    @property
    def vkey(self) -> str:
        """The key as text, to be pinned."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(bytes([_ALG_ED25519]) + self.public_key)}"

    def verify(self, text: str, signature: bytes) -> None:
        """Check an Ed25519 signature over the note's text.

        Raises:
            CheckpointError: the signature does not hold.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode("utf-8"))
        except (InvalidSignature, ValueError) as error:
            raise CheckpointError(f"the signature of {self.name} does not hold") from error


@dataclass(frozen=True, slots=True)
class NoteSigner:
    """A signing key under a name. ``sign`` may call into a key service; it returns a 64-byte Ed25519 signature."""

    verifier: NoteVerifier
    sign: Callable[[bytes], bytes] = field(repr=False)

    @classmethod
    def from_seed(cls, name: str, seed: bytes) -> "NoteSigner":
        """Make a signer from a 32-byte Ed25519 seed held in this process.

        Raises:
            CheckpointError: the name or the seed is malformed.
        """
        if len(seed) != _ED25519_KEY_BYTES:
            raise CheckpointError("an Ed25519 seed is 32 bytes")
        key = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(NoteVerifier.from_public_key(name, key.public_key().public_bytes_raw()), key.sign)

    @classmethod
    def from_skey(cls, skey: str) -> "NoteSigner":
        """Parse a signer key.

        Raises:
            CheckpointError: it is malformed or its key id is not that of its public key.
        """
        if not skey.startswith(_PRIVATE_PREFIX):
            raise CheckpointError("signer key: malformed")
        name, key_id, algorithm, seed = split_key(skey.removeprefix(_PRIVATE_PREFIX), "signer key")
        _check_ed25519(algorithm, seed, "signer key")
        signer = cls.from_seed(name, seed)
        if signer.verifier.key_id != key_id:
            raise CheckpointError("signer key: the key id is not that of name and key")
        return signer

    @property
    def vkey(self) -> str:
        """The public half as text."""
        return self.verifier.vkey


@dataclass(frozen=True, slots=True)
class OpenedNote:
    """A note of which at least one signature was verified.

    Attributes:
        text: the signed text, ending with a newline.
        verified: the pinned keys whose signature holds, each once.
        signatures: their signatures, in the same order.
        unverified: names of other signers; nothing is known about those signatures.
    """

    text: str
    verified: tuple[Verifier, ...]
    signatures: tuple[bytes, ...]
    unverified: tuple[str, ...]


def make_signer_key(name: str, seed: bytes) -> str:
    """Return the signer key (``PRIVATE+KEY+…``) of a 32-byte seed: a secret, for tools that read this form.

    Raises:
        CheckpointError: the name or the seed is malformed.
    """
    signer = NoteSigner.from_seed(name, seed)
    encoded = b64encode(bytes([_ALG_ED25519]) + seed)
    return f"{_PRIVATE_PREFIX}{name}+{signer.verifier.key_id.hex()}+{encoded}"


def sign_note(text: str, signers: Sequence[NoteSigner]) -> str:
    """Return the note: ``text``, a blank line, one signature line per signer.

    Raises:
        CheckpointError: the text does not end with a newline or holds control characters.
    """
    _check_text(text)
    data = text.encode("utf-8")
    lines = [
        signature_line(Signature(signer.verifier.name, signer.verifier.key_id, signer.sign(data))) for signer in signers
    ]
    return f"{text}\n{''.join(lines)}"


def signature_line(signature: Signature) -> str:
    """Return a signature as a line of a note, newline included."""
    return f"{_SIGNATURE_PREFIX}{signature.name} {b64encode(signature.key_id + signature.data)}\n"


def open_note(note: str, verifiers: Sequence[Verifier]) -> OpenedNote:
    """Verify a note against pinned keys.

    1. The note is well formed and within its bounds.
    2. Every signature line by a pinned key (same name and key id) holds: one that does not is an error even when
       another holds.
    3. At least one signature is by a pinned key.

    What the text means stays with the caller.

    Raises:
        CheckpointError: any of the three fails, or ``verifiers`` names one key twice.
    """
    known: dict[tuple[str, bytes], Verifier] = {}
    for verifier in verifiers:
        if (verifier.name, verifier.key_id) in known:
            raise CheckpointError(f"two pinned keys answer to {verifier.name}+{verifier.key_id.hex()}")
        known[verifier.name, verifier.key_id] = verifier
    text, signatures = split_note(note)  # 1
    verified: dict[tuple[str, bytes], tuple[Verifier, bytes]] = {}
    unverified: list[str] = []
    for signature in signatures:
        key = (signature.name, signature.key_id)
        match = known.get(key)
        if match is None:
            unverified.append(signature.name)
        elif key not in verified:
            match.verify(text, signature.data)  # 2
            verified[key] = match, signature.data
    if not verified:  # 3
        raise CheckpointError("the note has no signature by a pinned key")
    found = verified.values()
    return OpenedNote(text, tuple(item for item, _ in found), tuple(data for _, data in found), tuple(unverified))


def split_note(note: str) -> tuple[str, tuple[Signature, ...]]:
    """Return a note's text and its signatures, none of them verified.

    Raises:
        CheckpointError: the note is malformed or above its bounds.
    """
    try:
        size = len(note.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise CheckpointError("the note is not UTF-8") from error
    if size > MAX_NOTE_BYTES:
        raise CheckpointError(f"the note is longer than {MAX_NOTE_BYTES} bytes")
    at = note.rfind("\n\n")
    if at < 0 or not note.endswith("\n"):
        raise CheckpointError("the note is not text, blank line, signatures")
    text, lines = note[: at + 1], note[at + 2 :].removesuffix("\n").split("\n")
    _check_text(text)
    if len(lines) > MAX_SIGNATURES:
        raise CheckpointError(f"the note has more than {MAX_SIGNATURES} signatures")
    return text, tuple(_parse_signature(line) for line in lines)


def _parse_signature(line: str) -> Signature:
    name, separator, encoded = line.removeprefix(_SIGNATURE_PREFIX).partition(" ")
    if not line.startswith(_SIGNATURE_PREFIX) or not separator:
        raise CheckpointError("the note has a malformed signature line")
    check_name(name)
    data = _decode(encoded, "signature")
    if len(data) < 5:
        raise CheckpointError("the note has a malformed signature line")
    return Signature(name, data[:4], data[4:])


def _check_text(text: str) -> None:
    if not text.endswith("\n") or any((ord(char) < 0x20 and char != "\n") or char == "\ufffd" for char in text):
        raise CheckpointError("a note's text is UTF-8 lines without control characters")


def check_name(name: str) -> None:
    """Check a key name.

    Raises:
        CheckpointError: it is empty, too long, or holds spaces or plus signs.
    """
    if not name or "+" in name or any(char.isspace() for char in name) or len(name.encode()) > MAX_NAME_BYTES:
        raise CheckpointError("a key name is 1 to 255 bytes without spaces or plus signs")


def split_key(text: str, what: str) -> tuple[str, bytes, int, bytes]:
    """Return name, key id, signature type and key of ``name+hex8+base64(type ‖ key)``; the id is not checked yet.

    Raises:
        CheckpointError: it is malformed; ``what`` names it.
    """
    parts = text.split("+", 2)
    if len(parts) != 3 or len(parts[1]) != 8 or parts[1] != parts[1].lower():
        raise CheckpointError(f"{what}: malformed")
    name, hex_id, encoded = parts
    check_name(name)
    try:
        key_id = bytes.fromhex(hex_id)
    except ValueError as error:
        raise CheckpointError(f"{what}: malformed") from error
    data = _decode(encoded, what)
    if len(key_id) != 4 or len(data) < 2:
        raise CheckpointError(f"{what}: malformed")
    return name, key_id, data[0], data[1:]


def key_id_of(name: str, algorithm: int, public_key: bytes) -> bytes:
    """Return the key id: SHA-256(name ‖ LF ‖ signature type ‖ public key)[:4]."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([algorithm]) + public_key).digest()[:4]


def _check_ed25519(algorithm: int, key: bytes, what: str) -> None:
    if algorithm != _ALG_ED25519 or len(key) != _ED25519_KEY_BYTES:
        raise CheckpointError(f"{what}: not an Ed25519 key")


def _decode(text: str, what: str) -> bytes:
    try:
        return b64decode(text, what=what)
    except MalformedRequestError as error:
        raise CheckpointError(error.message) from error


def _key_id(name: str, public_key: bytes) -> bytes:
    return key_id_of(name, _ALG_ED25519, public_key)
