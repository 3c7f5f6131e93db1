package sojourn.transfer_test

import rego.v1

import data.sojourn.transfer

to(marks, must_meet) := {
	"peer": "beta",
	"peering": {"marks": marks},
	"size": 1,
	"must_meet": must_meet,
}

test_strangers_are_shown_no_address if {
	transfer.mode == "relayed" with input as to(["partner"], false)
}

test_in_the_own_domain_files_move_directly if {
	transfer.mode == "direct" with input as to(["own-domain"], false)
}

test_ends_that_cannot_dial_each_other_meet_here if {
	transfer.mode == "relayed" with input as to(["own-domain"], true)
}
