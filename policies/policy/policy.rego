# METADATA
# title: Changing policies
# description: A bundle takes effect only by a second person; going back to one that two persons agreed to needs one.
package bulkhead.policy

import data.bulkhead.lib.answer
import data.bulkhead.lib.who

# METADATA
# title: Decision on policy.publish, policy.activate, policy.rollback and policy.read
# entrypoint: true
decision := answer.decision(denials, set())

permitted if {
	input.action.name in {"policy.publish", "policy.activate", "policy.rollback", "policy.read"}
	who.admin
}

permitted if {
	input.action.name in {"policy.activate", "policy.read"}
	who.platform_officer
}

permitted if {
	input.action.name == "policy.read"
	"officer" in input.subject.properties.roles
}

denials contains answer.reason("NOT_PERMITTED", "policy", message) if {
	not permitted
	message := "This credential may not do that: only platform administrators change policies."
}

denials contains answer.reason("SECOND_PERSON", "policy", message) if {
	input.action.name == "policy.activate"
	not second_person
	message := "Policies take effect only when a second person activates them: ask somebody other than the publisher."
}

second_person if {
	input.subject.type == "user"
	is_string(input.resource.properties.published_by)
	input.subject.id != input.resource.properties.published_by
}

denials contains answer.reason("BUNDLE_OLDER", "policy", message) if {
	input.action.name == "policy.activate"
	not newer
	message := "This bundle is not newer than the active one; use a rollback to go back."
}

newer if input.resource.properties.number > input.resource.properties.active_number

denials contains answer.reason("BUNDLE_NEVER_ACTIVE", "policy", message) if {
	input.action.name == "policy.rollback"
	not input.resource.properties.was_active
	message := "A rollback goes back to a bundle that was active before; this one never was."
}
