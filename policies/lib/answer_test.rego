package bulkhead.lib.answer_test

import data.bulkhead.lib.answer

test_allow_without_denials if {
	answer.decision(set(), set()) == {"allow": true, "reasons": [], "obligations": []}
}

test_one_denial_overrides_every_obligation if {
	reason := answer.reason("NO", "somewhere", "Because.")
	answer.decision({reason}, {{"type": "exclusive"}}) == {"allow": false, "reasons": [reason], "obligations": []}
}

test_of_several_obligations_the_more_protective_holds if {
	answer.merge({
		{"type": "min_tier", "tier": "mig"},
		{"type": "min_tier", "tier": "gpu"},
		{"type": "retention", "days": 10},
		{"type": "retention", "days": 20},
		{"type": "max_tokens", "max": 7},
		{"type": "max_tokens", "max": 8},
		{"type": "padding", "mode": "off"},
		{"type": "padding", "mode": "default"},
		{"type": "exclusive"},
		{"type": "region", "region": "eu-west"},
		{"type": "key_custody", "custody": "tenant"},
	}) == [
		{"type": "min_tier", "tier": "gpu"},
		{"type": "region", "region": "eu-west"},
		{"type": "exclusive"},
		{"type": "retention", "days": 20},
		{"type": "max_tokens", "max": 7},
		{"type": "key_custody", "custody": "tenant"},
		{"type": "padding", "mode": "default"},
	]
}

test_strict_padding_wins if answer.strictest({"off", "default", "strict"}) == "strict"

test_no_padding_only_where_nobody_asks if answer.strictest({"off"}) == "off"
