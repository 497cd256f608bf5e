"""The one exception tree of Bulkhead, and the one table between codes and gRPC statuses.

Every failure that Bulkhead tells a caller about is a :class:`BulkheadError` with a stable ``code``. The code, not
the message, is the contract: it travels as ``google.rpc.ErrorInfo.reason`` and the SDK restores the class from it.

::

    BulkheadError
    ├── InvalidRequestError            the caller's input is wrong; sending it again will not help
    │   ├── MalformedRequestError      the message could not be decoded
    │   ├── BundleError                a policy bundle does not hold: sources, digest or signature
    │   ├── ContextLengthError         prompt and limits exceed the model's context
    │   └── MessageTooLargeError       a message above the transport's limit
    ├── ConfigError                    a process's configuration file is wrong (local only)
    ├── NotFoundError                  the named thing does not exist, or is not the caller's
    │   └── UnknownModelError
    ├── AlreadyExistsError             a unique name or a request id is taken by something else
    ├── ConflictError                  the state has moved on: read again, decide again
    ├── UnauthenticatedError           no credential, or one that does not hold
    │   ├── CredentialMissingError
    │   ├── CredentialInvalidError
    │   ├── CredentialExpiredError
    │   └── CredentialRevokedError
    ├── PermissionDeniedError          known caller, not allowed
    │   ├── KeyReleaseError            a key broker does not release a model's key to this worker
    │   ├── PolicyDeniedError          a policy said no; ``reasons`` says which and why
    │   ├── UnknownObligationError     policy demanded something this build cannot do
    │   └── ScopeError                 the credential lacks the role or scope
    ├── ExhaustedError                 a limit is reached
    │   ├── SessionLimitError
    │   ├── CapacityError              no partition of the demanded kind is free
    │   ├── QueueFullError
    │   └── RateLimitError
    ├── UnavailableError               try again later; nothing was done
    │   ├── PolicyEngineError          OPA down, slow, undefined or talking nonsense
    │   ├── AuditUnavailableError      the decision could not be recorded, so nothing happened
    │   ├── AuditLeaseError            the worker's lease on the audit log has run out
    │   ├── StateUnavailableError      the state database is out of reach
    │   ├── AgentUnavailableError      no node agent answers for the partition
    │   ├── WorkerLostError            the worker went away: open a new session
    │   ├── ConnectionFailedError      the peer cannot be reached
    │   ├── KeyBrokerError             the key broker, or its key store, cannot be reached
    │   └── ShuttingDownError
    ├── DeadlineError                  the deadline passed
    ├── CancelledError                 the caller, or the server's shutdown, ended the call
    ├── TicketError                    a session ticket does not hold
    │   ├── TicketExpiredError
    │   ├── ClockSkewError             a ticket from the future: the clocks disagree
    │   ├── TicketRevokedError
    │   └── SessionClosedError
    ├── CertificateError               no tenant root vouches for the session key
    │   ├── CertificateMissingError    the worker's tenant has a root, and no certificate came
    │   ├── CertificateExpiredError
    │   ├── CertificateNotYetValidError
    │   ├── CertificateRootError       by another root than the worker's descriptor names
    │   ├── CertificateSignatureError
    │   ├── CertificateTenantError
    │   └── CertificateKeyError        of another session key
    ├── TenantRootRequiredError        tier confidential, or the worker, demands a tenant root, and there is none
    ├── SealError                      a sealed message does not hold; nothing of it may be used
    │   ├── SignatureError             a signature of the request, response or receipt is wrong
    │   ├── ReplayError                a sequence number was used before, or is below the window
    │   ├── WindowFullError            the replay window is full: renew
    │   ├── StaleKeyError              the worker no longer holds that key: renew
    │   ├── KeyMismatchError           sealed to another keyset than the ticket names
    │   ├── ChunkReorderedError        a chunk of this stream, but a later one
    │   ├── ChunkRepeatedError         a chunk of this stream, but an earlier one
    │   ├── ChunkReflectedError        the reader's own chunk, sent back
    │   ├── TruncatedError             the stream ended before its final chunk
    │   └── ReceiptError               the receipt does not match what was sent and received
    │       ├── ReceiptCountError      token counts other than the answer's
    │       ├── ReceiptDigestError     of another transcript, evidence, keyset, model digest, request or response
    │       ├── ReceiptModelError
    │       ├── ReceiptTierError       another tier, or not said to be simulated
    │       └── ReceiptTimeError       made when its ticket or keys did not hold
    ├── SealedModelError               a sealed model does not hold; nothing of it is served
    │   ├── ModelManifestError         the manifest is malformed, contradicts itself, or is not the one expected
    │   ├── ModelSignatureError        nobody who is trusted for models signed the manifest
    │   ├── ModelRolledBackError       an older version than was seen before
    │   ├── ModelKeyError              the key is another model's, or does not unwrap
    │   ├── ModelFileMissingError      a file or shard is not there
    │   ├── ModelFileExtraError        a file is there that the manifest does not name
    │   ├── ModelFileSwappedError      a file's content is another file's of the same model
    │   ├── ModelFileTruncatedError    a file is shorter or longer than it was sealed
    │   ├── ModelChunkMovedError       a chunk stands at another chunk's place
    │   └── ModelAlteredError          bytes were changed
    ├── EvidenceError                  the worker could not be verified; no prompt was sent
    │   ├── SimulatedEvidenceError     simulated evidence outside development mode
    │   ├── EvidenceBindingError       evidence of something else: nonce, keyset, partition, session
    │   │   └── TenantRootMismatchError  the worker takes session keys of another tenant root, or of none
    │   ├── EvidenceExpiredError
    │   └── EvidencePolicyError        verified, but the tenant's trust policy does not accept it
    │       └── DowngradeError         verified, but weaker than was asked for, decided or held before
    ├── ProofError                     an audit proof does not hold
    │   ├── CheckpointError            the signed note is malformed or signed by another key
    │   ├── InclusionError
    │   ├── ConsistencyError           two checkpoints of one log do not agree: a fork or a rewind
    │   ├── RecordError                a leaf is not the record it claims to be
    │   └── UsageError                 the log states usage that no receipt shows
    ├── IsolationError                 a partition does not keep scopes apart, or its measurement cannot tell
    ├── LogForkError                   database and lock store disagree: writing has stopped
    ├── UnsupportedError               this build does not do that
    └── InternalError                  a defect; the log has the details under the request id
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final

__all__ = [
    "CODE_TO_STATUS",
    "AgentUnavailableError",
    "AlreadyExistsError",
    "AuditLeaseError",
    "AuditUnavailableError",
    "BulkheadError",
    "BundleError",
    "CancelledError",
    "CapacityError",
    "CertificateError",
    "CertificateExpiredError",
    "CertificateKeyError",
    "CertificateMissingError",
    "CertificateNotYetValidError",
    "CertificateRootError",
    "CertificateSignatureError",
    "CertificateTenantError",
    "CheckpointError",
    "ChunkReflectedError",
    "ChunkReorderedError",
    "ChunkRepeatedError",
    "ClockSkewError",
    "ConfigError",
    "ConflictError",
    "ConnectionFailedError",
    "ConsistencyError",
    "ContextLengthError",
    "CredentialExpiredError",
    "CredentialInvalidError",
    "CredentialMissingError",
    "CredentialRevokedError",
    "DeadlineError",
    "DowngradeError",
    "EvidenceBindingError",
    "EvidenceError",
    "EvidenceExpiredError",
    "EvidencePolicyError",
    "ExhaustedError",
    "InclusionError",
    "InternalError",
    "InvalidRequestError",
    "IsolationError",
    "KeyBrokerError",
    "KeyMismatchError",
    "KeyReleaseError",
    "LogForkError",
    "MalformedRequestError",
    "MessageTooLargeError",
    "ModelAlteredError",
    "ModelChunkMovedError",
    "ModelFileExtraError",
    "ModelFileMissingError",
    "ModelFileSwappedError",
    "ModelFileTruncatedError",
    "ModelKeyError",
    "ModelManifestError",
    "ModelRolledBackError",
    "ModelSignatureError",
    "NotFoundError",
    "PermissionDeniedError",
    "PolicyDeniedError",
    "PolicyEngineError",
    "ProofError",
    "QueueFullError",
    "RateLimitError",
    "ReceiptCountError",
    "ReceiptDigestError",
    "ReceiptError",
    "ReceiptModelError",
    "ReceiptTierError",
    "ReceiptTimeError",
    "RecordError",
    "ReplayError",
    "ScopeError",
    "SealError",
    "SealedModelError",
    "SessionClosedError",
    "SessionLimitError",
    "ShuttingDownError",
    "SignatureError",
    "SimulatedEvidenceError",
    "StaleKeyError",
    "StateUnavailableError",
    "TenantRootMismatchError",
    "TenantRootRequiredError",
    "TicketError",
    "TicketExpiredError",
    "TicketRevokedError",
    "TruncatedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownModelError",
    "UnknownObligationError",
    "UnsupportedError",
    "UsageError",
    "WindowFullError",
    "WorkerLostError",
    "error_from_code",
]


class BulkheadError(Exception):
    """Base of every error that Bulkhead reports.

    Attributes:
        code: stable identifier, upper snake case; see the module docstring for the tree.
        message: one sentence for a person, naming what to do where something can be done. Holds no prompt, answer,
            key or token.
        details: further facts for programs; travels as ``ErrorInfo.metadata``. Same rule on secrets.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, str] = MappingProxyType(dict(details or {}))


