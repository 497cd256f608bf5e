package bulkhead.packs.gdpr_test

import data.bulkhead.examples_test as examples
import data.bulkhead.session

decide(properties, facts) := result if {
	changed := object.union({"packs": ["gdpr"]}, facts)
	result := session.decision with input as examples.open_session(properties, changed)
}

personal := {"data_classes": ["personal"], "purpose": "support"}

test_personal_data_stays_in_the_union if {
	decide(personal, {"regions": ["ap-south", "us-east", "eu-central"]}).obligations == [
		{"type": "min_tier", "tier": "process"},
		{"type": "region", "region": "eu-central"},
		{"type": "retention", "days": 365},
		{"type": "max_tokens", "max": 256},
		{"type": "padding", "mode": "default"},
	]
}

test_a_third_country_is_refused if {
	"GDPR_REGION" in examples.codes(decide(object.union(personal, {"region": "us-east"}), {}))
}

test_a_region_of_unknown_law_is_refused if {
	"GDPR_REGION" in examples.codes(decide(object.union(personal, {"region": "moon"}), {"regions": ["moon"]}))
}

test_a_tenant_without_a_region_in_the_union if {
	examples.codes(decide(personal, {"regions": ["us-east"]})) == {"REGION_UNAVAILABLE"}
}

test_a_purpose_must_be_specified if {
	examples.codes(decide({"data_classes": ["personal"]}, {})) == {"GDPR_PURPOSE"}
	examples.codes(decide({"data_classes": ["personal"], "purpose": "curiosity"}, {})) == {"GDPR_PURPOSE"}
}

test_undeclared_data_is_taken_for_personal if examples.codes(decide({}, {})) == {"GDPR_PURPOSE"}

test_special_categories_get_whole_gpus_of_their_own if {
	decision := decide({"data_classes": ["special"], "purpose": "contract"}, {})
	examples.of_type(decision, "min_tier") == [{"type": "min_tier", "tier": "gpu"}]
	examples.of_type(decision, "exclusive") == [{"type": "exclusive"}]
}

test_public_data_may_go_anywhere if {
	decision := decide({"data_classes": ["public"], "region": "us-east"}, {})
	decision.allow
	examples.of_type(decision, "retention") == []
}

test_under_both_packs_the_stricter_of_each_holds if {
	decision := decide({"data_classes": ["phi"], "purpose": "treatment"}, {"packs": ["gdpr", "hipaa"]})
	examples.codes(decision) == {"GDPR_PURPOSE"}
	decide({"data_classes": ["public"]}, {"packs": ["gdpr", "hipaa"]}).allow
}

test_a_missing_declaration_is_no_way_around if {
	request := json.remove(examples.open_session({}, {"packs": ["gdpr"]}), ["resource/properties/data_classes"])
	decision := session.decision with input as request
	"GDPR_PURPOSE" in examples.codes(decision)
}
