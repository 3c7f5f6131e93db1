package sojourn.admit_test

import rego.v1

import data.sojourn.admit

request := {
	"peer": "beta",
	"descriptor": {
		"name": "web",
		"resources": {"cpus": 1, "memory": 1073741824},
		"restrictions": {"no_delegation": false, "countries": [], "max_price_milli": null, "apart": null},
	},
	"free": {"cpus": 8, "memory": 8589934592},
	"peering": {"contract": null, "marks": []},
	"taken": {"vms": 0, "resources": {"cpus": 0, "memory": 0}, "disk": 0},
	"group": {"host": 0, "site": 0},
	"price_milli": 12,
	"country": "DE",
}

with_change(change) := object.union(request, change)

test_what_is_usual_holds_too if {
	count(admit.refuse) == 1 with input as with_change({"peer": null, "free": {"cpus": 0}})
}

named(name) := with_change({"descriptor": {"name": name}})

test_a_guest_with_a_known_name_is_admitted if {
	count(admit.refuse) == 0 with input as named("web")
	count(admit.refuse) == 0 with input as named("db-12")
}

test_any_other_guest_is_refused if {
	count(admit.refuse) == 1 with input as named("miner")
	count(admit.refuse) == 1 with input as named("web-server")
}

test_a_large_guest_is_refused if {
	large := with_change({"descriptor": {"resources": {"cpus": 5}}})
	admit.refuse == {"this site takes VMs with up to 4 CPUs"} with input as large
}

test_own_users_may_run_what_they_want if {
	count(admit.refuse) == 0 with input as object.union(named("miner"), {"peer": null})
}
