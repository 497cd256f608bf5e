# METADATA
# title: The shape of every decision
# description: Exactly allow, reasons and obligations. One denial denies; an allow has no reasons.
package bulkhead.lib.answer

import data.bulkhead.lib.tiers

# METADATA
# description: The decision of a domain from everything that was found against it and everything that was demanded.
decision(denials, obligations) := {
	"allow": true,
	"reasons": [],
	"obligations": merge(obligations),
} if {
	count(denials) == 0
} else := {
	"allow": false,
	"reasons": [reason | some reason in denials],
	"obligations": [],
}

# METADATA
# description: A reason in plain words.
reason(code, policy, message) := {"code": code, "policy": policy, "message": message}

# METADATA
# description: >-
#   At most one obligation of each type. Of several the one that protects more holds: the strongest tier, the longest
#   retention (a duty to keep records outlasts a wish to drop them, GDPR Art. 17(3)(b)), the fewest tokens.
merge(obligations) := array.flatten([
	[{"type": "min_tier", "tier": tiers.strongest(wanted)} | wanted := {o.tier | some o in of_type(obligations, "min_tier")}; count(wanted) > 0],
	[o | some o in of_type(obligations, "region")],
	[o | some o in of_type(obligations, "exclusive")],
	[{"type": "retention", "days": max(days)} | days := {o.days | some o in of_type(obligations, "retention")}; count(days) > 0],
	[{"type": "max_tokens", "max": min(limits)} | limits := {o.max | some o in of_type(obligations, "max_tokens")}; count(limits) > 0],
	[o | some o in of_type(obligations, "key_custody")],
	[{"type": "padding", "mode": strictest(modes)} | modes := {o.mode | some o in of_type(obligations, "padding")}; count(modes) > 0],
])

of_type(obligations, type) := {o | some o in obligations; o.type == type}

strictest(modes) := "strict" if {
	"strict" in modes
} else := "default" if {
	"default" in modes
} else := "off"
