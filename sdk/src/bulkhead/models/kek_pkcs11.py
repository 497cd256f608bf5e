"""A key encryption key inside a PKCS#11 token, which it never leaves.

The mechanism is CKM_AES_GCM (PKCS #11 v2.40, section 2.12.4) with C_Encrypt and C_Decrypt: unlike the key wrapping
mechanisms it binds the wrapped key to its model, and tokens agree on it (SoftHSM 2.6 gives CKM_AES_KEY_WRAP_PAD the
meaning of CKM_AES_KEY_WRAP_KWP).
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from bulkhead.errors import AlreadyExistsError, ConfigError, KeyBrokerError, ModelKeyError
from bulkhead.models.manifest import WRAP_NONCE_BYTES

__all__ = ["TokenKek"]

_TAG_BITS: Final = 128
MAX_PIN_BYTES: Final = 256


class TokenKek:
    """An AES-256 secret key object of a token: sensitive, not extractable, for encryption and decryption.

    A session is opened for each operation, since a token that was restarted loses them.

    Args:
        module: the token's PKCS#11 library.
        token: label of the token.
        label: CKA_LABEL of the key.
        pin_file: holds the user PIN.

    Raises:
        ConfigError: python-pkcs11 or the library is missing, no such token or key, a PIN that is refused, or a key
            that could leave the token.
        KeyBrokerError: the token is out of reach.
    """

    def __init__(
        self,
        *,
        module: Path,
        token: str,
        label: str,
        pin_file: Path,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._pkcs11 = _library_binding()
        self._module, self._token, self._label, self._pin_file = module, token, label, pin_file
        self._random_bytes = random_bytes
        self._lock = threading.Lock()  # a token may take one session of a user at a time
        with self._key() as key:
            attribute = self._pkcs11.Attribute
            if key[attribute.EXTRACTABLE] or not key[attribute.SENSITIVE]:
                raise ConfigError(f"the key {label} can leave its token: make one that is sensitive, not extractable")

    @classmethod
    def create(cls, *, module: Path, token: str, label: str, pin_file: Path) -> "TokenKek":
        """Make a key in the token.

        Raises:
            AlreadyExistsError: the token has a key of that label.
            ConfigError, KeyBrokerError: as the class says.
        """
        binding = _library_binding()
        attribute = binding.Attribute
        with _session(binding, module, token, pin_file, writable=True) as session:
            if next(iter(session.get_objects({attribute.LABEL: label})), None) is not None:
                raise AlreadyExistsError(f"token {token} has an object {label} already")
            session.generate_key(
                binding.KeyType.AES,
                256,
                label=label,
                store=True,
                capabilities=binding.MechanismFlag.ENCRYPT | binding.MechanismFlag.DECRYPT,
                template={attribute.SENSITIVE: True, attribute.EXTRACTABLE: False, attribute.MODIFIABLE: False},
            )
        return cls(module=module, token=token, label=label, pin_file=pin_file)

    @property
    def kek_id(self) -> str:
        """``pkcs11:``, token and label."""
        return f"pkcs11:{self._token}/{self._label}"

    def wrap(self, key: bytes | bytearray, *, context: bytes) -> bytes:
        """See :meth:`bulkhead.models.kek.KeyEncryptionKey.wrap`."""
        nonce = self._random_bytes(WRAP_NONCE_BYTES)
        with self._key() as kek:
            sealed: bytes = kek.encrypt(bytes(key), **self._mechanism(nonce, context))
        return nonce + sealed

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytearray:
        """See :meth:`bulkhead.models.kek.KeyEncryptionKey.unwrap`."""
        with self._key() as kek:
            try:
                return bytearray(
                    kek.decrypt(wrapped[WRAP_NONCE_BYTES:], **self._mechanism(wrapped[:WRAP_NONCE_BYTES], context))
                )
            except self._pkcs11.exceptions.PKCS11Error as error:
                # Tokens do not agree on how they say that a tag is wrong: SoftHSM says CKR_GENERAL_ERROR.
                raise ModelKeyError(
                    "the token does not unwrap the key: it is of another key or model, or was altered"
                ) from error

    def _mechanism(self, nonce: bytes, context: bytes) -> dict[str, Any]:
        return {
            "mechanism": self._pkcs11.Mechanism.AES_GCM,
            "mechanism_param": self._pkcs11.GCMParams(nonce, context, _TAG_BITS),
        }

    @contextmanager
    def _key(self) -> "Iterator[Any]":
        with self._lock, _session(self._pkcs11, self._module, self._token, self._pin_file, writable=False) as session:
            try:
                key = session.get_key(
                    object_class=self._pkcs11.ObjectClass.SECRET_KEY,
                    key_type=self._pkcs11.KeyType.AES,
                    label=self._label,
                )
            except (self._pkcs11.exceptions.NoSuchKey, self._pkcs11.exceptions.MultipleObjectsReturned) as error:
                raise ConfigError(f"token {self._token} has not one AES key {self._label}") from error
            yield key


def _library_binding() -> ModuleType:
    try:
        import pkcs11
    except ImportError as error:
        raise ConfigError("keys in PKCS#11 tokens need python-pkcs11: install the extra hsm") from error
    return pkcs11


@contextmanager
def _session(binding: ModuleType, module: Path, token: str, pin_file: Path, *, writable: bool) -> "Iterator[Any]":
    exceptions = binding.exceptions
    try:
        pin = pin_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{pin_file}: the token's PIN cannot be read") from error
    if not 0 < len(pin) <= MAX_PIN_BYTES:
        raise ConfigError(f"{pin_file}: does not hold a PIN")
    try:
        library = binding.lib(str(module))
        opened = library.get_token(token_label=token).open(user_pin=pin, rw=writable)
    except (exceptions.NoSuchToken, exceptions.MultipleTokensReturned) as error:
        raise ConfigError(f"{module} has not one token labelled {token}") from error
    except (exceptions.PinIncorrect, exceptions.PinLocked, exceptions.PinInvalid, exceptions.PinLenRange) as error:
        raise ConfigError(f"token {token} refuses the PIN in {pin_file}") from error
    except (exceptions.PKCS11Error, RuntimeError, OSError) as error:
        raise KeyBrokerError(f"token {token} is out of reach through {module}: {type(error).__name__}") from error
    try:
        with opened as session:
            yield session
    except (exceptions.DeviceRemoved, exceptions.DeviceError, exceptions.TokenNotPresent) as error:
        raise KeyBrokerError(f"token {token} went away: {type(error).__name__}") from error
