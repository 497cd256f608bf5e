"""Everything security-relevant is recorded: each action has a test that shows it, or is said not to be written."""

import re
from pathlib import Path

from audit.records import Action

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
TENANCY, POLICIES, ISSUERS = "test_control_tenancy", "test_control_policies", "test_control_issuers"
SESSIONS, FLEET, READS = "test_control_sessions_open", "test_control_fleet_agents", "test_control_sessions_audit"
LIFE = "test_the_life_of_credentials_is_recorded"
ORDER = "test_records_stand_in_the_one_order"
PROCESS = "e2e/test_control_plane_process"
CORDON = "test_cordoned_agent_takes_nothing_new_and_admins_see_the_fleet"

# The test (file and function) that makes an action happen and finds its record.
SHOWN = {
    Action.DECISION: (TENANCY, "test_the_decision_is_recorded_before_the_change"),
    Action.OUTCOME: (SESSIONS, ORDER),
    Action.RECEIPTS: ("e2e/test_journey", "test_receipts_reach_the_log_with_their_counts"),
    Action.SESSION_RENEWED: (SESSIONS, "test_renewal_continues_without_weakening"),
    Action.SESSION_CLOSED: (FLEET, "test_gone_agent_loses_its_partitions_after_the_grace"),
    Action.ACCESS_DENIED: ("adversarial/test_tenancy", "test_another_tenants_session_does_not_exist"),
    Action.AUTHENTICATION_FAILED: ("adversarial/test_credentials", "test_no_credential_at_all"),
    Action.TENANT_CREATED: (TENANCY, "test_a_tenant_is_created_with_its_log"),
    Action.TENANT_UPDATED: (TENANCY, "test_an_update_changes_the_named_fields_only"),
    Action.TENANT_ROOT_CHANGED: (TENANCY, "test_a_changed_root_is_a_record_of_its_own"),
    Action.TENANT_SUSPENDED: (TENANCY, "test_suspension_and_resumption_have_names_of_their_own"),
    Action.TENANT_RESUMED: (TENANCY, "test_suspension_and_resumption_have_names_of_their_own"),
    Action.PRINCIPAL_CREATED: (TENANCY, LIFE),
    Action.CREDENTIAL_ISSUED: (TENANCY, LIFE),
    Action.CREDENTIAL_REVOKED: (TENANCY, LIFE),
    Action.MODEL_REGISTERED: (TENANCY, "test_models_are_registered_retired_and_renewed"),
    Action.MODEL_UPDATED: (TENANCY, "test_models_are_registered_retired_and_renewed"),
    Action.MODEL_RETIRED: (TENANCY, "test_models_are_registered_retired_and_renewed"),
    Action.KEY_RELEASED: ("e2e/test_sealed_models", "test_a_model_whose_key_the_tenant_holds_is_served"),
    Action.KEY_REFUSED: (
        "e2e/test_sealed_models",
        "test_a_worker_that_the_tenants_policy_refuses_gets_no_key_and_the_log_says_so",
    ),
    Action.POLICY_UPLOADED: (POLICIES, "test_a_candidate_serves_nothing"),
    Action.POLICY_ACTIVATED: (POLICIES, "test_activation_takes_a_second_person"),
    Action.POLICY_ROLLED_BACK: (POLICIES, "test_a_rollback_goes_back_and_forth"),
    Action.POLICY_REFUSED: (POLICIES, "test_sources_that_do_not_pass_are_recorded_and_not_stored"),
    Action.PARTITION_RESERVED: (SESSIONS, ORDER),
    Action.PARTITION_CREATING: (SESSIONS, ORDER),
    Action.PARTITION_ATTESTING: (SESSIONS, ORDER),
    Action.PARTITION_READY: (SESSIONS, ORDER),
    Action.PARTITION_RELEASED: (FLEET, CORDON),
    Action.PARTITION_DRAINING: (FLEET, CORDON),
    Action.PARTITION_SCRUBBING: (FLEET, CORDON),
    Action.PARTITION_FREED: (FLEET, CORDON),
    Action.PARTITION_LOST: (FLEET, "test_worker_death_is_followed"),
    Action.PARTITION_CORDONED: (FLEET, "test_scrub_that_is_not_proven_cordons_the_place"),
    Action.AGENT_ENROLLED: (FLEET, "test_restarted_agent_loses_what_it_no_longer_runs"),
    Action.AGENT_CONNECTED: (FLEET, "test_restarted_agent_loses_what_it_no_longer_runs"),
    Action.AGENT_LOST: (FLEET, "test_gone_agent_loses_its_partitions_after_the_grace"),
    Action.AGENT_CORDONED: (FLEET, CORDON),
    Action.AGENT_UNCORDONED: (FLEET, CORDON),
    Action.ISSUER_ADDED: (ISSUERS, "test_changes_are_recorded"),
    Action.ISSUER_ACTIVATED: (ISSUERS, "test_changes_are_recorded"),
    Action.ISSUER_RETIRED: (ISSUERS, "test_changes_are_recorded"),
    Action.IDENTITY_ISSUED: ("test_control_command", "test_issued_identities_are_recorded"),
    Action.AUDIT_READ: (READS, "test_officer_lists_the_own_log_page_by_page_and_the_read_is_recorded"),
    Action.AUDIT_EXPORTED: (READS, "test_export_is_recorded_before_its_first_byte"),
    Action.PLATFORM_START: (PROCESS, "test_start_stop_and_configuration_are_recorded"),
    Action.PLATFORM_STOP: (PROCESS, "test_start_stop_and_configuration_are_recorded"),
    Action.PLATFORM_CONFIGURED: (PROCESS, "test_start_stop_and_configuration_are_recorded"),
    Action.LOG_OPENED: ("test_audit_log", "test_a_tenant_gets_a_log_of_its_own"),
    Action.LOG_ROUND: ("test_audit_writers", "test_rounds_of_several_writers_have_one_order"),
}


def test_each_action_is_shown_or_said_not_to_be_written():
    """Every action of the vocabulary has a test, or stands in the document's list of those that are not written."""
    listed = re.search(r"^- not written by this build, .*?(?=\n\n)", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    assert listed is not None
    unwritten = {Action(name) for name in re.findall(r"`([a-z_.]+)`", listed[0])}
    assert not unwritten & set(SHOWN)
    assert unwritten | set(SHOWN) == set(Action)


def test_the_tests_are_there_and_name_the_action():
    """Each test that is named exists, in a file that names the action."""
    for action, (file, function) in SHOWN.items():
        path = ROOT / "tests" / (f"{file}.py" if "/" in file else f"unit/{file}.py")
        text = path.read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {function}\(", text, flags=re.MULTILINE), (action, function)
        assert f'"{action.value}"' in text, (action, file)


def test_actions_that_are_not_written_are_written_nowhere():
    """What the document says is not written has no code that writes it; all else has."""
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("control_plane", "audit")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("envelope.py", "schema.py")
    )
    used = {action for action in Action if re.search(rf"\bAction\.{action.name}\b", code)}
    assert used == set(SHOWN)
