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

having(peer, vms) := with_change({"peer": peer, "taken": {"vms": vms}})

test_a_quota_holds_to_the_last_vm if {
	count(admit.refuse) == 0 with input as having("beta", 4)
	admit.refuse == {"your quota here is 5 VMs, and all are taken"} with input as having("beta", 5)
}

test_each_peer_has_its_own if {
	count(admit.refuse) == 1 with input as having("gamma", 1)
	count(admit.refuse) == 0 with input as having("delta", 1)
	count(admit.refuse) == 1 with input as having("delta", 2)
}

test_memory_has_a_quota_too if {
	nearly := with_change({"taken": {"resources": {"memory": 15 * 1073741824}}})
	count(admit.refuse) == 0 with input as nearly
	full := with_change({"taken": {"resources": {"memory": (15 * 1073741824) + 1}}})
	admit.refuse == {"your quota here is 16384 MiB of memory"} with input as full
}

test_own_users_have_none if {
	count(admit.refuse) == 0 with input as having(null, 100)
}
