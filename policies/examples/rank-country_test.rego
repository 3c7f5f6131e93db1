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

test_a_country_that_is_wanted_more_may_be_dearer if {
	score := rank.score with input as against({"country": "CH", "price_milli": 109})
	score[1] > score[0]
}

test_but_not_at_any_price if {
	score := rank.score with input as against({"country": "CH", "price_milli": 111})
	score[0] > score[1]
}

test_other_countries_are_out_of_the_question if {
	exclude := rank.exclude with input as against({"country": "US"})
	exclude == {[1, "is not in CH, DE, FR, where this site lets its VMs run"]}
}

test_so_is_a_site_that_does_not_say_where_it_is if {
	exclude := rank.exclude with input as against({"country": ""})
	count(exclude) == 1
}

test_an_own_place_is_where_this_site_is if {
	exclude := rank.exclude with input as against({"via": null, "country": ""})
	count(exclude) == 0
}
