package sojourn.delegate_test

import rego.v1

import data.sojourn.delegate

request := {
	"peer": "beta",
	"peering": {"may": ["place", "host", "intermediate"], "marks": []},
	"to": "gamma",
	"to_peering": {"may": ["place", "host", "intermediate"], "marks": []},
	"descriptor": {"restrictions": {"no_delegation": false}},
	"hops_left": 3,
}

with_change(change) := object.union(request, change)

test_what_is_usual_holds_too if {
	count(delegate.refuse) > 0 with input as with_change({"hops_left": 0})
}

test_nothing_is_passed_on_for_a_peer if {
	delegate.refuse == {"this site passes no requests on"} with input as request
}

test_own_users_are_served if {
	count(delegate.refuse) == 0 with input as with_change({"peer": null, "peering": null})
}
