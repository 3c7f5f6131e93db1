package sojourn.delegate_test

import rego.v1

import data.sojourn.delegate

request := {
	"peer": "beta",
	"to": "gamma",
	"descriptor": {"restrictions": {"no_delegation": false}},
	"hops_left": 1,
}

bound := object.union(request, {"descriptor": {"restrictions": {"no_delegation": true}}})

test_a_request_with_a_hop_left_is_passed_on if {
	count(delegate.refuse) == 0 with input as request
}

test_a_request_without_a_hop_left_ends_here if {
	count(delegate.refuse) == 1 with input as object.union(request, {"hops_left": 0})
}

test_a_vm_that_may_not_be_delegated_is_not_passed_on_for_a_peer if {
	count(delegate.refuse) == 1 with input as bound
}

test_a_vm_that_may_not_be_delegated_can_leave_its_own_site if {
	count(delegate.refuse) == 0 with input as object.union(bound, {"peer": null})
}
