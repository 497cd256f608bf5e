# METADATA
# title: HIPAA
# description: >-
#   Privacy and Security Rules, 45 CFR Part 164, for a tenant that is a covered entity or a business associate. A
#   session that declares no class of data is taken to hold protected health information.
# custom:
#   law: 45 CFR Part 164
package bulkhead.packs.hipaa

import data.bulkhead.lib.answer

present := true

health_information if not declared_otherwise

declared_otherwise if {
	count(input.resource.properties.data_classes) > 0
	not "phi" in input.resource.properties.data_classes
}

# METADATA
# title: Use for treatment, payment or health care operations
# custom:
#   clause: 45 CFR 164.506(c)
denials contains answer.reason("HIPAA_PURPOSE", "packs.hipaa", message) if {
	health_information
	not purpose_allowed
	message := sprintf(
		"Health information may be used for %s only; name one of these as the session's purpose (45 CFR 164.506(c)).",
		[concat(", ", data.bulkhead.settings.hipaa.purposes)],
	)
}

purpose_allowed if input.resource.properties.purpose in data.bulkhead.settings.hipaa.purposes

# METADATA
# title: Access control, a partition on whole GPUs that no session of another purpose shares
# custom:
#   clause: 45 CFR 164.312(a)(1)
obligations contains {"type": "min_tier", "tier": data.bulkhead.settings.hipaa.minimum_tier} if health_information

obligations contains {"type": "exclusive"} if health_information

# METADATA
# title: Documentation is kept six years
# custom:
#   clause: 45 CFR 164.316(b)(2)(i)
obligations contains {"type": "retention", "days": data.bulkhead.settings.hipaa.retention_days}

# METADATA
# title: Transmission security, lengths of messages are hidden too
# custom:
#   clause: 45 CFR 164.312(e)(1)
obligations contains {"type": "padding", "mode": "default"} if health_information

# METADATA
# description: HIPAA itself binds no region.
accepted_regions contains region if some region in input.context.tenant.regions
