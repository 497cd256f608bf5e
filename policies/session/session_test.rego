package bulkhead.session_test

import data.bulkhead.examples_test as examples
import data.bulkhead.session

decide(properties, facts) := result if {
	result := session.decision with input as examples.open_session(properties, facts)
}

codes(properties, facts) := examples.codes(decide(properties, facts))

test_a_developer_opens_a_session if {
	decide({}, {}) == {
		"allow": true,
		"reasons": [],
		"obligations": [
			{"type": "min_tier", "tier": "process"},
			{"type": "region", "region": "eu-central"},
			{"type": "max_tokens", "max": 256},
			{"type": "padding", "mode": "default"},
		],
	}
}

test_nothing_is_a_deny if {
	decision := session.decision with input as {}
	decision.allow == false
	"NOT_PERMITTED" in examples.codes(decision)
}

test_officers_and_admins_open_no_sessions if {
	every subject in [
		examples.subject("officer", examples.tenant_id),
		examples.subject("admin", examples.tenant_id),
		examples.subject("officer", null),
		examples.subject("admin", null),
	] {
		decision := session.decision with input as object.union(examples.open_session({}, {}), {"subject": subject})
		examples.codes(decision) == {"NOT_PERMITTED"}
	}
}

test_another_tenants_session_is_out_of_reach if {
	every action in ["session.renew", "session.close", "session.read"] {
		request := object.union(
			examples.open_session({}, {}),
			{"action": {"name": action}, "subject": examples.subject("developer", examples.other_tenant_id)},
		)
		decision := session.decision with input as request
		"NOT_PERMITTED" in examples.codes(decision)
	}
}

test_an_unknown_action_is_denied if {
	request := object.union(examples.open_session({}, {}), {"action": {"name": "session.steal"}})
	decision := session.decision with input as request
	examples.codes(decision) == {"NOT_PERMITTED"}
}

test_a_suspended_tenant_gets_no_session if codes({}, {"status": "suspended"}) == {"TENANT_INACTIVE"}

test_a_suspended_tenant_still_closes_and_reads if {
	every action in ["session.close", "session.read"] {
		request := object.union(examples.open_session({}, {"status": "suspended"}), {"action": {"name": action}})
		decision := session.decision with input as request
		decision == {"allow": true, "reasons": [], "obligations": []}
	}
}

test_officers_see_sessions if {
	every subject in [examples.subject("officer", examples.tenant_id), examples.subject("officer", null)] {
		request := object.union(examples.open_session({}, {}), {"action": {"name": "session.read"}, "subject": subject})
		decision := session.decision with input as request
		decision.allow
	}
}

test_a_model_needs_entitlement if codes({"model": "gpt-unknown"}, {}) == {"MODEL_NOT_ENTITLED"}

test_a_retired_model_is_refused if codes({"model_status": "retired"}, {}) == {"MODEL_RETIRED"}

test_the_last_session_below_the_limit if decide({}, {"sessions_open": 1}).allow

test_the_session_limit if codes({}, {"sessions_open": 2}) == {"SESSION_LIMIT"}

test_a_limit_of_zero_is_a_limit if codes({}, {"session_limit": 0}) == {"SESSION_LIMIT"}

test_renewal_is_not_bound_by_the_session_limit if {
	request := object.union(examples.open_session({}, {"sessions_open": 2}), {"action": {"name": "session.renew"}})
	decision := session.decision with input as request
	decision.allow
}

test_fewer_tokens_than_the_limit if {
	examples.of_type(decide({"max_output_tokens": 10}, {}), "max_tokens") == [{"type": "max_tokens", "max": 10}]
}

test_the_token_limit if codes({"max_output_tokens": 257}, {}) == {"TOKEN_LIMIT"}

test_no_tokens_are_no_session if {
	codes({"max_output_tokens": 0}, {}) == {"TOKEN_LIMIT"}
	codes({}, {"max_output_tokens": 0}) == {"TOKEN_LIMIT"}
	codes({"max_output_tokens": -1}, {}) == {"TOKEN_LIMIT"}
}

