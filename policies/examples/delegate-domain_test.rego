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

own := {"marks": ["near", "own-domain"]}

test_within_the_domain_requests_are_passed_on if {
	count(delegate.refuse) == 0 with input as with_change({"peering": own, "to_peering": own})
}

test_they_do_not_leave_it if {
	out := with_change({"peering": own})
	delegate.refuse == {"no further site is in this domain"} with input as out
}

test_they_do_not_come_in if {
	within := with_change({"to_peering": own})
	delegate.refuse == {"requests from other domains are not passed on"} with input as within
}

test_own_users_stay_within_it if {
	mine := with_change({"peer": null, "peering": null})
	count(delegate.refuse) == 1 with input as mine
	count(delegate.refuse) == 0 with input as object.union(mine, {"to_peering": own})
}
