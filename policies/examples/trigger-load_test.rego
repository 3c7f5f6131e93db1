package sojourn.trigger_test

import rego.v1

import data.sojourn.trigger

told(change) := object.union(
	{"measure": "web.current_users", "value": 1200, "age_ms": 1000, "delegate": "beta"},
	change,
)

test_many_users_move_the_vm if {
	trigger.move == {"too many users for where it is"} with input as told({})
}

test_old_news_do_not if {
	count(trigger.move) == 0 with input as told({"age_ms": 60000})
}

test_a_slow_host_moves_it_away_from_others_only if {
	count(trigger.move) == 1 with input as told({"measure": "cpu_share"})
	count(trigger.move) == 0 with input as told({"measure": "cpu_share", "delegate": null})
}

test_other_measures_do_not if {
	count(trigger.move) == 0 with input as told({"measure": "disk_read_bytes"})
}
