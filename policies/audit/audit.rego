# METADATA
# title: Reading audit logs
# description: >-
#   An officer reads the log of their own tenant, an officer of the platform every log. Administrators read none, so
#   that those who are watched do not watch.
package bulkhead.audit

import data.bulkhead.lib.answer
import data.bulkhead.lib.who

# METADATA
# title: Decision on audit.read and audit.export
# entrypoint: true
decision := answer.decision(denials, set())

actions := {"audit.read", "audit.export"}

permitted if {
	input.action.name in actions
	who.officer
}

permitted if {
	input.action.name in actions
	who.platform_officer
}

denials contains answer.reason("NOT_PERMITTED", "audit", message) if {
	not permitted
	message := "This credential may not read that log: only compliance officers do, and only their own tenant's."
}
