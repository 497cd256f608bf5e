package bulkhead.lib.who_test

import data.bulkhead.examples_test as examples
import data.bulkhead.lib.who

test_developer_of_the_tenant if who.developer with input as examples.open_session({}, {})

test_developer_of_another_tenant_is_none if {
	not who.developer with input as examples.about("tenant.read", "developer", examples.other_tenant_id, examples.tenant_id)
}

test_facts_of_another_tenant_grant_nothing if {
	not who.developer with input as examples.open_session({}, {"id": examples.other_tenant_id})
}

test_no_facts_grant_nothing if {
	request := object.union(examples.open_session({}, {}), {"context": {"tenant": null}})
	not who.developer with input as request
	not who.tenant_active with input as request
}

test_admin_inside_a_tenant_is_none if {
	not who.admin with input as examples.about("tenant.read", "admin", examples.tenant_id, examples.tenant_id)
}

test_an_empty_input_is_nobody if {
	not who.developer with input as {}
	not who.officer with input as {}
	not who.platform_officer with input as {}
	not who.admin with input as {}
}
