package bulkhead.audit_test

import data.bulkhead.audit
import data.bulkhead.examples_test as examples

decide(action, role, subject_tenant, log_tenant) := result if {
	result := audit.decision with input as examples.about(action, role, subject_tenant, log_tenant)
}

test_an_officer_reads_and_exports_the_own_log if {
	decide("audit.read", "officer", examples.tenant_id, examples.tenant_id).allow
	decide("audit.export", "officer", examples.tenant_id, examples.tenant_id).allow
}

test_an_officer_reads_no_other_log if {
	examples.codes(decide("audit.read", "officer", examples.other_tenant_id, examples.tenant_id)) == {"NOT_PERMITTED"}
	examples.codes(decide("audit.read", "officer", examples.tenant_id, null)) == {"NOT_PERMITTED"}
}

test_an_officer_of_the_platform_reads_every_log if {
	decide("audit.read", "officer", null, examples.tenant_id).allow
	decide("audit.export", "officer", null, null).allow
}

test_admins_and_developers_read_no_log if {
	every own in [examples.tenant_id, null] {
		decide("audit.read", "admin", own, examples.tenant_id).allow == false
		decide("audit.read", "developer", own, examples.tenant_id).allow == false
		decide("audit.read", "admin", own, null).allow == false
	}
}

test_nothing_and_unknown_actions_are_denied if {
	audit.decision.allow == false with input as {}
	decide("audit.erase", "officer", examples.tenant_id, examples.tenant_id).allow == false
}
