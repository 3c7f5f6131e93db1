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

test_a_request_that_came_one_hop_makes_another if {
	count(delegate.refuse) == 0 with input as request
}

test_one_that_came_two_ends_here if {
	delegate.refuse == {
		"this site passes on what has come less than 2 hops",
	} with input as with_change({"hops_left": 2})
}

test_what_ends_at_the_next_site_may_go_there if {
	last := with_change({"hops_left": 1, "to_peering": {"may": ["host"]}})
	count(delegate.refuse) == 0 with input as last
}

test_own_users_requests_set_out if {
	count(delegate.refuse) == 0 with input as with_change({"peer": null, "hops_left": 4})
}