class InvalidRequestError(BulkheadError):
    """The caller's input is wrong."""

    code = "INVALID_REQUEST"


class MalformedRequestError(InvalidRequestError):
    """The message could not be decoded."""

    code = "MALFORMED_REQUEST"


class BundleError(InvalidRequestError):
    """A policy bundle does not hold: its sources, digest or signature."""

    code = "BUNDLE_INVALID"


class ContextLengthError(InvalidRequestError):
    """Prompt and limits exceed the model's context."""

    code = "CONTEXT_LENGTH"


class MessageTooLargeError(InvalidRequestError):
    """A message is above the transport's limit."""

    code = "MESSAGE_TOO_LARGE"


class ConfigError(BulkheadError):
    """A configuration file is wrong."""

    code = "CONFIG"


class NotFoundError(BulkheadError):
    """The named thing does not exist, or is not the caller's."""

    code = "NOT_FOUND"


class UnknownModelError(NotFoundError):
    """No such model is registered."""

    code = "MODEL_UNKNOWN"


class AlreadyExistsError(BulkheadError):
    """A unique name or request id is taken."""

    code = "ALREADY_EXISTS"


class ConflictError(BulkheadError):
    """The state has moved on since it was read."""

    code = "CONFLICT"


class UnauthenticatedError(BulkheadError):
    """The caller is not known."""

    code = "UNAUTHENTICATED"


