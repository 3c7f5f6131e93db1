package sojourn.rank_test

import rego.v1

import data.sojourn.rank

offer := {
	"via": "beta",
	"peering": {"marks": []},
	"price_milli": 10,
	"class": "standard",
	"country": "DE",
	"distance": 1,
	"runs": true,
	"group": 0,
}

# A request about the usual offer and a changed one, in this order.
against(change) := {
	"descriptor": {"restrictions": {"countries": [], "max_price_milli": null, "apart": null}},
	"offers": [offer, object.union(offer, change)],
}

test_what_is_usually_out_of_the_question_stays_so if {
	request := object.union(against({"price_milli": 11}), {"descriptor": {"restrictions": {"max_price_milli": 10}}})
	exclude := rank.exclude with input as request
	some [1, _] in exclude
}

test_a_way_without_a_vm_of_the_group_comes_first_at_any_price if {
	score := rank.score with input as against({"group": 1, "price_milli": 0})
	score[0] > score[1]
}

test_also_before_an_own_place if {
	score := rank.score with input as against({"via": null, "distance": 0, "group": 1})
	score[0] > score[1]
}

test_the_one_with_fewer_comes_first if {
	more := object.union(against({"group": 2}), {"offers": [
		object.union(offer, {"group": 1}),
		object.union(offer, {"group": 2, "price_milli": 1}),
	]})
	score := rank.score with input as more
	score[0] > score[1]
}

test_a_place_that_only_stores_comes_after_all_of_them if {
	stored := object.union(against({}), {"offers": [
		object.union(offer, {"group": 9}),
		object.union(offer, {"via": null, "distance": 0, "runs": false}),
	]})
	score := rank.score with input as stored
	score[0] > score[1]
}
