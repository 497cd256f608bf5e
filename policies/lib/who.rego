# METADATA
# title: Who asks, and for which tenant
# description: Each rule holds only on facts that are present; what is missing grants nothing.
package bulkhead.lib.who

# METADATA
# description: A developer of the tenant that the resource belongs to.
developer if {
	"developer" in input.subject.properties.roles
	own_tenant
}

# METADATA
# description: A compliance officer of the tenant that the resource belongs to.
officer if {
	"officer" in input.subject.properties.roles
	own_tenant
}

# METADATA
# description: A compliance officer of the platform; belongs to no tenant.
platform_officer if {
	"officer" in input.subject.properties.roles
	input.subject.properties.tenant == null
}

# METADATA
# description: A platform administrator; belongs to no tenant, so an administrator's role inside a tenant is none.
admin if {
	"admin" in input.subject.properties.roles
	input.subject.properties.tenant == null
}

# METADATA
# description: Subject, resource and facts speak of one and the same tenant.
own_tenant if {
	is_string(input.subject.properties.tenant)
	input.subject.properties.tenant == input.resource.properties.tenant
	input.context.tenant.id == input.resource.properties.tenant
}

# METADATA
# description: The tenant of the facts may act.
tenant_active if input.context.tenant.status == "active"