class CredentialMissingError(UnauthenticatedError):
    """No credential was presented."""

    code = "CREDENTIAL_MISSING"


class CredentialInvalidError(UnauthenticatedError):
    """The credential is not one of ours."""

    code = "CREDENTIAL_INVALID"


class CredentialExpiredError(UnauthenticatedError):
    """The credential's time has passed."""

    code = "CREDENTIAL_EXPIRED"


class CredentialRevokedError(UnauthenticatedError):
    """The credential was revoked."""

    code = "CREDENTIAL_REVOKED"


class PermissionDeniedError(BulkheadError):
    """The caller is known and not allowed."""

    code = "PERMISSION_DENIED"


class PolicyDeniedError(PermissionDeniedError):
    """A policy denied the request; details name code and reason."""

    code = "POLICY_DENIED"


class UnknownObligationError(PermissionDeniedError):
    """Policy demanded an obligation this build does not know."""

    code = "OBLIGATION_UNKNOWN"


class ScopeError(PermissionDeniedError):
    """The credential lacks the role or scope."""

    code = "SCOPE_MISSING"


class KeyReleaseError(PermissionDeniedError):
    """A key broker does not release a model's key to this worker; details name the code of the reason."""

    code = "KEY_RELEASE_DENIED"


class ExhaustedError(BulkheadError):
    """A limit is reached."""

    code = "EXHAUSTED"


class SessionLimitError(ExhaustedError):
    """The tenant's limit of open sessions is reached."""

    code = "SESSION_LIMIT"


class CapacityError(ExhaustedError):
    """No partition of the demanded kind is free."""

    code = "NO_CAPACITY"


class QueueFullError(ExhaustedError):
    """The worker's queue is full."""

    code = "QUEUE_FULL"


