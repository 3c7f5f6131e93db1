package sojourn.share_test

import rego.v1

import data.sojourn.share

transfer(change) := object.union(
	{"peer": "beta", "peering": {"marks": []}, "role": "source", "urgent": false},
	change,
)

test_a_transfer_with_anybody_takes_what_is_there if {
	share.carrier == "any" with input as transfer({})
	share.rate == 0 with input as transfer({})
	share.weight == 1 with input as transfer({})
}

test_a_partner_gets_more if {
	share.weight == 3 with input as transfer({"peering": {"marks": ["partner"]}})
}

test_what_passes_through_is_slow_unless_it_must_leave if {
	share.rate == 10000000 with input as transfer({"role": "relay"})
	share.rate == 0 with input as transfer({"role": "relay", "urgent": true})
}

test_a_line_that_drops_udp_is_not_tried_with_it if {
	share.carrier == "tls" with input as transfer({"peering": {"marks": ["no-udp"]}})
}

test_within_the_site_nothing_is_limited if {
	share.weight == 1 with input as transfer({"peer": null, "peering": null})
}
