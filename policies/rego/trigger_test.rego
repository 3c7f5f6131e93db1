package sojourn.trigger_test

import rego.v1

import data.sojourn.trigger

test_nothing_moves_by_itself if {
	asked := {"measure": "web.current_users", "value": 2000, "age_ms": 0, "delegate": "b"}
	count(trigger.move) == 0 with input as asked
}
