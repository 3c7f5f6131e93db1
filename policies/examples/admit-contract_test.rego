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

test_a_peer_with_a_contract_is_admitted if {
	count(admit.refuse) == 0 with input as with_change({"peering": {"contract": "2026-17"}})
}

test_a_peer_without_one_is_told_so if {
	admit.refuse == {"there is no contract with you"} with input as request
}

test_own_users_need_none if {
	count(admit.refuse) == 0 with input as with_change({"peer": null, "peering": null})
}
