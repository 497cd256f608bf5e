# METADATA
# title: Inputs that the tests start from
package bulkhead.examples_test

tenant_id := "tenant_01h455vb4pex5vsknk084sn02q"

other_tenant_id := "tenant_01h455vb4pex5vsknk084sn02r"

subject(role, tenant) := {
	"type": "user",
	"id": "subj_01h455vb4pex5vsknk084sn02q",
	"properties": {"roles": [role], "tenant": tenant, "credential": "api_key"},
}

facts := {
	"id": tenant_id,
	"status": "active",
	"regions": ["eu-central", "us-east"],
	"packs": [],
	"models": ["smollm2-135m-instruct"],
	"minimum_tier": "process",
	"session_limit": 2,
	"sessions_open": 0,
	"max_output_tokens": 256,
	"revision": 3,
}

platform := {"tiers": ["process", "mig", "gpu"], "regions": ["eu-central", "us-east"], "simulated": true}

properties := {
	"tenant": tenant_id,
	"model": "smollm2-135m-instruct",
	"model_digest": "aa",
	"model_status": "active",
	"minimum_tier": null,
	"region": null,
	"purpose": null,
	"data_classes": [],
	"max_output_tokens": null,
	"padding": "default",
	"key_custody": "none",
}

context(tenant) := {
	"time": "2026-01-01T00:00:00.000000Z",
	"network": "public",
	"tenant": tenant,
	"platform": platform,
}

# A developer's session.open, with some properties and facts replaced.
open_session(changed_properties, changed_facts) := {
	"subject": subject("developer", tenant_id),
	"action": {"name": "session.open"},
	"resource": {
		"type": "session",
		"id": "sess_01h455vb4pex5vsknk084sn02q",
		"properties": object.union(properties, changed_properties),
	},
	"context": context(object.union(facts, changed_facts)),
}

# Any action on an administered thing or a log, by a role of a tenant (null: of the platform).
about(action, role, subject_tenant, resource_tenant) := {
	"subject": subject(role, subject_tenant),
	"action": {"name": action},
	"resource": {"type": "tenant", "id": resource_tenant, "properties": {"tenant": resource_tenant}},
	"context": context(facts_of(resource_tenant)),
}

facts_of(id) := null if id == null

facts_of(id) := object.union(facts, {"id": id}) if id != null

bundle(action, role, changed_properties) := {
	"subject": subject(role, null),
	"action": {"name": action},
	"resource": {
		"type": "bundle",
		"id": "bndl_01h455vb4pex5vsknk084sn02q",
		"properties": object.union(
			{
				"digest": "bb",
				"number": 5,
				"published_by": "subj_01h455vb4pex5vsknk084sn02z",
				"was_active": false,
				"active_number": 4,
			},
			changed_properties,
		),
	},
	"context": context(null),
}

codes(decision) := {reason.code | some reason in decision.reasons}

of_type(decision, type) := [obligation | some obligation in decision.obligations; obligation.type == type]
