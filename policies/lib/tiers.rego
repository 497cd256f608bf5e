# METADATA
# title: Isolation tiers, ordered
# description: data.bulkhead.settings.tiers lists them, weakest first.
package bulkhead.lib.tiers

# METADATA
# description: Position of a tier; undefined for an unknown one, so a rule that needs it does not hold.
rank(tier) := position if {
	some position, name in data.bulkhead.settings.tiers
	name == tier
}

# METADATA
# description: The strongest of a set of tiers; undefined when it is empty or holds an unknown one.
strongest(tiers) := data.bulkhead.settings.tiers[highest] if {
	count(tiers) > 0
	ranks := {rank(tier) | some tier in tiers}
	every tier in tiers {
		tier in data.bulkhead.settings.tiers
	}
	highest := max(ranks)
}

# METADATA
# description: Some tier of the fleet is the wanted one or stronger.
offered(fleet, wanted) if {
	some tier in fleet
	rank(tier) >= rank(wanted)
}
