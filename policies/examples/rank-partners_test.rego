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

partner(price) := {"via": "gamma", "peering": {"marks": ["partner"]}, "price_milli": price}

test_a_partner_comes_before_a_cheaper_stranger if {
	score := rank.score with input as against(partner(500))
	score[1] > score[0]
	reasons := rank.reasons with input as against(partner(500))
	[1, "is a partner's"] in reasons
}

test_a_partner_that_is_much_dearer_does_not if {
	score := rank.score with input as against(partner(511))
	score[0] > score[1]
}

test_an_own_place_comes_first if {
	score := rank.score with input as against({"via": null, "peering": null, "distance": 0})
	score[1] > score[0]
}
