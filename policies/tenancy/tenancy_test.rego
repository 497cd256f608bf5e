package bulkhead.tenancy_test

import data.bulkhead.examples_test as examples
import data.bulkhead.tenancy

decide(action, role, subject_tenant, resource_tenant) := result if {
	result := tenancy.decision with input as examples.about(action, role, subject_tenant, resource_tenant)
}

test_admins_do_everything if {
	every action in tenancy.changes | tenancy.reads {
		decide(action, "admin", null, examples.tenant_id) == {"allow": true, "reasons": [], "obligations": []}
	}
}

test_nobody_else_changes_anything if {
	every action in tenancy.changes {
		every role in ["developer", "officer"] {
			every own in [examples.tenant_id, null] {
				examples.codes(decide(action, role, own, examples.tenant_id)) == {"NOT_PERMITTED"}
			}
		}
	}
}

test_an_admin_role_inside_a_tenant_changes_nothing if {
	decide("tenant.update", "admin", examples.tenant_id, examples.tenant_id).allow == false
}

test_officers_see_their_own_tenant if {
	every action in ["tenant.read", "principal.read", "credential.read", "model.read"] {
		decide(action, "officer", examples.tenant_id, examples.tenant_id).allow
		decide(action, "officer", examples.other_tenant_id, examples.tenant_id).allow == false
	}
	decide("fleet.read", "officer", examples.tenant_id, examples.tenant_id).allow == false
}

test_officers_of_the_platform_see_everything if {
	every action in tenancy.reads {
		decide(action, "officer", null, examples.tenant_id).allow
	}
}

test_developers_see_their_tenant_and_its_models if {
	decide("tenant.read", "developer", examples.tenant_id, examples.tenant_id).allow
	decide("model.read", "developer", examples.tenant_id, examples.tenant_id).allow
	decide("credential.read", "developer", examples.tenant_id, examples.tenant_id).allow == false
	decide("model.read", "developer", examples.other_tenant_id, examples.tenant_id).allow == false
}

test_nothing_and_unknown_actions_are_denied if {
	tenancy.decision.allow == false with input as {}
	decide("tenant.destroy", "admin", null, examples.tenant_id).allow == false
}