class RateLimitError(ExhaustedError):
    """Too many requests from this principal."""

    code = "RATE_LIMITED"


class UnavailableError(BulkheadError):
    """Try again later; nothing was done."""

    code = "UNAVAILABLE"


class PolicyEngineError(UnavailableError):
    """The policy engine gave no well-formed decision."""

    code = "POLICY_ENGINE"


class AuditUnavailableError(UnavailableError):
    """The audit log cannot be written, so nothing happened."""

    code = "AUDIT_UNAVAILABLE"


class AuditLeaseError(UnavailableError):
    """The worker's lease on the audit log has run out."""

    code = "AUDIT_LEASE_EXPIRED"


class StateUnavailableError(UnavailableError):
    """The state database is out of reach."""

    code = "STATE_UNAVAILABLE"


class AgentUnavailableError(UnavailableError):
    """No node agent answers for the partition."""

    code = "AGENT_UNAVAILABLE"


class WorkerLostError(UnavailableError):
    """The worker went away; open a new session."""

    code = "WORKER_LOST"


class ConnectionFailedError(UnavailableError):
    """The peer cannot be reached."""

    code = "CONNECTION_FAILED"


class KeyBrokerError(UnavailableError):
    """The key broker, or its key store, cannot be reached."""

    code = "KEY_BROKER"


class ShuttingDownError(UnavailableError):
    """The process is shutting down."""

    code = "SHUTTING_DOWN"


class DeadlineError(BulkheadError):
    """The deadline passed."""

    code = "DEADLINE_EXCEEDED"


class CancelledError(BulkheadError):
    """The call was cancelled."""

    code = "CANCELLED"


class TicketError(BulkheadError):
    """The session ticket does not hold."""

    code = "TICKET_INVALID"


class TicketExpiredError(TicketError):
    """The ticket has expired; renew the session."""

    code = "TICKET_EXPIRED"


class ClockSkewError(TicketError):
    """The ticket is from the future: the clocks of its issuer and of this process disagree."""

    code = "CLOCK_SKEW"


class TicketRevokedError(TicketError):
    """The ticket was revoked."""

    code = "TICKET_REVOKED"


class SessionClosedError(TicketError):
    """The session is closed; open a new one."""

    code = "SESSION_CLOSED"


class CertificateError(BulkheadError):
    """The session key's certificate does not hold."""

    code = "CERTIFICATE_INVALID"


class CertificateMissingError(CertificateError):
    """The worker's tenant has a root, and the session key came without its certificate."""

    code = "CERTIFICATE_MISSING"


class CertificateExpiredError(CertificateError):
    """The certificate's time has passed: certify the session key again."""

    code = "CERTIFICATE_EXPIRED"


class CertificateNotYetValidError(CertificateError):
    """The certificate's time has not come, or the clocks of client and worker disagree."""

    code = "CERTIFICATE_NOT_YET_VALID"


class CertificateRootError(CertificateError):
    """Another root than the worker's descriptor names issued the certificate."""

    code = "CERTIFICATE_ROOT"


class CertificateSignatureError(CertificateError):
    """The root that the certificate names did not sign it."""

    code = "CERTIFICATE_SIGNATURE"


class CertificateTenantError(CertificateError):
    """The certificate is for another tenant."""

    code = "CERTIFICATE_TENANT"


class CertificateKeyError(CertificateError):
    """The certificate is of another session key."""

    code = "CERTIFICATE_KEY"


class TenantRootRequiredError(BulkheadError):
    """Tier confidential, or the worker, demands a tenant root, and none is recorded or configured."""

    code = "TENANT_ROOT_REQUIRED"


class SealError(BulkheadError):
    """A sealed message does not hold; nothing of it may be used."""

    code = "SEAL_BROKEN"


class SignatureError(SealError):
    """A signature of request, response or receipt is wrong."""

    code = "SIGNATURE_INVALID"


class ReplayError(SealError):
    """The sequence number was used before or is below the window."""

    code = "SEQUENCE_REPLAYED"


class WindowFullError(SealError):
    """The replay window is full; renew the session."""

    code = "SEQUENCE_WINDOW_FULL"


class StaleKeyError(SealError):
    """The worker no longer holds that key; renew the session."""

    code = "STALE_KEY"


