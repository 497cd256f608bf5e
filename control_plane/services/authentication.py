"""Who is calling: API keys and client certificates against the stored credentials.

Obligations of :meth:`Authenticator.api_key` and :meth:`~Authenticator.certificate`:

1. The credential exists; for a key, the presented secret hashes to the stored value, compared in constant time. All
   failures up to here are one error with one text: nothing tells a guesser which part was wrong.
2. Only whoever proved possession learns that the credential was revoked, or has expired. For a certificate the TLS
   handshake has proved it; its own validity is checked here again, since a connection outlives a handshake.
3. The scopes are those granted that the principal's role can still have.

Left to others: whether the tenant is active (policy, with every other fact), and what the scopes allow (admission).
"""

from collections.abc import Callable
from dataclasses import dataclass

from bulkhead.errors import (
    CredentialExpiredError,
    CredentialInvalidError,
    CredentialRevokedError,
    UnauthenticatedError,
)
from control_plane.domain.api_keys import ApiKey
from control_plane.domain.roles import Caller, effective_scopes
from control_plane.domain.tenancy import Credential, Principal
from control_plane.storage.engine import Database
from control_plane.storage.tenancy import Credentials
from service.tls import PeerCertificate

__all__ = ["Authenticator", "Verdict"]

US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a credential.

    Attributes:
        caller: who holds it; also set when it is genuine and no longer holds, so that the refusal can be recorded
            where it belongs. None when it is not genuine.
        refusal: why the call must be refused; None admits it.
    """

    caller: Caller | None
    refusal: UnauthenticatedError | None


class Authenticator:
    """Checks credentials.

    Args:
        database: the state database; every call reads it, so that a revocation holds from the next call on.
        now_us: Unix time in microseconds.
    """

    def __init__(self, *, database: Database, now_us: Callable[[], int]) -> None:
        self._database = database
        self._now_us = now_us

    async def api_key(self, text: str, *, network: str) -> Verdict:
        """Return the verdict on an API key.

        Args:
            text: as presented, untrusted.
            network: class of the peer's address.

        Raises:
            StateUnavailableError: nobody can be authenticated now.
        """
        try:
            key = ApiKey.parse(text)
        except CredentialInvalidError as error:
            return Verdict(None, error)
        found = await self._database.read(
            lambda tx: Credentials.of(tx).find_with_principal(credential_id=key.credential_id)
        )
        if not key.matches(None if found is None else found[2]) or found is None:  # 1
            return Verdict(None, CredentialInvalidError("the API key is not one of ours"))
        credential, principal, _ = found
        return self._verdict(credential, principal, network)

    async def certificate(self, peer: PeerCertificate, *, network: str) -> Verdict:
        """Return the verdict on a client certificate whose chain and possession the TLS handshake verified.

        Raises:
            StateUnavailableError: nobody can be authenticated now.
        """
        found = await self._database.read(
            lambda tx: Credentials.of(tx).find_with_principal(fingerprint=peer.fingerprint)
        )
        if found is None:  # 1
            return Verdict(None, CredentialInvalidError("the client certificate is not registered"))
        credential, principal, _ = found
        verdict = self._verdict(credential, principal, network)
        now_s = self._now_us() / US_PER_S
        if verdict.refusal is None and not peer.not_before.timestamp() <= now_s < peer.not_after.timestamp():  # 2
            return Verdict(verdict.caller, CredentialExpiredError("the client certificate is outside its validity"))
        return verdict

    def _verdict(self, credential: Credential, principal: Principal, network: str) -> Verdict:
        caller = Caller(
            principal_id=principal.principal_id,
            subject_id=principal.subject_id,
            tenant_id=principal.tenant_id,
            role=principal.role,
            scopes=effective_scopes(principal.role, credential.scopes),  # 3
            credential_id=credential.credential_id,
            credential_kind=credential.kind,
            network=network,
        )
        if credential.revoked_us:  # 2
            return Verdict(caller, CredentialRevokedError("the credential was revoked; ask an administrator"))
        if self._now_us() >= credential.expires_us:  # 2
            return Verdict(caller, CredentialExpiredError("the credential has expired; ask for a new one"))
        return Verdict(caller, None)
