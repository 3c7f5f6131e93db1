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

grouped(group) := with_change({
	"descriptor": {"restrictions": {"apart": "db"}},
	"group": group,
})

test_the_first_of_a_group_is_admitted if {
	count(admit.refuse) == 0 with input as grouped({"host": 0, "site": 0})
}

test_the_second_is_refused_also_on_another_host if {
	admit.refuse == {
		"this site has a VM of group db already, and hosts one of each",
	} with input as grouped({"host": 0, "site": 1})
}