class KeyMismatchError(SealError):
    """The request is sealed to another keyset than its ticket names."""

    code = "KEY_MISMATCH"


class ChunkReorderedError(SealError):
    """A later chunk of the stream came first."""

    code = "CHUNK_REORDERED"


class ChunkRepeatedError(SealError):
    """An earlier chunk of the stream came again."""

    code = "CHUNK_REPEATED"


class ChunkReflectedError(SealError):
    """The reader's own chunk came back to it."""

    code = "CHUNK_REFLECTED"


class TruncatedError(SealError):
    """The stream ended before its final chunk."""

    code = "STREAM_TRUNCATED"


class ReceiptError(SealError):
    """The receipt does not match what was sent and received."""

    code = "RECEIPT_INVALID"


class ReceiptCountError(ReceiptError):
    """The receipt states other token counts than the answer had."""

    code = "RECEIPT_COUNT"


class ReceiptDigestError(ReceiptError):
    """The receipt is of another transcript, evidence, keyset, model digest, request or response."""

    code = "RECEIPT_DIGEST"


class ReceiptModelError(ReceiptError):
    """The receipt names another model."""

    code = "RECEIPT_MODEL"


class ReceiptTierError(ReceiptError):
    """The receipt names another tier, or is silent about a simulation."""

    code = "RECEIPT_TIER"


class ReceiptTimeError(ReceiptError):
    """The receipt was made when its ticket or keys did not hold."""

    code = "RECEIPT_TIME"


class SealedModelError(BulkheadError):
    """A sealed model does not hold; nothing of it is served."""

    code = "MODEL_SEAL_BROKEN"


class ModelManifestError(SealedModelError):
    """The manifest is malformed, contradicts itself, or is not the one expected."""

    code = "MODEL_MANIFEST"


class ModelSignatureError(SealedModelError):
    """Nobody who is trusted for models signed the manifest."""

    code = "MODEL_SIGNATURE"


class ModelRolledBackError(SealedModelError):
    """An older version of the model than was seen before."""

    code = "MODEL_ROLLED_BACK"


class ModelKeyError(SealedModelError):
    """The key is another model's, or does not unwrap."""

    code = "MODEL_KEY"


class ModelFileMissingError(SealedModelError):
    """A file or shard is not there."""

    code = "MODEL_FILE_MISSING"


class ModelFileExtraError(SealedModelError):
    """A file is there that the manifest does not name."""

    code = "MODEL_FILE_EXTRA"


class ModelFileSwappedError(SealedModelError):
    """A file's content is another file's of the same model."""

    code = "MODEL_FILE_SWAPPED"


class ModelFileTruncatedError(SealedModelError):
    """A file is shorter or longer than it was sealed."""

    code = "MODEL_FILE_TRUNCATED"


class ModelChunkMovedError(SealedModelError):
    """A chunk stands at another chunk's place."""

    code = "MODEL_CHUNK_MOVED"


class ModelAlteredError(SealedModelError):
    """Bytes were changed."""

    code = "MODEL_ALTERED"


class EvidenceError(BulkheadError):
    """The worker could not be verified."""

    code = "EVIDENCE_INVALID"


class SimulatedEvidenceError(EvidenceError):
    """Simulated evidence outside development mode."""

    code = "EVIDENCE_SIMULATED"


class EvidenceBindingError(EvidenceError):
    """The evidence speaks of something else."""

    code = "EVIDENCE_BINDING"


class TenantRootMismatchError(EvidenceBindingError):
    """The worker takes session keys of another tenant root than the configured one, or of none."""

    code = "TENANT_ROOT_MISMATCH"


class EvidenceExpiredError(EvidenceError):
    """The evidence is out of date."""

    code = "EVIDENCE_EXPIRED"


class EvidencePolicyError(EvidenceError):
    """The tenant's trust policy does not accept the evidence."""

    code = "EVIDENCE_POLICY"


class DowngradeError(EvidencePolicyError):
    """What was verified is weaker than what was asked for, decided or held before."""

    code = "DOWNGRADED"


class ProofError(BulkheadError):
    """An audit proof does not hold."""

    code = "PROOF_INVALID"


class CheckpointError(ProofError):
    """The checkpoint is malformed or signed by another key."""

    code = "CHECKPOINT_INVALID"


