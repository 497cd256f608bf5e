package bulkhead.policy_test

import data.bulkhead.examples_test as examples
import data.bulkhead.policy

decide(action, role, properties) := result if {
	result := policy.decision with input as examples.bundle(action, role, properties)
}

test_an_admin_publishes if decide("policy.publish", "admin", {}).allow

test_a_second_person_activates if {
	decide("policy.activate", "admin", {}).allow
	decide("policy.activate", "officer", {}).allow
}

test_the_publisher_does_not_activate if {
	own := {"published_by": "subj_01h455vb4pex5vsknk084sn02q"}
	examples.codes(decide("policy.activate", "admin", own)) == {"SECOND_PERSON"}
}

test_a_bundle_of_nobody_is_not_activated if {
	examples.codes(decide("policy.activate", "admin", {"published_by": null})) == {"SECOND_PERSON"}
}

test_a_program_is_no_second_person if {
	request := object.union(examples.bundle("policy.activate", "admin", {}), {"subject": {"type": "service"}})
	decision := policy.decision with input as request
	examples.codes(decision) == {"SECOND_PERSON"}
}

test_an_older_or_equal_bundle_is_not_activated if {
	examples.codes(decide("policy.activate", "admin", {"number": 4})) == {"BUNDLE_OLDER"}
	examples.codes(decide("policy.activate", "admin", {"number": null})) == {"BUNDLE_OLDER"}
}

test_rollback_goes_to_what_was_active if {
	decide("policy.rollback", "admin", {"was_active": true, "number": 3}).allow
	examples.codes(decide("policy.rollback", "admin", {})) == {"BUNDLE_NEVER_ACTIVE"}
}

test_officers_read_and_change_nothing if {
	decide("policy.read", "officer", {}).allow
	every action in ["policy.publish", "policy.rollback"] {
		"NOT_PERMITTED" in examples.codes(decide(action, "officer", {}))
	}
}

test_a_tenants_officer_reads if {
	request := object.union(
		examples.bundle("policy.read", "officer", {}),
		{"subject": examples.subject("officer", examples.tenant_id)},
	)
	decision := policy.decision with input as request
	decision.allow
}

test_nothing_unknown_actions_and_developers_are_denied if {
	policy.decision.allow == false with input as {}
	decide("policy.erase", "admin", {}).allow == false
	decide("policy.publish", "developer", {}).allow == false
}