test_the_strongest_tier_asked_for_holds if {
	decision := decide({"minimum_tier": "mig"}, {"minimum_tier": "gpu"})
	examples.of_type(decision, "min_tier") == [{"type": "min_tier", "tier": "gpu"}]
}

test_a_tier_that_nobody_offers if codes({"minimum_tier": "confidential"}, {}) == {"TIER_UNAVAILABLE"}

test_an_unknown_tier_is_refused if "TIER_UNAVAILABLE" in codes({"minimum_tier": "quantum"}, {})

test_the_region_asked_for if {
	decision := decide({"region": "us-east"}, {})
	examples.of_type(decision, "region") == [{"type": "region", "region": "us-east"}]
}

test_a_region_outside_the_tenants if {
	codes({"region": "ap-south"}, {}) == {"REGION_NOT_ALLOWED", "REGION_UNAVAILABLE"}
}

test_a_region_without_fleet if codes({}, {"regions": ["us-west"]}) == {"REGION_UNAVAILABLE"}

test_no_region_at_all if codes({}, {"regions": []}) == {"REGION_UNAVAILABLE"}

test_an_unknown_data_class if codes({"data_classes": ["gossip"]}, {}) == {"DATA_CLASS_UNKNOWN"}

test_health_information_needs_its_pack if codes({"data_classes": ["phi"]}, {}) == {"DATA_CLASS_NOT_COVERED"}

test_public_data_needs_no_pack if decide({"data_classes": ["public", "personal"]}, {}).allow

test_an_unknown_pack_fails_closed if "PACK_UNKNOWN" in codes({}, {"packs": ["sox"]})

test_several_reasons_are_all_told if {
	codes({"model": "x"}, {"status": "suspended", "sessions_open": 9}) == {
		"MODEL_NOT_ENTITLED",
		"SESSION_LIMIT",
		"TENANT_INACTIVE",
	}
}

test_missing_facts_deny if {
	allowed := {fact |
		some fact in object.keys(examples.facts)
		request := json.remove(examples.open_session({}, {}), [sprintf("context/tenant/%s", [fact])])
		decision := session.decision with input as request
		decision.allow
	}
	allowed == {"revision"}
}

test_quotes_and_line_breaks_are_ordinary_characters if {
	every text in ["\"", "' or 1=1", "a\nb", "\\u0000", "ünïcode", "${x}", "]} |", ""] {
		codes({"model": text}, {}) == {"MODEL_NOT_ENTITLED"}
		codes({"region": text}, {}) == {"REGION_NOT_ALLOWED", "REGION_UNAVAILABLE"}
		codes({"data_classes": [text]}, {}) == {"DATA_CLASS_UNKNOWN"}
	}
}

test_a_sealed_models_key_stays_where_it_is if {
	every custody in ["platform", "tenant"] {
		some obligation in decide({"key_custody": custody}, {}).obligations
		obligation == {"type": "key_custody", "custody": custody}
	}
	every obligation in decide({"key_custody": "none"}, {}).obligations {
		obligation.type != "key_custody"
	}
}

test_an_unknown_custody_is_denied if codes({"key_custody": "nobody"}, {}) == {"KEY_CUSTODY"}

demanding_pack := {"demanding": {
	"present": true,
	"denials": set(),
	"accepted_regions": {"eu-central", "us-east"},
	"obligations": {{"type": "key_custody", "custody": "tenant"}},
}}

test_a_pack_can_demand_that_the_tenant_holds_the_key if {
	every custody in ["none", "platform"] {
		decision := session.decision with input as examples.open_session({"key_custody": custody}, {"packs": ["demanding"]})
			with data.bulkhead.packs as demanding_pack
		examples.codes(decision) == {"KEY_CUSTODY"}
	}
	held := session.decision with input as examples.open_session({"key_custody": "tenant"}, {"packs": ["demanding"]})
		with data.bulkhead.packs as demanding_pack
	held.allow
}
