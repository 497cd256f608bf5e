import itertools

import pytest

from bulkhead.attestation import EvidenceKind, Tier, TrustPolicy, load_trust_policy
from bulkhead.encoding import b64url_encode
from bulkhead.errors import ConfigError

KEY = bytes(range(32))


def write(tmp_path, text):
    path = tmp_path / "trust.toml"
    path.write_text(text)
    return path


def test_file_is_read_in_full(tmp_path):
    """Every key of the file reaches the policy."""
    path = write(
        tmp_path,
        f"""
        accepted_kinds = ["operator", "simulated"]
        operator_keys = ["{b64url_encode(KEY)}"]
        minimum_tier = "mig"
        maximum_age_s = 60
        """,
    )
    assert load_trust_policy(path) == TrustPolicy(
        accepted_kinds=frozenset({EvidenceKind.OPERATOR, EvidenceKind.SIMULATED}),
        operator_keys=(KEY,),
        minimum_tier=Tier.MIG,
        maximum_age_s=60,
    )


def test_empty_file_is_the_strictest_policy(tmp_path):
    """What is not said is not trusted: hardware evidence of tier confidential only."""
    policy = load_trust_policy(write(tmp_path, ""))
    assert policy.accepted_kinds == {EvidenceKind.HARDWARE}
    assert policy.minimum_tier is Tier.CONFIDENTIAL
    assert policy.operator_keys == ()


@pytest.mark.parametrize(
    "text",
    [
        "minimum_tierr = 'gpu'",
        "minimum_tier = 'best'",
        "minimum_tier = 3",
        "accepted_kinds = ['anything']",
        "accepted_kinds = 'operator'",
        "operator_keys = ['AAAA']",
        "operator_keys = ['!!!']",
        "operator_keys = [1]",
        "maximum_age_s = 0",
        "maximum_age_s = 86401",
        "maximum_age_s = true",
        "not toml",
    ],
)
def test_mistakes_are_configuration_errors(tmp_path, text):
    """An unknown key, a wrong type or a value out of bounds stops the start."""
    with pytest.raises(ConfigError):
        load_trust_policy(write(tmp_path, text))


def test_missing_and_large_files_are_configuration_errors(tmp_path):
    """A file that is not there, or is above 64 KiB, is not read."""
    with pytest.raises(ConfigError):
        load_trust_policy(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="longer"):
        load_trust_policy(write(tmp_path, "#" * 70_000))


def test_tiers_compare_by_strength():
    """In strength, process < mig < gpu < confidential, in every comparison."""
    assert sorted(Tier) == [Tier.PROCESS, Tier.MIG, Tier.GPU, Tier.CONFIDENTIAL]
    for weaker, stronger in itertools.combinations(Tier, 2):
        assert weaker < stronger
        assert weaker <= stronger
        assert stronger > weaker
        assert stronger >= weaker
        assert not weaker >= stronger
