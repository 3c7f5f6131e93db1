package sojourn.admit_test

import rego.v1

import data.sojourn.admit

request := {
	"peer": "beta",
	"descriptor": {
		"resources": {"cpus": 2, "memory": 536870912},
		"restrictions": {"no_delegation": false, "countries": [], "max_price_milli": null, "apart": null},
	},
	"free": {"cpus": 2, "memory": 536870912},
	"peering": null,
	"taken": {"vms": 0},
	"group": {"host": 0, "site": 0},
	"price_milli": 12,
	"country": "DE",
}

restricted(restrictions) := object.union(request, {"descriptor": {"restrictions": restrictions}})

test_a_vm_that_just_fits_is_admitted if {
	count(admit.refuse) == 0 with input as request
}

test_own_users_are_told_how_many_cpus_are_missing if {
	admit.refuse == {"2 CPUs are wanted, 1 are free"} with input as object.union(
		request,
		{"peer": null, "free": {"cpus": 1}},
	)
}

test_own_users_are_told_how_much_memory_is_missing if {
	admit.refuse == {"512 MiB of memory are wanted, 511 MiB are free"} with input as object.union(
		request,
		{"peer": null, "free": {"memory": 536870911}},
	)
}

test_a_peer_is_not_told_how_much_is_free if {
	admit.refuse == {
		"2 CPUs are wanted, more than are free",
		"512 MiB of memory are wanted, more than are free",
	} with input as object.union(request, {"free": {"cpus": 1, "memory": 5}})
}

test_every_reason_is_given if {
	count(admit.refuse) == 2 with input as object.union(request, {"free": {"cpus": 0, "memory": 0}})
}

test_a_vm_for_this_country_is_admitted if {
	count(admit.refuse) == 0 with input as restricted({"countries": ["FR", "DE"]})
}

test_a_vm_for_other_countries_is_refused if {
	admit.refuse == {"the VM may run in FR, NL only"} with input as restricted({"countries": ["FR", "NL"]})
}

test_a_site_without_a_country_is_in_no_country if {
	somewhere := object.union(restricted({"countries": ["FR"]}), {"country": ""})
	count(admit.refuse) == 1 with input as somewhere
}

test_a_price_at_the_limit_is_admitted if {
	count(admit.refuse) == 0 with input as restricted({"max_price_milli": 12})
}

test_a_price_above_the_limit_is_refused if {
	admit.refuse == {"the price is 12, the VM may cost 11 at most (thousandths per hour)"} with input as restricted({"max_price_milli": 11})
}

test_a_vm_of_its_group_on_the_host_is_a_reason_and_one_on_another_host_is_none if {
	grouped := restricted({"apart": "db"})
	admit.refuse == {
		"the host has a VM of group db already, and these must stay apart",
	} with input as object.union(grouped, {"group": {"host": 1, "site": 1}})
	count(admit.refuse) == 0 with input as object.union(grouped, {"group": {"host": 0, "site": 1}})
}
