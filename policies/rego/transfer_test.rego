package sojourn.transfer_test

import rego.v1

import data.sojourn.transfer

test_files_move_directly if {
	transfer.mode == "direct" with input as {"peer": "beta", "size": 1, "must_meet": false}
}

test_ends_that_cannot_dial_each_other_meet_here if {
	transfer.mode == "relayed" with input as {"peer": "beta", "size": 1, "must_meet": true}
}
