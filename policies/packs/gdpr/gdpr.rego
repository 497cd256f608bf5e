# METADATA
# title: GDPR
# description: >-
#   Regulation (EU) 2016/679 for a tenant that processes personal data under it. A session that declares no class of
#   data is taken to hold personal data.
# custom:
#   law: Regulation (EU) 2016/679
package bulkhead.packs.gdpr

import data.bulkhead.lib.answer

present := true

personal_classes := {"personal", "special", "phi"}

special_classes := {"special", "phi"}

personal_data if not declared_otherwise

declared_otherwise if {
	count(input.resource.properties.data_classes) > 0
	every class in input.resource.properties.data_classes {
		not class in personal_classes
	}
}

special_categories if {
	some class in input.resource.properties.data_classes
	class in special_classes
}

# METADATA
# title: Purpose limitation
# custom:
#   clause: Art. 5(1)(b)
denials contains answer.reason("GDPR_PURPOSE", "packs.gdpr", message) if {
	personal_data
	not purpose_specified
	message := sprintf(
		"Personal data needs a specified purpose: name one of %s (GDPR Art. 5(1)(b)).",
		[concat(", ", data.bulkhead.settings.gdpr.purposes)],
	)
}

purpose_specified if input.resource.properties.purpose in data.bulkhead.settings.gdpr.purposes

# METADATA
# title: No transfer to a third country
# custom:
#   clause: Art. 44
denials contains answer.reason("GDPR_REGION", "packs.gdpr", message) if {
	personal_data
	input.resource.properties.region != null
	not input.resource.properties.region in accepted_regions
	message := "Personal data may not leave the European Union: choose a region there, or none (GDPR Art. 44)."
}

# METADATA
# description: Regions inside the Union for personal data, every region of the tenant otherwise.
# custom:
#   clause: Art. 44
accepted_regions contains region if {
	some region in input.context.tenant.regions
	data.bulkhead.settings.regions[region] in data.bulkhead.settings.gdpr.jurisdictions
}

accepted_regions contains region if {
	not personal_data
	some region in input.context.tenant.regions
}

# METADATA
# title: Special categories get whole GPUs of their own
# custom:
#   clause: Art. 9, Art. 32(1)
obligations contains {"type": "min_tier", "tier": data.bulkhead.settings.gdpr.special_minimum_tier} if special_categories

obligations contains {"type": "exclusive"} if special_categories

# METADATA
# title: Security of processing, lengths of messages are hidden too
# custom:
#   clause: Art. 32(1)(a)
obligations contains {"type": "padding", "mode": "default"} if personal_data

# METADATA
# title: Storage limitation
# custom:
#   clause: Art. 5(1)(e)
obligations contains {"type": "retention", "days": data.bulkhead.settings.gdpr.retention_days} if personal_data
