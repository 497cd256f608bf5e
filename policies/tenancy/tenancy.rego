# METADATA
# title: Administration of tenants, principals, credentials, models, the fleet and its keys
# description: Administrators change things; officers and developers see what belongs to their own tenant.
package bulkhead.tenancy

import data.bulkhead.lib.answer
import data.bulkhead.lib.who

# METADATA
# title: Decision on tenant.*, principal.*, credential.*, model.*, fleet.*, issuer.* and identity.*
# entrypoint: true
decision := answer.decision(denials, set())

changes := {
	"tenant.create",
	"tenant.update",
	"principal.create",
	"credential.create",
	"credential.revoke",
	"model.register",
	"model.retire",
	"fleet.cordon",
	"fleet.uncordon",
	"fleet.release",
	"issuer.add",
	"issuer.activate",
	"issuer.retire",
	"identity.issue",
}

reads := {"tenant.read", "principal.read", "credential.read", "model.read", "fleet.read", "issuer.read"}

permitted if {
	input.action.name in (changes | reads)
	who.admin
}

permitted if {
	input.action.name in reads
	who.platform_officer
}

permitted if {
	input.action.name in {"tenant.read", "principal.read", "credential.read", "model.read"}
	who.officer
}

permitted if {
	input.action.name in {"tenant.read", "model.read"}
	who.developer
}

denials contains answer.reason("NOT_PERMITTED", "tenancy", message) if {
	not permitted
	message := "This credential may not do that: only platform administrators change tenants, credentials, models and the fleet."
}
