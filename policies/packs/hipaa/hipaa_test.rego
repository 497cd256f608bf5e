package bulkhead.packs.hipaa_test

import data.bulkhead.examples_test as examples
import data.bulkhead.session

decide(properties) := result if {
	result := session.decision with input as examples.open_session(properties, {"packs": ["hipaa"]})
}

test_treatment_gets_whole_gpus_of_its_own if {
	decide({"data_classes": ["phi"], "purpose": "treatment", "padding": "off"}).obligations == [
		{"type": "min_tier", "tier": "gpu"},
		{"type": "region", "region": "eu-central"},
		{"type": "exclusive"},
		{"type": "retention", "days": 2192},
		{"type": "max_tokens", "max": 256},
		{"type": "padding", "mode": "default"},
	]
}

test_every_permitted_purpose if {
	every purpose in ["treatment", "payment", "operations"] {
		decide({"data_classes": ["phi"], "purpose": purpose}).allow
	}
}

test_marketing_is_refused_in_plain_words if {
	decision := decide({"data_classes": ["phi"], "purpose": "marketing"})
	decision.allow == false
	some reason in decision.reasons
	reason == {
		"code": "HIPAA_PURPOSE",
		"policy": "packs.hipaa",
		"message": concat("", [
			"Health information may be used for treatment, payment, operations only; ",
			"name one of these as the session's purpose (45 CFR 164.506(c)).",
		]),
	}
}

test_no_purpose_is_refused if examples.codes(decide({"data_classes": ["phi"]})) == {"HIPAA_PURPOSE"}

test_undeclared_data_is_taken_for_health_information if examples.codes(decide({})) == {"HIPAA_PURPOSE"}

test_data_that_is_no_health_information_is_free if {
	decide({"data_classes": ["public"]}).obligations == [
		{"type": "min_tier", "tier": "process"},
		{"type": "region", "region": "eu-central"},
		{"type": "retention", "days": 2192},
		{"type": "max_tokens", "max": 256},
		{"type": "padding", "mode": "default"},
	]
}

test_a_fleet_without_whole_gpus_serves_no_health_information if {
	request := examples.open_session({"data_classes": ["phi"], "purpose": "treatment"}, {"packs": ["hipaa"]})
	weak := object.union(request, {"context": {"platform": {"tiers": ["process", "mig"]}}})
	decision := session.decision with input as weak
	examples.codes(decision) == {"TIER_UNAVAILABLE"}
}

test_a_missing_declaration_is_no_way_around if {
	request := json.remove(examples.open_session({}, {"packs": ["hipaa"]}), ["resource/properties/data_classes"])
	decision := session.decision with input as request
	"HIPAA_PURPOSE" in examples.codes(decision)
}
