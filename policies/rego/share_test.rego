package sojourn.share_test

import rego.v1

import data.sojourn.share

test_a_transfer_takes_what_is_there if {
	share.carrier == "any" with input as {"peer": "beta", "role": "source", "urgent": false}
	share.rate == 0 with input as {"peer": "beta", "role": "source", "urgent": false}
	share.weight == 1 with input as {"peer": "beta", "role": "relay", "urgent": true}
}
