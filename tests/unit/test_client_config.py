"""Profiles: what is read, and what is refused before anything is dialled."""

import base64
import hashlib
from pathlib import Path

import pytest

from bulkhead.attestation import EvidenceKind, Tier
from bulkhead.client.config import config_path, list_profiles, load_profile
from bulkhead.encoding import b64url_encode
from bulkhead.errors import ConfigError, EvidencePolicyError

KEY = f"bhk_{'0' * 26}_{'a' * 43}"
ISSUER = bytes(range(32))


def _write(tmp_path: Path, body: str = "", *, extra: str = "", key_mode: int = 0o600, head: str = "") -> Path:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    key = tmp_path / "acme.key"
    key.write_text(KEY + "\n")
    key.chmod(key_mode)
    path = tmp_path / "config.toml"
    base = 'address = "localhost:1"\nca_file = "ca.pem"\napi_key_file = "acme.key"\n'
    path.write_text(f"{head}\n[profile.acme]\n{base}{body}\n{extra}")
    return path


def test_full_profile_is_read(tmp_path: Path) -> None:
    """Every key of a profile arrives in the dataclass, files read relative to the configuration file."""
    issuer = base64.urlsafe_b64encode(ISSUER).rstrip(b"=").decode()
    path = _write(
        tmp_path,
        f'server_name = "bulkhead.test"\nrole = "officer"\nlog_vkey = "v"\nticket_issuer = "{issuer}"\n'
        "development_mode = true\n",
        extra='[profile.acme.trust]\naccepted_kinds = ["simulated"]\nminimum_tier = "mig"\n'
        '[profile.acme.defaults]\nmodel = "m"\ntier = "gpu"\ndata_classes = ["phi"]\n',
    )
    profile = load_profile(path=path, environ={})
    assert profile.api_key == KEY
    assert (profile.role, profile.server_name, profile.development_mode) == ("officer", "bulkhead.test", True)
    assert profile.trust.accepted_kinds == {EvidenceKind.SIMULATED}
    assert profile.trust.minimum_tier is Tier.MIG
    assert (profile.defaults.model, profile.defaults.tier, profile.defaults.data_classes) == ("m", "gpu", ("phi",))
    assert profile.ticket_issuer is not None
    assert profile.ticket_issuer.check(ISSUER) == ISSUER


def test_secrets_stay_out_of_repr(tmp_path: Path) -> None:
    """A profile may be logged: its repr holds no credential."""
    assert KEY not in repr(load_profile(path=_write(tmp_path), environ={}))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """An API key that group or others can read or write is an error that says what to do."""
    with pytest.raises(ConfigError, match="chmod 600"):
        load_profile(path=_write(tmp_path, key_mode=mode), environ={})


@pytest.mark.parametrize(
    ("body", "extra", "match"),
    [
        ('log_vkeys = "v"', "", "unknown key 'log_vkeys'"),
        ("", '[profile.acme.defaults]\nmodle = "m"', "unknown key 'modle'"),
        ("", '[profile.acme.trust]\nminimum_teir = "gpu"', "unknown"),
        ("development_mode = 1", "", "true or false"),
        ('role = "root"', "", "expected one of"),
        ('ticket_issuer = "AAAA"', "", "32 bytes"),
        ('ticket_issuer = "***"', "", "base64url"),
        ('ticket_issuer_fingerprint = "zz"', "", "hexadecimal"),
        ('client_key_file = "x"', "", "beside it"),
        ('client_key_file = "x"\nclient_certificate_file = "y"', "", "exactly one credential"),
        ('trust_policy_file = "none.toml"', "", "cannot be read"),
        ("log_vkey = 3", "", "non-empty string"),
    ],
)
def test_wrong_profile_is_refused(tmp_path: Path, body: str, extra: str, match: str) -> None:
    """A misspelt, mistyped or contradictory entry is a ConfigError naming it, never silently no pin."""
    with pytest.raises(ConfigError, match=match):
        load_profile(path=_write(tmp_path, body, extra=extra), environ={})


def test_unknown_top_level_key_is_refused(tmp_path: Path) -> None:
    """An unknown key outside the profiles is an error too."""
    with pytest.raises(ConfigError, match="defualt_profile"):
        load_profile(path=_write(tmp_path, head='defualt_profile = "acme"'), environ={})


@pytest.mark.parametrize("text", ["", "bhk_short", f"{KEY} {KEY}", f"{KEY}\nx", "é" * 50])
def test_file_that_holds_no_api_key_is_refused(tmp_path: Path, text: str) -> None:
    """What is not one well-formed key never becomes a header."""
    path = _write(tmp_path)
    (tmp_path / "acme.key").write_text(text)
    with pytest.raises(ConfigError):
        load_profile(path=path, environ={})


def test_profile_is_chosen_by_argument_then_environment_then_default(tmp_path: Path) -> None:
    """--profile beats BULKHEAD_PROFILE, which beats default_profile; an unknown one lists what there is."""
    path = _write(tmp_path, head='default_profile = "acme"')
    with path.open("a") as file:
        file.write('[profile.other]\naddress = "localhost:2"\nca_file = "ca.pem"\napi_key_file = "acme.key"\n')
    assert load_profile(path=path, environ={}).name == "acme"
    assert load_profile(path=path, environ={"BULKHEAD_PROFILE": "other"}).name == "other"
    assert load_profile("acme", path=path, environ={"BULKHEAD_PROFILE": "other"}).name == "acme"
    with pytest.raises(ConfigError, match="acme, other"):
        load_profile("third", path=path, environ={})
    assert list_profiles(path) == (("acme", "other"), "acme")


def test_configuration_path(tmp_path: Path) -> None:
    """BULKHEAD_CONFIG names the file, else it is in the user's configuration directory."""
    assert config_path({"BULKHEAD_CONFIG": "/x/y.toml"}) == Path("/x/y.toml")
    assert config_path({"XDG_CONFIG_HOME": "/c"}) == Path("/c/bulkhead/config.toml")
    with pytest.raises(ConfigError, match="BULKHEAD_CONFIG"):
        load_profile(path=tmp_path / "none.toml", environ={})


def test_pinned_fingerprint_refuses_another_issuer(tmp_path: Path) -> None:
    """A ticket issuer pinned by fingerprint accepts its key and no other."""
    path = _write(tmp_path, f'ticket_issuer_fingerprint = "{hashlib.sha256(ISSUER).hexdigest()}"')
    pin = load_profile(path=path, environ={}).ticket_issuer
    assert pin is not None
    assert pin.check(ISSUER) == ISSUER
    for wrong in (bytes(32), b"", ISSUER + b"x"):
        with pytest.raises(EvidencePolicyError):
            pin.check(wrong)


def test_two_pins_accept_both_issuers(tmp_path: Path) -> None:
    """While the operator changes to another issuer a profile pins both, as keys or as fingerprints."""
    keys = [ISSUER, bytes(range(1, 33))]
    prints = ", ".join(f'"{hashlib.sha256(key).hexdigest()}"' for key in keys)
    texts = ", ".join(f'"{b64url_encode(key)}"' for key in keys)
    for line in (f"ticket_issuer_fingerprint = [{prints}]", f"ticket_issuer = [{texts}]"):
        pin = load_profile(path=_write(tmp_path, line), environ={}).ticket_issuer
        assert pin is not None
        assert [pin.check(key) for key in keys] == keys
        with pytest.raises(EvidencePolicyError):
            pin.check(bytes(32))
