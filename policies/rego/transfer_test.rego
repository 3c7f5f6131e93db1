package sojourn.transfer_test

import rego.v1

import data.sojourn.transfer

test_files_move_directly if {
	transfer.mode == "direct" with input as {"peer": "beta", "size": 1}
}
