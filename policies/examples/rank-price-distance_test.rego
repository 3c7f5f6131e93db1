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

test_the_cheaper_offer_comes_first if {
	score := rank.score with input as against({"price_milli": 9})
	score[1] > score[0]
}

test_a_near_offer_may_be_a_little_dearer if {
	score := rank.score with input as against({"price_milli": 34, "distance": 0})
	score[1] > score[0]
}

test_but_not_more_than_that if {
	score := rank.score with input as against({"price_milli": 36, "distance": 0})
	score[0] > score[1]
}

test_an_own_place_is_left_empty_where_others_are_cheaper if {
	score := rank.score with input as against({"via": null, "distance": 0, "price_milli": 0})
	score[0] > score[1]
}

test_a_place_that_only_stores_comes_last if {
	score := rank.score with input as against({"via": null, "distance": 0, "runs": false})
	score[0] > score[1]
}
