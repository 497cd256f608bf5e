"""The worker's side of a session, without I/O (docs/protocol.md section 5).

One :class:`SealedServer` per worker opens envelopes, in this order and no other: size, ticket, key, certificate,
signature, sequence, KEM. Everything the key encapsulation is bound to comes from the verified ticket, nothing from the
request but its id, sequence and method, which the session key signs. What follows is the
:class:`~bulkhead.protocol.server_request.ServerRequest`'s.
"""

import secrets
import threading
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bulkhead.errors import CertificateError, KeyMismatchError, SignatureError, StaleKeyError, TicketError
from bulkhead.protocol.certificates import verify_certificate
from bulkhead.protocol.context import RequestInfo
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.receipts import ReceiptNumbers, receipt_fetch_message
from bulkhead.protocol.replay import ReplayGuard
from bulkhead.protocol.server_request import ServerRequest
from bulkhead.protocol.tickets import TicketClaims, TicketVerifier
from bulkhead.sealing import WorkerKeys
from bulkhead.sealing.schedule import WORKER_RANDOM_BYTES, KeySchedule

__all__ = ["SealedServer"]


class SealedServer:
    """Opens the sealed requests of one worker. Safe across threads.

    Args:
        authority: the worker's name; tickets name it as audience.
        tenant: the one tenant that the worker serves.
        partition: the worker's partition.
        model_digest: of the model it serves, 32 bytes.
        tickets: verifies tickets.
        keys: the current keys; see :meth:`add_keys`.
        is_revoked: whether the ticket's session was revoked.
        knows_evidence: whether evidence of that digest was issued for this worker; None accepts what the ticket says.
        tenant_root: fingerprint (32 bytes) of the root in the worker's descriptor, which must have certified every
            session key; None where the tenant has none. It never changes, since receipts of one keyset speak for it.
        random_bytes: source of the worker's bytes in responses.
    """

    def __init__(
        self,
        *,
        authority: str,
        tenant: str,
        partition: str,
        model_digest: bytes,
        tickets: TicketVerifier,
        keys: WorkerKeys,
        is_revoked: Callable[[TicketClaims], bool],
        knows_evidence: Callable[[bytes], bool] | None = None,
        tenant_root: bytes | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._authority = authority
        self._tenant = tenant
        self._partition = partition
        self._model_digest = model_digest
        self._tickets = tickets
        self._is_revoked = is_revoked
        self._knows_evidence = knows_evidence
        self._tenant_root = tenant_root
        self._random_bytes = random_bytes
        self._keys = {keys.key_id: keys}
        self._replay = ReplayGuard()
        self._receipts = ReceiptNumbers()
        self._lock = threading.Lock()
        self._latest_s = 0

    def add_keys(self, keys: WorkerKeys) -> None:
        """Take requests to a further generation of keys."""
        self._keys = {**self._keys, keys.key_id: keys}

    def retire_keys(self, key_id: bytes) -> None:
        """Destroy a generation: requests sealed to it are refused as stale, recorded ones cannot be opened again."""
        keys = self._keys.get(key_id)
        self._keys = {known: held for known, held in self._keys.items() if known != key_id}
        if keys is not None:
            keys.destroy()
        self._replay.forget(key_id)

    @property
    def partition(self) -> str:
        """Its partition id."""
        return self._partition

    def next_receipt_number(self, session: str) -> int:
        """Use up a number of a session's receipts, for a total of its usage."""
        return self._receipts.next(session)

    def open(self, envelope: bytes, *, now_s: int) -> ServerRequest:
        """Open an envelope (untrusted); the request's chunks follow through :meth:`ServerRequest.receive`.

        Obligations, in this order, the cheap and authenticating ones first:
            1. Size and exact layout.
            2. The ticket holds, is not revoked, and names this worker, tenant, partition and model.
            3. It names a keyset that the worker still holds, the one to which the request is sealed.
            4. Where the tenant has a root, it certified the session key in the ticket; else no certificate came.
            5. The session key signed the transcript.
            6. The sequence number is used for the first time.
            7. The request secret opens under exactly that context.

        Args:
            envelope: bytes as received.
            now_s: Unix seconds; a clock that goes backwards is read as its latest value.

        Raises:
            MalformedRequestError, MessageTooLargeError: 1.
            TicketError: 2 (also its subclasses for expiry and revocation).
            StaleKeyError, KeyMismatchError: 3.
            CertificateError: 4; its subclasses say what does not hold.
            SignatureError: 5.
            ReplayError, WindowFullError: 6.
            SealError: 7.
        """
        parsed = Envelope.parse(envelope)  # 1
        now_s = self._monotonic(now_s)
        claims = self._check_ticket(parsed.ticket, now_s=now_s)  # 2
        keys = self._keys.get(claims.keyset_digest)  # 3
        if keys is None or now_s >= keys.keyset.not_after_s:
            raise StaleKeyError("the worker no longer holds that key: renew the session")
        if parsed.key_id != claims.keyset_digest:
            raise KeyMismatchError("the request is sealed to another keyset than its ticket names")
        self._check_certificate(parsed.certificate, claims, now_s=now_s)  # 4
        info = RequestInfo(
            scope=claims.scope, request_id=parsed.request_id, sequence=parsed.sequence, method=parsed.method
        )
        transcript_hash = info.transcript_hash(parsed.sealed_secret)
        _check_signature(claims.cnf, parsed.signature, transcript_hash)  # 5
        self._replay.claim(info.scope, info.sequence)  # 6
        secret = keys.open_request(parsed.sealed_secret, info=info.encoded)  # 7
        return ServerRequest(
            claims=claims,
            info=info,
            keys=keys,
            transcript_hash=transcript_hash,
            schedule=KeySchedule(secret, transcript_hash=transcript_hash),
            worker_random=self._random_bytes(WORKER_RANDOM_BYTES),
            numbers=self._receipts,
        )

    def authorise_receipt_fetch(
        self, *, ticket: str, request_id: str, signature: bytes, now_s: int, certificate: bytes = b""
    ) -> TicketClaims:
        """Return the claims of a caller that may fetch receipts of its session.

        Raises:
            TicketError: the ticket does not hold here.
            CertificateError: the tenant has a root, which does not vouch for the session key.
            SignatureError: the session key did not sign for that request id.
        """
        now_s = self._monotonic(now_s)
        claims = self._check_ticket(ticket, now_s=now_s)
        self._check_certificate(certificate, claims, now_s=now_s)
        message = receipt_fetch_message(tenant=claims.tenant, session=claims.session, request_id=request_id)
        _check_signature(claims.cnf, signature, message)
        return claims

    def _monotonic(self, now_s: int) -> int:
        """Return the latest time seen: a clock that is set back revives no ticket and no key."""
        with self._lock:
            self._latest_s = max(self._latest_s, now_s)
            return self._latest_s

    def _check_ticket(self, ticket: str, *, now_s: int) -> TicketClaims:
        claims = self._tickets.verify(ticket, now_s=now_s, audience=self._authority, is_revoked=self._is_revoked)
        if (claims.tenant, claims.partition) != (self._tenant, self._partition):
            raise TicketError("the ticket is for another tenant or partition")
        if claims.model_digest != self._model_digest:
            raise TicketError("the ticket is for another model")
        if self._knows_evidence is not None and not self._knows_evidence(claims.evidence_digest):
            raise TicketError("the ticket stands on evidence that is not this worker's")
        return claims

    def _check_certificate(self, certificate: bytes, claims: TicketClaims, *, now_s: int) -> None:
        if self._tenant_root is not None:
            verify_certificate(
                certificate, root_fingerprint=self._tenant_root, tenant=self._tenant, cnf=claims.cnf, now_s=now_s
            )
        elif certificate:
            raise CertificateError("this worker was started for a tenant without a root: open a new session")


def _check_signature(public_key: bytes, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError("the session key of the ticket did not sign this request") from error
