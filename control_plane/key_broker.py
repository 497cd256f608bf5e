"""The platform's own key broker, as the configuration describes it."""

import time
from collections.abc import Callable

from bulkhead.broker import Floors, KeyBroker, Nonces
from bulkhead.models import open_kek
from control_plane.config import ControlPlaneConfig
from control_plane.services.hardware import HardwareTrust

__all__ = ["key_broker"]


def key_broker(config: ControlPlaneConfig, hardware: HardwareTrust | None) -> Callable[[Floors], KeyBroker] | None:
    """Return what makes the broker from its floors, or None where no key encryption key is configured.

    Args:
        config: of this process.
        hardware: verifies the evidence of confidential workers; without it they get no keys.

    Raises:
        ConfigError, KeyBrokerError: a key encryption key cannot be used.
    """
    if not config.keys.keks:
        return None
    keks = [open_kek(uri) for uri in config.keys.keks]

    def make(floors: Floors) -> KeyBroker:
        return KeyBroker(
            keks=keks,
            signers=config.keys.signer_keys(),
            floors=floors,
            nonces=Nonces(monotonic_s=time.monotonic),
            wall_s=time.time,
            software=frozenset(config.keys.software) or None,
            development_mode=config.fleet.allow_simulated,
            hardware=None if hardware is None else hardware.verifier,
        )

    return make
