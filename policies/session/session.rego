# METADATA
# title: Sessions
# description: >-
#   Who may open, renew, close and see a session, and what the platform must keep to while it runs. Compliance packs
#   that the tenant is under add denials, obligations and regions.
package bulkhead.session

import data.bulkhead.lib.answer
import data.bulkhead.lib.tiers
import data.bulkhead.lib.who

# METADATA
# title: Decision on session.open, session.renew, session.close and session.read
# entrypoint: true
decision := answer.decision(denials, obligations)

serving if input.action.name in {"session.open", "session.renew"}

permitted if {
	input.action.name in {"session.open", "session.renew", "session.close", "session.read"}
	who.developer
}

permitted if {
	input.action.name == "session.read"
	who.officer
}

permitted if {
	input.action.name == "session.read"
	who.platform_officer
}

denials contains answer.reason("NOT_PERMITTED", "session", message) if {
	not permitted
	message := "This credential may not do that: only developers open, renew and close sessions, and only their own tenant's."
}

denials contains denial if {
	serving
	some denial in serving_denials
}

serving_denials contains answer.reason("TENANT_INACTIVE", "session", "The tenant is not active, so it gets no sessions.") if {
	not who.tenant_active
}

serving_denials contains answer.reason("MODEL_NOT_ENTITLED", "session", message) if {
	not entitled
	message := "The tenant is not entitled to this model."
}

entitled if input.resource.properties.model in input.context.tenant.models

serving_denials contains answer.reason("MODEL_RETIRED", "session", "The model has been retired; choose another.") if {
	not input.resource.properties.model_status == "active"
}

serving_denials contains answer.reason("SESSION_LIMIT", "session", message) if {
	input.action.name == "session.open"
	not below_session_limit
	message := "The tenant's limit of open sessions is reached; close one and try again."
}

below_session_limit if {
	is_number(input.context.tenant.sessions_open)
	input.context.tenant.sessions_open < input.context.tenant.session_limit
}

serving_denials contains answer.reason("TOKEN_LIMIT", "session", message) if {
	not token_limit
	message := "More output tokens are asked for than the tenant may have in one request."
}

# The tenant's limit where the request names none.
token_limit := input.context.tenant.max_output_tokens if {
	input.resource.properties.max_output_tokens == null
	input.context.tenant.max_output_tokens > 0
}

token_limit := input.resource.properties.max_output_tokens if {
	input.resource.properties.max_output_tokens > 0
	input.resource.properties.max_output_tokens <= input.context.tenant.max_output_tokens
}

serving_denials contains answer.reason("DATA_CLASS_UNKNOWN", "session", message) if {
	some class in input.resource.properties.data_classes
	not data.bulkhead.settings.data_classes[class]
	message := "The request names a class of data that this platform has no rules for."
}

serving_denials contains answer.reason("DATA_CLASS_NOT_COVERED", "session", message) if {
	some class in input.resource.properties.data_classes
	some pack in data.bulkhead.settings.data_classes[class]
	not pack in input.context.tenant.packs
	message := sprintf("Data of class %s needs the compliance pack %s, which the tenant is not under.", [class, pack])
}

# A pack that this bundle does not hold cannot be kept to.
serving_denials contains answer.reason("PACK_UNKNOWN", "session", message) if {
	not packs_known
	message := "The tenant is under a compliance pack that the active policies do not hold."
}

packs_known if {
	every pack in input.context.tenant.packs {
		data.bulkhead.packs[pack].present
	}
}

serving_denials contains denial if {
	some pack in input.context.tenant.packs
	some denial in data.bulkhead.packs[pack].denials
}

# Tier: the strongest that request, tenant and packs ask for

required_tier := tiers.strongest({tier |
	some tier in [input.resource.properties.minimum_tier, input.context.tenant.minimum_tier]
	tier != null
} | {obligation.tier |
	some obligation in pack_obligations
	obligation.type == "min_tier"
})

serving_denials contains answer.reason("TIER_UNAVAILABLE", "session", message) if {
	not tier_offered
	message := "No part of the fleet offers the isolation tier that this session needs."
}

tier_offered if tiers.offered(input.context.platform.tiers, required_tier)

# Key custody: a tenant that must hold the keys of its models gets none whose key somebody else holds, or nobody

serving_denials contains answer.reason("KEY_CUSTODY", "session", message) if {
	some obligation in pack_obligations
	obligation.type == "key_custody"
	obligation.custody == "tenant"
	not input.resource.properties.key_custody == "tenant"
	message := "The tenant must hold the key of this model itself, and does not."
}

serving_denials contains answer.reason("KEY_CUSTODY", "session", message) if {
	not custody_known
	message := "It is not known who holds the key of this model."
}

custody_known if input.resource.properties.key_custody in {"none", "platform", "tenant"}

obligations contains {"type": "key_custody", "custody": input.resource.properties.key_custody} if {
	serving
	input.resource.properties.key_custody in {"platform", "tenant"}
}

# Region: allowed to the tenant, accepted by its packs, offered by the fleet, and the one asked for

serving_denials contains answer.reason("REGION_NOT_ALLOWED", "session", message) if {
	input.resource.properties.region != null
	not input.resource.properties.region in input.context.tenant.regions
	message := "The tenant's data may not be processed in the region that is asked for."
}

serving_denials contains answer.reason("REGION_UNAVAILABLE", "session", message) if {
	count(regions) == 0
	message := "No part of the fleet stands in a region where this session may run."
}

regions contains region if {
	some region in input.context.tenant.regions
	region in input.context.platform.regions
	asked_for(region)
	every pack in input.context.tenant.packs {
		region in data.bulkhead.packs[pack].accepted_regions
	}
}

asked_for(_) if input.resource.properties.region == null

asked_for(region) if input.resource.properties.region == region

pack_obligations contains obligation if {
	some pack in input.context.tenant.packs
	some obligation in data.bulkhead.packs[pack].obligations
}

obligations contains obligation if {
	serving
	some obligation in pack_obligations
}

obligations contains {"type": "min_tier", "tier": required_tier} if serving

obligations contains {"type": "region", "region": min(regions)} if serving

obligations contains {"type": "max_tokens", "max": token_limit} if serving

obligations contains {"type": "padding", "mode": input.resource.properties.padding} if serving
