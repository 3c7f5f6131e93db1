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

test_a_price_above_the_floor_is_admitted if {
	count(admit.refuse) == 0 with input as request
	count(admit.refuse) == 0 with input as with_change({"price_milli": 5})
}

test_a_price_below_the_floor_is_refused if {
	admit.refuse == {
		"a VM with 1 CPUs is not hosted for less than 5 (thousandths per hour)",
	} with input as with_change({"price_milli": 4})
}

test_the_floor_grows_with_the_vm if {
	larger := {"descriptor": {"resources": {"cpus": 3}}}
	count(admit.refuse) == 1 with input as with_change(larger)
}

test_an_owner_who_pays_less_is_refused if {
	poor := {"price_milli": 5, "descriptor": {"restrictions": {"max_price_milli": 4}}}
	count(admit.refuse) == 2 with input as with_change(poor)
}

test_own_users_pay_nothing if {
	count(admit.refuse) == 0 with input as with_change({"peer": null, "price_milli": 0})
}