class InclusionError(ProofError):
    """The record is not in the log that the checkpoint names."""

    code = "INCLUSION_INVALID"


class ConsistencyError(ProofError):
    """Two checkpoints of one log do not agree."""

    code = "CONSISTENCY_INVALID"


class RecordError(ProofError):
    """A leaf is not the record it claims to be."""

    code = "RECORD_INVALID"


class UsageError(ProofError):
    """The log states usage that no receipt shows."""

    code = "USAGE_UNPROVEN"


class IsolationError(BulkheadError):
    """A measured partition does not keep its scopes apart, or the measurement cannot tell."""

    code = "ISOLATION_UNPROVEN"


class LogForkError(BulkheadError):
    """Database and lock store disagree; writing has stopped."""

    code = "LOG_FORK"


class UnsupportedError(BulkheadError):
    """This build does not do that."""

    code = "UNSUPPORTED"


class InternalError(BulkheadError):
    """A defect; the server's log has the details."""

    code = "INTERNAL"


CODE_TO_STATUS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "INVALID_REQUEST": "INVALID_ARGUMENT",
        "MALFORMED_REQUEST": "INVALID_ARGUMENT",
        "BUNDLE_INVALID": "INVALID_ARGUMENT",
        "CONTEXT_LENGTH": "INVALID_ARGUMENT",
        "MESSAGE_TOO_LARGE": "RESOURCE_EXHAUSTED",
        "CONFIG": "FAILED_PRECONDITION",
        "NOT_FOUND": "NOT_FOUND",
        "MODEL_UNKNOWN": "NOT_FOUND",
        "ALREADY_EXISTS": "ALREADY_EXISTS",
        "CONFLICT": "ABORTED",
        "UNAUTHENTICATED": "UNAUTHENTICATED",
        "CREDENTIAL_MISSING": "UNAUTHENTICATED",
        "CREDENTIAL_INVALID": "UNAUTHENTICATED",
        "CREDENTIAL_EXPIRED": "UNAUTHENTICATED",
        "CREDENTIAL_REVOKED": "UNAUTHENTICATED",
        "PERMISSION_DENIED": "PERMISSION_DENIED",
        "POLICY_DENIED": "PERMISSION_DENIED",
        "OBLIGATION_UNKNOWN": "PERMISSION_DENIED",
        "SCOPE_MISSING": "PERMISSION_DENIED",
        "KEY_RELEASE_DENIED": "PERMISSION_DENIED",
        "EXHAUSTED": "RESOURCE_EXHAUSTED",
        "SESSION_LIMIT": "RESOURCE_EXHAUSTED",
        "NO_CAPACITY": "RESOURCE_EXHAUSTED",
        "QUEUE_FULL": "RESOURCE_EXHAUSTED",
        "RATE_LIMITED": "RESOURCE_EXHAUSTED",
        "UNAVAILABLE": "UNAVAILABLE",
        "POLICY_ENGINE": "UNAVAILABLE",
        "AUDIT_UNAVAILABLE": "UNAVAILABLE",
        "AUDIT_LEASE_EXPIRED": "UNAVAILABLE",
        "STATE_UNAVAILABLE": "UNAVAILABLE",
        "AGENT_UNAVAILABLE": "UNAVAILABLE",
        "WORKER_LOST": "UNAVAILABLE",
        "CONNECTION_FAILED": "UNAVAILABLE",
        "KEY_BROKER": "UNAVAILABLE",
        "SHUTTING_DOWN": "UNAVAILABLE",
        "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
        "CANCELLED": "CANCELLED",
        "TICKET_INVALID": "UNAUTHENTICATED",
        "TICKET_EXPIRED": "UNAUTHENTICATED",
        "TICKET_REVOKED": "UNAUTHENTICATED",
        "CLOCK_SKEW": "UNAUTHENTICATED",
        "SESSION_CLOSED": "FAILED_PRECONDITION",
        "CERTIFICATE_INVALID": "UNAUTHENTICATED",
        "CERTIFICATE_MISSING": "UNAUTHENTICATED",
        "CERTIFICATE_EXPIRED": "UNAUTHENTICATED",
        "CERTIFICATE_NOT_YET_VALID": "UNAUTHENTICATED",
        "CERTIFICATE_ROOT": "UNAUTHENTICATED",
        "CERTIFICATE_SIGNATURE": "UNAUTHENTICATED",
        "CERTIFICATE_TENANT": "UNAUTHENTICATED",
        "CERTIFICATE_KEY": "UNAUTHENTICATED",
        "TENANT_ROOT_REQUIRED": "FAILED_PRECONDITION",
        "TENANT_ROOT_MISMATCH": "FAILED_PRECONDITION",
        "SEAL_BROKEN": "DATA_LOSS",
        "SIGNATURE_INVALID": "UNAUTHENTICATED",
        "SEQUENCE_REPLAYED": "ABORTED",
        "SEQUENCE_WINDOW_FULL": "RESOURCE_EXHAUSTED",
        "STALE_KEY": "FAILED_PRECONDITION",
        "KEY_MISMATCH": "FAILED_PRECONDITION",
        "CHUNK_REORDERED": "DATA_LOSS",
        "CHUNK_REPEATED": "DATA_LOSS",
        "CHUNK_REFLECTED": "DATA_LOSS",
        "STREAM_TRUNCATED": "DATA_LOSS",
        "RECEIPT_INVALID": "DATA_LOSS",
        "RECEIPT_COUNT": "DATA_LOSS",
        "RECEIPT_DIGEST": "DATA_LOSS",
        "RECEIPT_MODEL": "DATA_LOSS",
        "RECEIPT_TIER": "DATA_LOSS",
        "RECEIPT_TIME": "DATA_LOSS",
        "MODEL_SEAL_BROKEN": "DATA_LOSS",
        "MODEL_MANIFEST": "DATA_LOSS",
        "MODEL_SIGNATURE": "DATA_LOSS",
        "MODEL_ROLLED_BACK": "FAILED_PRECONDITION",
        "MODEL_KEY": "FAILED_PRECONDITION",
        "MODEL_FILE_MISSING": "DATA_LOSS",
        "MODEL_FILE_EXTRA": "DATA_LOSS",
        "MODEL_FILE_SWAPPED": "DATA_LOSS",
        "MODEL_FILE_TRUNCATED": "DATA_LOSS",
        "MODEL_CHUNK_MOVED": "DATA_LOSS",
        "MODEL_ALTERED": "DATA_LOSS",
        "EVIDENCE_INVALID": "FAILED_PRECONDITION",
        "EVIDENCE_SIMULATED": "FAILED_PRECONDITION",
        "EVIDENCE_BINDING": "FAILED_PRECONDITION",
        "EVIDENCE_EXPIRED": "FAILED_PRECONDITION",
        "EVIDENCE_POLICY": "FAILED_PRECONDITION",
        "DOWNGRADED": "FAILED_PRECONDITION",
        "PROOF_INVALID": "DATA_LOSS",
        "CHECKPOINT_INVALID": "DATA_LOSS",
        "INCLUSION_INVALID": "DATA_LOSS",
        "CONSISTENCY_INVALID": "DATA_LOSS",
        "RECORD_INVALID": "DATA_LOSS",
        "USAGE_UNPROVEN": "DATA_LOSS",
        "ISOLATION_UNPROVEN": "FAILED_PRECONDITION",
        "LOG_FORK": "UNAVAILABLE",
        "UNSUPPORTED": "UNIMPLEMENTED",
        "INTERNAL": "INTERNAL",
    }
)
"""Stable code -> name of the gRPC status that carries it (``grpc.StatusCode`` member names)."""


def _classes(base: type[BulkheadError]) -> dict[str, type[BulkheadError]]:
    found = {base.code: base} if base is not BulkheadError else {}
    for child in base.__subclasses__():
        found.update(_classes(child))
    return found


_BY_CODE: Final[Mapping[str, type[BulkheadError]]] = MappingProxyType(_classes(BulkheadError))


def error_from_code(code: str, message: str, details: Mapping[str, str] | None = None) -> BulkheadError:
    """Restore the error that a peer reported.

    Args:
        code: ``ErrorInfo.reason`` as received; an unknown one gives :class:`InternalError`, so that a newer server
            never makes an older client raise something outside the tree.
        message: the peer's sentence (untrusted text: show it, never parse it).
        details: the peer's ``ErrorInfo.metadata``.
    """
    return _BY_CODE.get(code, InternalError)(message, details=details)
