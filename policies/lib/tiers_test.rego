package bulkhead.lib.tiers_test

import data.bulkhead.lib.tiers

test_rank_is_ordered if {
	tiers.rank("process") < tiers.rank("mig")
	tiers.rank("mig") < tiers.rank("gpu")
	tiers.rank("gpu") < tiers.rank("confidential")
}

test_unknown_tier_has_no_rank if not tiers.rank("quantum")

test_strongest if tiers.strongest({"process", "gpu", "mig"}) == "gpu"

test_strongest_of_nothing_is_undefined if not tiers.strongest(set())

test_strongest_with_an_unknown_tier_is_undefined if not tiers.strongest({"process", "quantum"})

test_offered if tiers.offered(["gpu"], "mig")

test_not_offered if not tiers.offered(["process", "mig"], "gpu")

test_unknown_tier_is_never_offered if not tiers.offered(["process", "quantum"], "quantum")
